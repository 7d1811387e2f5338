"""Prompts in the slots of one array of fixed size: adding or removing one changes values, never a shape."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from prompt_tuning import layout, prompt_file
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import LENGTHS
from prompt_tuning.slots import Slot

PLACEMENTS = {p.__name__: p for p in (layout.front, layout.after_bos, layout.behind)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What stands in a slot."""

    slot: Slot
    labels: tuple[str, ...]  # the answers it ranks; empty if it writes freely
    card: prompt_file.Card

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def input_length(self) -> int:
        """Tokens that its inputs are cut to."""
        return self.card.input_length or LENGTHS["inputs"]


@dataclasses.dataclass(frozen=True)
class Bank:
    """K slots for prompts of up to P vectors.

    It never changes: `add` and `remove` return another one, so what is being answered keeps the prompts it began with.
    """

    vectors: np.ndarray  # float32[K P D], zero where nothing stands
    entries: tuple[Entry | None, ...]  # of each slot; None: it is free

    @classmethod
    def empty(cls, slots: int, length: int, features: int) -> "Bank":
        """`slots` free slots for prompts of up to `length` vectors of width `features`."""
        return cls(np.zeros((slots, length, features), np.float32), (None,) * slots)

    @property
    def names(self) -> tuple[str, ...]:
        """The prompts that are there, in the order of their slots."""
        return tuple(entry.name for entry in self.entries if entry)

    def slot_of(self, name: str) -> int:
        """The slot of a prompt. Raises UserError if there is none of that name."""
        for k, entry in enumerate(self.entries):
            if entry and entry.name == name:
                return k
        there = ", ".join(self.names) or "none"
        raise UserError(f"There is no prompt {name!r}.{nearest(str(name), self.names)} Loaded prompts: {there}.")

    def entry(self, name: str) -> Entry:
        """What is known of a prompt. Raises UserError if there is none of that name."""
        found = self.entries[self.slot_of(name)]
        assert found is not None
        return found

    def add(self, prompt: prompt_file.Prompt, name: str, labels: Sequence[str] | None = None) -> "Bank":
        """Another bank, with `prompt` in the first free slot; `labels` default to its card's.

        Raises UserError for a prompt that does not fit, a name that is taken, or a full bank.
        """
        slots, length, features = self.vectors.shape
        own_length = len(prompt.vectors)
        if not np.isfinite(prompt.vectors).all():
            raise UserError(f"The prompt {name} holds numbers that are not finite, which would reach its neighbours.")
        prompt.check_width(features, name, "this bank")
        if own_length > length:
            raise UserError(f"The prompt {name} has {own_length} vectors, and these slots hold up to {length}: make them longer at the start.")  # fmt: skip # noqa: E501
        if name in self.names:
            raise UserError(f"A prompt {name!r} is loaded already. Remove it first, or give this one another name.")
        if None not in self.entries:
            raise UserError(f"All {slots} slots are taken ({', '.join(self.names)}). Remove a prompt first.")
        k, card = self.entries.index(None), prompt.card
        slot = Slot(card.task or None, length=own_length, placement=placement(card, name), name=name)
        entry = Entry(slot, tuple(card.labels if labels is None else labels), card)
        return self._with(k, entry, prompt.vectors)

    def remove(self, name: str) -> "Bank":
        """Another bank, with that prompt's slot free. Raises UserError if there is none of that name."""
        return self._with(self.slot_of(name), None, self.vectors[:0, 0])

    def _with(self, k: int, entry: Entry | None, vectors: np.ndarray) -> "Bank":
        changed = self.vectors.copy()  # the old array may be in use on the device
        changed[k] = 0
        changed[k, : len(vectors)] = vectors
        return Bank(changed, (*self.entries[:k], entry, *self.entries[k + 1 :]))


def room_for(prompts: Iterable[prompt_file.Prompt], least: int = 1) -> tuple[int, int]:
    """Vectors, `least` or more, and tokens of an answer: as many as the longest of some prompts has and writes."""
    lengths = [(len(prompt.vectors), prompt.card.answer_length) for prompt in prompts]
    return max([least, *(n for n, _ in lengths)]), max([LENGTHS["targets"], *(n for _, n in lengths)])


def placement(card: prompt_file.Card, name: str) -> layout.Placement:
    """Where a prompt stands in its input. Raises UserError where its card says what nobody knows."""
    where = card.placement or layout.front.__name__
    if where not in PLACEMENTS:
        raise UserError(f"The prompt {name} stands {card.placement!r} in the input; known are {', '.join(PLACEMENTS)}.")
    return PLACEMENTS[where]


def name_of(path: str | Path, card: prompt_file.Card) -> str:
    """What a prompt is called: as its card says, else as its file."""
    return card.name or Path(path).stem
