"""A library of prompts: a folder of safetensors files with cards, and beside them an index to search it by.

The index holds two vectors of each prompt, so that a search reads them and not the prompts: 10,000 prompts of 100 x 768
are 3 GB, their index is 61 MB. Files that come, change or go are noticed by size and time.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from prompt_tuning import disk, prompt_file, spot, terminal
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.flags import whole_number

INDEX = ".index"  # a safetensors file; not called so, or it would be taken for a prompt


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index knows of one prompt."""

    name: str
    length: int  # P
    width: int  # D
    task: str
    score: float | None
    step: int | None
    base: str
    base_digest: str
    stamp: tuple[int, int]  # size and time of the file when it was read


@dataclasses.dataclass(frozen=True)
class Found:
    """One hit of a search."""

    entry: Entry
    average_tokens: float
    per_token_average: float


class Library:
    """The prompts of a folder, indexed."""

    def __init__(self, folder: str | Path, create: bool = False) -> None:
        """Opens a library and brings its index up to date; with `create` the folder may be missing."""
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            if not create:
                raise UserError(f"There is no library {folder}. Start one: prompt-tuning library add {folder} PROMPT")
            self.folder.mkdir(parents=True)
        entries, self._directions = _read(self.folder / INDEX)
        known = {(e.name, e.stamp): e for e in entries}
        self.entries = []
        self.unreadable: list[str] = []  # names of files that are no prompts, or damaged ones
        files = {f.name.removesuffix(".safetensors"): f for f in os.scandir(self.folder)
                 if f.name.endswith(".safetensors") and not f.name.startswith(".")}  # fmt: skip
        for name in sorted(files):
            try:
                stamp = _stamp(files[name])
                self.entries.append(known.get((name, stamp)) or self._index(name, stamp))
            except (UserError, OSError):
                self.unreadable.append(name)
        self._directions = {e.name: self._directions[e.name] for e in self.entries}
        if self.entries != entries:
            self._write()

    def path(self, name: str) -> Path:
        """The file of a prompt."""
        if name not in self._directions:
            raise UserError(f"The library {self.folder} has no prompt {name!r}.{nearest(name, self._directions)}")
        return self.folder / f"{name}.safetensors"

    def add(self, places: Sequence[str], name: str | None = None) -> list[Entry]:
        """Copies prompts in under `name`, or the one on their card; what is there under that name is not replaced."""
        if name and len(places) > 1:
            raise UserError(f"--name names one prompt, and {len(places)} are added.")
        read: list[tuple[str, str, prompt_file.Prompt]] = []
        for place in places:
            prompt = prompt_file.load(place)
            called = re.sub(r"[^\w.-]+", "_", name or prompt.card.name or prompt_file.find(place).stem).lstrip(".")
            if not called:
                raise UserError(f"The prompt {place} needs a name of letters and digits: add --name NAME.")
            if twin := next((other for name, other, _ in read if name == called), None):
                raise UserError(f"{twin} and {place} are both called {called!r}. Add each by itself under a --name.")
            if called in {*self._directions, *self.unreadable}:
                raise UserError(
                    f"The library {self.folder} already has a prompt {called!r}. Add {place} under another --name, or"
                    f" delete {self.folder / called}.safetensors first."
                )
            spot.directions(prompt.vectors, place)  # complains before anything is written
            read.append((called, place, prompt))
        added = []
        for called, _, prompt in read:
            path, card = self.folder / f"{called}.safetensors", dataclasses.replace(prompt.card, name=called)
            prompt_file.save_safetensors(path, dataclasses.replace(prompt, card=card))
            added.append(self._index(called, _stamp(path)))
        self.entries = sorted([*self.entries, *added], key=lambda entry: entry.name)
        self._write()
        return added

    def search(self, place: str, similarity: spot.Similarity = spot.per_token_average) -> tuple[list[Found], int]:
        """Prompts by their similarity to the one at `place`, the most alike first, and how many cannot be compared.

        Compared are prompts of the same length and width, tuned on the same base as far as their cards say.
        """
        prompt = prompt_file.load(place)
        fits = lambda e: (
            (e.length, e.width) == prompt.vectors.shape
            and (not e.base_digest or not prompt.card.base_digest or e.base_digest == prompt.card.base_digest)
        )
        chosen = [entry for entry in self.entries if fits(entry)]
        if not chosen:
            return [], len(self.entries)
        library = self._stacked(chosen)
        both = spot.similarities(library, spot.directions(prompt.vectors, place)[None])[..., 0]
        order = np.lexsort((np.arange(len(chosen)), -similarity(both)))
        found = [Found(chosen[i], float(both[0, i]), float(both[1, i])) for i in order]
        return found, len(self.entries) - len(chosen)

    def _stacked(self, entries: Sequence[Entry]) -> np.ndarray:
        return np.stack([self._directions[entry.name] for entry in entries])

    def _index(self, name: str, stamp: tuple[int, int]) -> Entry:
        """Reads one prompt into the index."""
        path = self.folder / f"{name}.safetensors"
        prompt = prompt_file.load(path)
        self._directions[name] = spot.directions(prompt.vectors, str(path))
        length, width = prompt.vectors.shape
        card = prompt.card
        return Entry(name, length, width, card.task, card.score, card.step, card.base, card.base_digest, stamp)

    def _write(self) -> None:
        """Keeps the index, for next time; a library that cannot be written to is read without."""
        arrays = {
            str(width): self._stacked([entry for entry in self.entries if entry.width == width])
            for width in sorted({entry.width for entry in self.entries})
        }
        entries = json.dumps([vars(entry) for entry in self.entries])
        with contextlib.suppress(OSError), disk.replacing(self.folder / INDEX) as file:
            file.write(save(arrays, metadata={"entries": entries}))


def _stamp(file: os.DirEntry | Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> tuple[list[Entry], dict[str, np.ndarray]]:
    """Entries and their directions `[2 D]` by name; nothing where there is no index or none that can be read."""
    if not path.is_file():
        return [], {}
    try:
        with safe_open(path, "numpy") as file:
            entries = [Entry(**row | {"stamp": tuple(row["stamp"])}) for row in json.loads(file.metadata()["entries"])]
            rows = {int(width): iter(file.get_tensor(width)) for width in file.keys()}  # noqa: SIM118 - no mapping
            return entries, {entry.name: next(rows[entry.width]) for entry in entries}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, StopIteration):
        return [], {}  # it is made again from the prompts


def main(argv: list[str]) -> int:
    """prompt-tuning library add | list | search."""
    options = _parser().parse_args(argv)
    console = terminal.console()
    match options.command:
        case "add":
            library = Library(options.folder, create=True)
            for entry in library.add(options.prompts, options.name):
                console.print(f"{entry.name}: {entry.length} x {entry.width}, {_words(entry)}", soft_wrap=True)
            _tell_left_out(library)
        case "list":
            library = Library(options.folder)
            table = _table("prompt", "task", "length", "score", "step", "base")
            for e in library.entries:
                table.add_row(
                    e.name, e.task, f"{e.length} x {e.width}", _number(e.score, ".2f"), _number(e.step), e.base
                )
            console.print(table)
            console.print(f"{_prompts(len(library.entries))} in {library.folder}", soft_wrap=True)
            _tell_left_out(library)
        case "search":
            _search(options, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "prompt-tuning library", description="A folder of prompts, searched by similarity."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="copy prompts into the library")
    search = commands.add_parser("search", help="the prompts most like another one (Vu et al. 2022, §3)")
    for command in (add, commands.add_parser("list", help="every prompt with its card"), search):
        command.add_argument("folder", metavar="LIBRARY", help="a folder of .safetensors prompts")
    add.add_argument("prompts", nargs="+", metavar="PROMPT", help="a file, RUN:SLOT, or RUN:SLOT@STEP")
    add.add_argument("--name", help="what to call it; default: the name on its card")
    search.add_argument(
        "prompt", metavar="PROMPT", help="a file, RUN:SLOT, or RUN:SLOT@STEP (the paper: of step 10,000)"
    )
    search.add_argument("--top", type=whole_number(1), default=10, metavar="N", help="how many to show")
    search.add_argument("--by", choices=("per_token_average", "average_tokens"), default="per_token_average")
    search.add_argument("--json", action="store_true", help="a JSON line a prompt")
    return parser


def _search(options: argparse.Namespace, console: Console) -> None:
    library = Library(options.folder)
    found, others = library.search(options.prompt, getattr(spot, options.by))
    table = _table("", "prompt", "average tokens", "per token", "task", "score")
    for n, hit in enumerate(found[: options.top], 1):
        e = hit.entry
        if options.json:
            row = {"name": e.name, "path": str(library.path(e.name)), "task": e.task, "score": e.score}
            print(json.dumps(row | {"average_tokens": hit.average_tokens, "per_token_average": hit.per_token_average}))
        numbers = f"{hit.average_tokens:.4f}", f"{hit.per_token_average:.4f}"
        table.add_row(str(n), e.name, *numbers, e.task, _number(e.score, ".2f"))
    if not options.json:
        console.print(table)
    _tell_left_out(library, others)


def _tell_left_out(library: Library, others: int = 0) -> None:
    told = [f"not compared: {_prompts(others)} of another length, width or base"] if others else []
    if library.unreadable:
        told.append(f"not readable: {', '.join(f'{name}.safetensors' for name in library.unreadable)}")
    if told:
        terminal.console(stderr=True).print(f"{library.folder}: {'; '.join(told)}", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column in ("", "length", "score", "step", "average tokens", "per token")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _prompts(count: int) -> str:
    return f"{count:,} prompt{'' if count == 1 else 's'}"


def _words(entry: Entry) -> str:
    return f"{entry.task or 'no task on its card'}{'' if entry.score is None else f', {entry.score:.2f}'}"


def _number(value: float | None, how: str = "") -> str:
    return "" if value is None else format(value, how)
