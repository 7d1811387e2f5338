"""A prompt on disk: npy as the authors' code writes it, or safetensors with a card that says what it is."""

import dataclasses
import hashlib
import json
import math
import operator
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from prompt_tuning import disk
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import LENGTHS

BARE = "encoder.prompt.prompt.prompt"  # a step's prompt, called as the authors' code calls it
PEFT_CONFIG = "adapter_config.json"  # what makes a folder one that PEFT wrote
SEAL = "sha256"  # of the vectors and the card, in a file that this project wrote
MAX_BYTES = 1 << 30  # a prompt is kilobytes; anything near this is another kind of file


@dataclasses.dataclass(frozen=True)
class Card:
    """Where a prompt comes from and how it is to be used; unknown fields are None or empty."""

    name: str = ""
    task: str = ""
    labels: tuple[str, ...] = ()
    placement: str = ""  # in the input; empty: not known, and taken for "front"
    init: str = ""
    seed: int | None = None
    step: int | None = None
    score: float | None = None  # the task's mean metric on its validation split, percent
    metric: str = ""
    base: str = ""  # path or hub name of the frozen model
    base_digest: str = ""
    input_length: int | None = None  # tokens that inputs were cut to
    target_length: int | None = None  # and targets

    @property
    def answer_length(self) -> int:
        """Tokens of an answer that it writes, at most: as many as it was trained to write, and no fewer than usual."""
        return max(self.target_length or 0, LENGTHS["targets"])


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One trained prompt, `vectors[P D]` in float32, and its card."""

    vectors: np.ndarray
    card: Card = Card()

    def check_width(self, width: int, called: str, base: str) -> None:
        """Raises UserError for a prompt, `called` so, that was tuned on a model of another width than `base` has."""
        shape = np.shape(self.vectors)
        if not hasattr(self.vectors, "shape") or len(shape) != 2:
            found = f"{type(self.vectors).__name__} of {list(shape)}"
            raise UserError(f"The vectors of the prompt {called} are a {found}; they are an array [P, D] of numpy.")
        if (own := shape[1]) != width:
            raise UserError(f"The prompt {called} is {own} wide, and {base} {width}: choose the base it was tuned on.")


def save_npy(path: Path, vectors: np.ndarray) -> None:
    """The authors' format: a bare array, written whole or not at all."""
    with disk.replacing(path) as file:
        np.save(file, np.asarray(vectors, np.float32), allow_pickle=False)


def named(path: Path, ending: str) -> Path:
    """The path. Raises UserError where it does not end so."""
    if path.suffix != ending:
        raise UserError(f"{path} would be a {ending} file, and is only found again under such a name: add {ending}.")
    return path


def save_safetensors(path: str | Path, prompt: Prompt) -> None:
    """The vectors as `prompt` and the card as metadata, written whole or not at all.

    Raises UserError for a name without .safetensors, under which it would not be read again.
    """
    path = named(Path(path).expanduser(), ".safetensors")
    numbers = operator.methodcaller("tolist")  # of numpy, which JSON does not know
    card = {k: json.dumps(v, default=numbers) for k, v in dataclasses.asdict(prompt.card).items()}
    vectors = np.ascontiguousarray(prompt.vectors, np.float32)
    data = save({"prompt": vectors}, metadata=card | {SEAL: _seal(vectors, card)})
    with disk.replacing(path) as file:
        file.write(in_order(data))


def in_order(data: bytes) -> bytes:
    """The same file with its header sorted, so that equal prompts are equal files: safetensors draws its order."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def find(place: str | Path) -> Path:
    """The file that `place` means: a file, or `RUN`, `RUN:SLOT`, and with `@STEP` behind it the prompt of that step.

    `RUN` is the folder of a run (its MODEL_DIR), or of prompts; without `@STEP` its best prompt is meant.
    """
    text = str(Path(place).expanduser())
    if Path(text).is_file():
        return Path(text)
    match = re.fullmatch(r"(?P<run>.+?)(:(?P<slot>[^:/]+?))?(@(?P<step>\d+))?", text)
    if match is None or not Path(match["run"]).is_dir():
        raise UserError(f"There is no prompt file {text}. A prompt is a .npy or .safetensors file, or RUN:SLOT[@STEP].")
    run, slot, step = Path(match["run"]), match["slot"], match["step"]
    refuse_unimported(run)
    inside = run / "prompts" if (run / "prompts").is_dir() else run
    best = sorted(f.stem for f in inside.glob("*.safetensors"))
    if step:
        folder, ending = run / "numpy_checkpoints" / f"checkpoint_{int(step)}", f"/{BARE}"
        of_one_slot = (folder / BARE).is_file()
        if of_one_slot and slot in (None, *best):
            return folder / BARE
        known = best if of_one_slot else sorted(f.parent.name for f in folder.glob(f"*/{BARE}"))
    else:
        folder, ending, known = inside, ".safetensors", best
    if slot is None and len(known) == 1:
        slot = known[0]
    if slot not in known:
        raise UserError(_not_there(text, folder, slot, known))
    return folder / f"{slot}{ending}"


def refuse_unimported(folder: Path) -> None:
    """Raises UserError for a folder that PEFT or T5X wrote, and no run of ours: `export.load` checks what it holds."""
    names = {entry.name for entry in folder.iterdir()}
    ours = names & {"prompts", "numpy_checkpoints"} or any(name.endswith(".safetensors") for name in names)
    if PEFT_CONFIG in names or (is_of_t5x(names) and not ours):
        kind = "PEFT adapter" if PEFT_CONFIG in names else "T5X checkpoint"
        raise UserError(f"{folder} is a {kind}. Type `prompt-tuning import {folder} --out NAME.safetensors` first.")


def is_of_t5x(names: Iterable[str]) -> bool:
    """Whether a folder that holds `names` is a checkpoint of T5X, in either of its layouts, or holds some."""
    return any(re.fullmatch(r"state|checkpoint(_\d+)?", name) for name in names)


def _not_there(place: str, folder: Path, slot: str | None, known: list[str]) -> str:
    if not known:
        return f"{place}: there is no prompt in {folder}. Train first, or name another run or step."
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    if slot is None:
        return f"{place} has {len(known)} prompts: {shown}. Say which one, as in RUN:{known[0]}."
    return f"{place}: there is no prompt {slot!r} in {folder}.{nearest(slot, known)} It has: {shown}."


def load(place: str | Path) -> Prompt:
    """Reads either format. Raises UserError for anything that is not a finite float array `[P D]`."""
    path = find(place)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for a prompt.")
    prompt = _load_safetensors(path) if path.suffix == ".safetensors" else Prompt(_load_npy(path))
    found, kind = prompt.vectors, prompt.vectors.dtype
    with np.errstate(over="ignore"):  # a larger number is infinite as float32, and refused
        vectors = found.astype(np.float32) if kind.kind == "f" or kind.name == "bfloat16" else None
    if vectors is None or vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():
        raise UserError(
            f"{path} holds {kind}{list(found.shape)}, not a prompt:"
            " expected finite floating point numbers [prompt length, embedding width]."
        )
    return Prompt(vectors, prompt.card if path.name != BARE else _card_of_step(path))


def _card_of_step(path: Path) -> Card:
    """The card of a run's best prompt, for a prompt of one of its steps: the same task and base, no score."""
    step = next((folder for folder in path.parents if re.fullmatch(r"checkpoint_\d+", folder.name)), None)
    if step is None:
        return Card()
    prompts = sorted((step.parents[1] / "prompts").glob("*.safetensors"))
    own = [f for f in prompts if f.stem == path.parent.name] if path.parent != step else prompts
    if len(own) != 1:
        return Card()
    card = _load_safetensors(own[0]).card
    return dataclasses.replace(card, step=int(step.name.removeprefix("checkpoint_")), score=None)


def _load_npy(path: Path) -> np.ndarray:
    """The array, for which room is made only when the file is seen to hold what its header says."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = header(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects, which only a pickle brings back, and a pickle can run code")
            claimed, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
            if claimed != held or min(shape, default=1) < 0:
                raise ValueError(f"its header claims {claimed:,} bytes of numbers, and it holds {held:,}")
            return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if columns_first else "C")
    except (ValueError, EOFError, OSError, MemoryError, OverflowError, SyntaxError, TypeError, RecursionError,
            tokenize.TokenError) as error:  # fmt: skip
        raise UserError(f"{path} is not a readable .npy file ({error}).") from error


def _load_safetensors(path: Path) -> Prompt:
    try:
        with safe_open(path, "numpy") as file:
            names = list(file.keys())
            name = "prompt" if "prompt" in names else names[0] if len(names) == 1 else None
            if name is None:
                listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                raise UserError(
                    f"{path} holds {listed or 'no tensor'}; a prompt file holds one tensor, called 'prompt'."
                )
            vectors, metadata = file.get_tensor(name), file.metadata() or {}
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:  # the last: a type that numpy lacks
        raise UserError(f"{path} is not a readable .safetensors file ({error}).") from error
    if metadata.get(SEAL, _seal(vectors, metadata)) != _seal(vectors, metadata):
        raise UserError(
            f"The prompt {path} is damaged: its contents are not those that were written (SHA-256). Copy it again, or"
            " take the prompt of a step, RUN@STEP."
        )
    return Prompt(vectors, _card(path, metadata))


def _seal(vectors: np.ndarray, card: dict[str, str]) -> str:
    told = json.dumps({k: v for k, v in card.items() if k != SEAL}, sort_keys=True)
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes() + told.encode()).hexdigest()


def _card(path: Path, metadata: dict[str, str]) -> Card:
    try:
        return Card(**{k: _field(k, v) for k, v in metadata.items() if k in _KINDS})
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"The card inside {path} cannot be read ({error}).") from error


_KINDS = {field.name: field.type for field in dataclasses.fields(Card)}


def _field(name: str, text: str) -> Any:
    """One field of a card from its JSON. Raises ValueError or TypeError where it is of another kind than the field."""
    value: Any = json.loads(text)
    kind: Any = list if name == "labels" else int | _KINDS[name] if name == "score" else _KINDS[name]
    words = value if name == "labels" else [value] if isinstance(value, str) else []
    if not isinstance(value, kind):
        raise TypeError(f"its {name} is {text:.40}")
    for word in words:
        str.encode(word)  # half a character, which JSON can spell, could be printed nowhere
    number = isinstance(value, int | float)
    if number and (not math.isfinite(value) or (name.endswith("_length") and value < 1)):
        raise ValueError(f"its {name} is {text:.40}")
    return tuple(value) if name == "labels" else value
