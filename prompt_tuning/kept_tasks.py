"""Tokenised examples of SeqIO tasks, kept on disk: a later start reads them without TensorFlow and SeqIO.

They are served only while everything they were made from is as it was (`made_from`). For the rest, a stream or a score,
the task itself is opened.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from prompt_tuning import disk, made_from
from prompt_tuning.disk import replacing
from prompt_tuning.examples import Examples, Mixture, Ragged
from prompt_tuning.vocabulary import Vocabulary, warn_of_cut

MANIFEST = "task.json"
SEAL = "sha256"
MOST_BYTES = 1 << 30  # that all kept tasks take together; those not used for longest go first
_PLAIN = ("task", "split", "truncated", "cut_targets")  # of examples, beside their arrays
_DAMAGE = (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def default_folder() -> Path:
    """Where tasks are kept: in the user's cache, beside the compiled programs."""
    return disk.cache() / "tasks"


def open_mixture(
    name: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    module: str | None = None,
    data_dir: str | None = None,
) -> Mixture:
    """`data.open_mixture`, whose tasks load what an earlier start has kept, and keep what they load."""
    started = time.time()

    @functools.cache
    def real() -> Mixture:
        from prompt_tuning import data  # imports TensorFlow, which takes seconds

        return data.open_mixture(name, vocabulary, lengths, module, data_dir)

    if not made_from.nothing_else_loaded():
        return real()
    place = default_folder() / made_from.key(name, vocabulary, lengths, module, data_dir)
    told = _manifest(place)
    if told is None:
        told = _told(real(), module, data_dir, started)
        if told is None or not _write(place / MANIFEST, json.dumps(_sealed(told)).encode()):
            return real()
    of_all = lengths["targets"], place, told["made_from"], real
    tasks = [KeptTask(t["name"], tuple(t["labels"]), tuple(t["splits"]), t["scored"], *of_all) for t in told["tasks"]]
    return Mixture(told["name"], tuple(tasks), tuple(told["rates"]))


@dataclasses.dataclass(frozen=True, eq=False)
class KeptTask:
    """A SeqIO task (an `examples.Task`) whose examples come from disk where they can; `real` opens its mixture."""

    name: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    scored: bool
    limit: int  # of a target's tokens
    place: Path
    made_from: Mapping[str, Any]
    real: Callable[[], Mixture]
    _loaded: dict[str, Examples] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def task(self) -> Any:
        """The SeqIO task itself."""
        return next(task for task in self.real().tasks if task.name == self.name)

    def load(self, split: str) -> Examples:
        """All examples of a split, as the task itself gives them."""
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    def _load(self, split: str) -> Examples:
        own = {"modules": self.made_from["modules"], "data": {self.name: self.made_from["data"][self.name]}}
        about = {"task": self.name, "split": split, "made_from": made_from.digest(own)}
        path = self.place / f"{made_from.digest([self.name, split])[:32]}.safetensors"
        if (kept := _read(path, about)) is not None:
            warn_of_cut(kept.cut_targets, len(kept), f"{self.name}, {split},", self.limit)
            return kept
        examples = self.task.load(split)
        if made_from.holds(own) and (content := _content(examples, about)) is not None and _write(path, content):
            _forget_oldest(self.place)
        return examples

    def texts(self, split: str) -> Sequence[Mapping[str, Any]]:
        """What `load` would tokenise."""
        return self.task.texts(split)

    def stream(self, split: str, seed: int | None, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Examples as they come, from the task itself."""
        return self.task.stream(split, seed, start)

    def score(self, examples: Examples, predictions: Sequence[str]) -> dict[str, float]:
        """The task's own metrics, for which SeqIO is imported."""
        return self.task.score(examples, predictions)


class Texts(Sequence[Mapping[str, Any]]):
    """Lines of JSON that are parsed when they are looked at."""

    def __init__(self, lines: np.ndarray, starts: np.ndarray) -> None:
        self._lines, self._starts = lines, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return json.loads(self._lines[self._starts[i] : self._starts[i + 1]].tobytes())


def _told(mixture: Mixture, module: str | None, data_dir: str | None, started: float) -> dict[str, Any] | None:
    """The manifest of an opened mixture; None if it cannot be known what its examples are made from."""
    from prompt_tuning import data

    paths: dict[str, list[Path] | None] = {}
    for task in mixture.tasks:
        looked_at = data.looked_at(task)
        paths[task.name] = None if looked_at is None else [*looked_at, *([Path(data_dir)] if data_dir else [])]
    record = made_from.record(module, paths, started)
    if record is None:
        return None
    about = [
        {"name": t.name, "labels": list(t.labels), "splits": list(t.splits), "scored": t.scored} for t in mixture.tasks
    ]
    return {"name": mixture.name, "rates": list(mixture.rates), "tasks": about, "made_from": record}


def _manifest(place: Path) -> dict[str, Any] | None:
    """What an earlier start has kept of a mixture, if all that it was made from is as it was."""
    try:
        sealed = json.loads((place / MANIFEST).read_bytes())
        if sealed != _sealed(sealed["told"]) or not made_from.holds(sealed["told"]["made_from"]):
            return None
    except _DAMAGE:
        return None
    with contextlib.suppress(OSError):
        (place / MANIFEST).touch()  # it was used
    return sealed["told"]


def _sealed(told: dict[str, Any]) -> dict[str, Any]:
    return {"told": told, SEAL: made_from.digest(told)}


def _content(examples: Examples, about: Mapping[str, str]) -> bytes | None:
    """A file of one split; None if its texts are no plain values, or too much to keep."""
    try:
        lines = [json.dumps(text, ensure_ascii=False).encode() for text in examples.texts]
    except (TypeError, ValueError, RecursionError):
        return None
    arrays = {
        "inputs": examples.inputs.tokens,
        "input_starts": examples.inputs.starts,
        "targets": examples.targets.tokens,
        "target_starts": examples.targets.starts,
        "texts": np.frombuffer(b"".join(lines), np.uint8),
        "text_starts": np.cumsum([0, *map(len, lines)], dtype=np.int64),
    }
    if sum(array.nbytes for array in arrays.values()) > MOST_BYTES // 2:
        return None
    told = json.dumps({**about, "examples": {name: getattr(examples, name) for name in _PLAIN}})
    return save(arrays, {"about": told, SEAL: _seal(arrays, told)})


def _read(path: Path, about: Mapping[str, str]) -> Examples | None:
    """The examples in a file; None if there is none, if it is damaged, or if they are not what is asked for."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = json.loads(metadata["about"])
        if metadata[SEAL] != _seal(arrays, metadata["about"]) or {name: told[name] for name in about} != about:
            return None
        inputs, targets = (Ragged(arrays[f"{k}s"], arrays[f"{k}_starts"]) for k in ("input", "target"))
        texts = Texts(arrays["texts"], arrays["text_starts"])
        return Examples(inputs=inputs, targets=targets, texts=texts, **told["examples"])
    except _DAMAGE:
        return None


def _seal(arrays: Mapping[str, np.ndarray], told: str) -> str:
    """SHA-256 over everything in a file."""
    total = hashlib.sha256(told.encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


def _write(path: Path, content: bytes) -> bool:
    """Whether the file could be written, whole: a full disk or a folder that is read-only keeps nothing."""
    try:
        with replacing(path) as file:
            file.write(content)
        return True
    except OSError:
        return False


def _forget_oldest(kept: Path) -> None:
    """Removes what was not used for longest while all that is kept is too much, but not the task at `kept`."""
    with contextlib.suppress(OSError):
        used = {place: _last_used(place) for place in kept.parent.iterdir() if place.is_dir()}
        sizes = {place: sum(file.stat().st_size for file in place.iterdir()) for place in used}
        for place in sorted(used, key=lambda place: used[place]):
            if place != kept and sum(sizes.values()) > MOST_BYTES:
                shutil.rmtree(place, ignore_errors=True)
                del sizes[place]


def _last_used(place: Path) -> float:
    """The time of a task's manifest; of one that was never finished, or is being removed, before all times."""
    try:
        return (place / MANIFEST).stat().st_mtime
    except OSError:
        return 0.0
