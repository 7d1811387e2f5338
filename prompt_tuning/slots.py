"""What is trained: a list of slots, written out or as a grid (tasks x seeds x inits x lengths x learning rates)."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np

from prompt_tuning import configure, inits, kinds, layout
from prompt_tuning.errors import UserError, nearest

MAX_PROMPT_LENGTH = 512
MAX_SLOTS = 4096
SHOWN = {"seed": "seed", "init": "", "length": "length", "learning_rate": "lr", "placement": ""}  # in a slot's name


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Slot:
    """One prompt of a bank and how it is trained."""

    task: str | None = None
    seed: int = 0  # of its init, its data order and its dropout
    init: inits.Init = inits.class_labels  # or a trained prompt's place, or {place: weight}
    length: int = 100  # P; 0 is the model without a prompt
    learning_rate: float = 0.3
    placement: layout.Placement = layout.front
    labels: tuple[str, ...] | None = None  # None: the task's own
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.task, str | None) or not isinstance(self.name, str):
            raise UserError(f"A slot's task and name are words; {self.task!r} and {self.name!r} are not both.")
        whole = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool)
        if not whole or not 0 <= self.seed < 2**32:  # JAX would cut a larger one to 32 bits
            raise UserError(f"The seed of a slot is {self.seed!r}; it is a whole number from 0 to {2**32 - 1:,}.")
        if not isinstance(self.length, int) or not 0 <= self.length <= MAX_PROMPT_LENGTH:
            raise UserError(f"A prompt has 1 to {MAX_PROMPT_LENGTH} vectors; PROMPT_LENGTH is {self.length!r}.")
        if not isinstance(self.learning_rate, int | float) or not 0 <= self.learning_rate < math.inf:
            raise UserError(f"LEARNING_RATE is {self.learning_rate!r}; it is a number from 0, 0.3 in the paper.")
        kinds.check(kinds.TEXTS, True, CLASS_LABELS=self.labels)
        object.__setattr__(self, "init", inits.of(self.init))  # a place or a table of places becomes an init
        for field in ("init", "placement"):
            if not callable(getattr(self, field)):
                raise UserError(
                    f"{field} of a slot is a function, such as @class_labels; {getattr(self, field)!r} is not."
                )


def expand(slots: Sequence[Mapping[str, Any]] | None, grid: Mapping[str, Sequence[Any]] | None) -> tuple[Slot, ...]:
    """The slots of a run: `slots` as they stand, or every combination of `grid`; with neither, one of the macros.

    Each gets a name made of its task and whatever differs between slots.
    """
    if slots is not None and grid is not None:
        raise UserError("SLOTS and GRID are both set. Set one of them, the other to None.")
    if not isinstance(slots or (), list | tuple) or not all(isinstance(row, Mapping) for row in slots or ()):
        raise UserError(f"SLOTS is {slots!r}; it is a list of tables, such as [{{'seed': 0}}, {{'seed': 1}}].")
    lists = grid.values() if isinstance(grid, Mapping) else [None]
    if grid is not None and not all(isinstance(values, list | tuple) for values in lists):
        raise UserError(f"GRID is {grid!r}; it is a table of lists, such as {{'seed': [0, 1]}}.")
    count = len(slots or ()) or math.prod(len(values) for values in (grid or {}).values())
    if count > MAX_SLOTS:
        raise UserError(f"SLOTS or GRID asks for {count:,} prompts; one run trains {MAX_SLOTS:,} at most.")
    if slots is not None:
        rows = [dict(row) for row in slots]
    elif grid is not None:
        rows = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    else:
        rows = [{}]
    fields = [f.name for f in dataclasses.fields(Slot)]
    for key in {key for row in rows for key in row}:
        if key not in fields:
            raise UserError(f"A slot has no {key!r}.{nearest(key, fields)} It has: {', '.join(fields)}.")
    if not rows:
        raise UserError("SLOTS or GRID is empty: there is no prompt to train.")
    made = [Slot(**row) for row in rows]
    differing = [field for field in SHOWN if len({configure.word(getattr(slot, field)) for slot in made}) > 1]
    names = [slot.name or _name(slot, differing) for slot in made]
    if len(set(names)) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise UserError(f"Two slots are both {twice!r}. Give them names, or let them differ in something.")
    return tuple(dataclasses.replace(slot, name=name) for slot, name in zip(made, names, strict=True))


def _name(slot: Slot, differing: Sequence[str]) -> str:
    parts = [slot.task or "prompt", *(SHOWN[field] + configure.word(getattr(slot, field)) for field in differing)]
    return file_name("-".join(parts))


def check_file_names(slots: Sequence[Slot]) -> None:
    """Raises UserError for a slot whose files would stand elsewhere than in the run's folder."""
    for slot in slots:
        if slot.name in (".", "..") or re.search(r"[/\\\0]", slot.name):
            raise UserError(
                f"The name of a slot is {slot.name!r}; a file is called so: leave out what leads elsewhere."
            )


def file_name(text: str) -> str:
    """A name like `text` that a file can have in any folder."""
    return re.sub(r"[^\w.-]+", "_", text)


def start_bank(slots: Sequence[Slot], starts: Sequence[inits.Start]) -> np.ndarray:
    """`bank[K P D]` before training; a slot shorter than the longest is zero behind its own length."""
    bank = np.zeros((len(slots), max(s.length for s in slots), starts[0].features), np.float32)
    for k, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        bank[k, : slot.length] = _started(slot, start)
    return bank


def _started(slot: Slot, start: inits.Start) -> np.ndarray:
    """A slot's `prompt[P D]` before training. Raises UserError where an init of one's own makes none."""
    name, rng = configure.word(slot.init), jax.random.fold_in(jax.random.key(slot.seed), 1)
    if why := kinds.uncallable(slot.init, start, rng=rng):
        raise UserError(
            f"The init {name} cannot be called with (start, rng=...): {why}. Write it as `def {name}(start, *, rng)`,"
            " where start has length, features, labels, vocabulary and embed(ids), and rng is a key of jax.random."
        )
    made = slot.init(start, rng=rng)
    try:
        found = np.asarray(made, np.float32)
    except (TypeError, ValueError):
        found = np.zeros(0, np.float32)
    if found.shape != (start.length, start.features) or not np.isfinite(found).all():
        what = f"an array of {list(found.shape)}" if found.size else f"{made!r:.60}"
        raise UserError(
            f"The init {name} made {what}; a prompt is finite numbers"
            f" [start.length, start.features], here [{start.length}, {start.features}]."
        )
    return found


def rng_of(slots: Sequence[Slot]) -> np.ndarray:
    """Key data `[K 2]` that every step's dropout is drawn from."""
    return np.stack([jax.random.key_data(jax.random.key(slot.seed)) for slot in slots])
