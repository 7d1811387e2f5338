"""How questions are put into batches: of a shape planned for them, of one that others have too, or of a given one."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from prompt_tuning import planning
from prompt_tuning.layout import Batch, Item, Shape, assign_rows, pack

WORTH_A_PROGRAM = 30_000  # positions of all items: enough to win back what a program of their own takes to compile

Progress = Callable[[Iterable, int], Iterable]  # the groups, of which there are so many, with something for people


class Group(NamedTuple):
    """A batch of items."""

    items: list[Item]
    batch: Batch
    shape: Shape
    room: int  # for so many items in any batch of this shape
    source_length: int  # no item (prompt and input) is longer; of many batches few have one of their own


@dataclasses.dataclass(frozen=True)
class Groups:
    """Items in groups, and what makes batches of them."""

    items: list[list[Item]]
    shape: Shape
    source_lengths: list[int]  # of each group
    room: int
    targets: int  # that an item has at most

    def packed(self, prompt_length: int, progress: Progress) -> Iterator[Group]:
        """Each group as a batch, while they pass through `progress`."""
        for group, length in zip(progress(self.items, len(self.items)), self.source_lengths, strict=True):
            batch = pack(group, self.shape, prompt_length, self.room, self.targets)
            yield Group(group, batch, self.shape, self.room, length)


class Grouping(Protocol):
    """A way to group."""

    def __call__(self, items: list[Item], size: int, devices: int, line: int | None = None) -> Groups:
        """Groups of `size` items at most for `devices` of the data axis.

        Each device takes a row of up to `line` positions at a time, where that is given.
        """
        ...


def planned(items: list[Item], size: int, devices: int, line: int | None = None, packing: bool = True) -> Groups:
    """The shape that costs least for these items; without `packing` each has a row of its own."""
    groups, targets = _cut(items, size), max(len(item.targets) for item in items)
    shape = planning.plan(groups, _longest(items), packing, devices, line=line, more=False)
    lengths = planning.source_lengths([_longest(group)[0] for group in groups])
    return Groups(groups, shape, lengths, min(size, len(items)), targets)


def roomy(items: list[Item], size: int, devices: int, line: int | None = None) -> Groups:
    """Few items take a shape that later ones will have too, so that nothing new is compiled; many are `planned`."""
    if sum(item.length for item in items) > WORTH_A_PROGRAM:
        return planned(items, size, devices, line)
    groups, longest, targets = _cut(items, size), _longest(items), max(len(item.targets) for item in items)
    lengths = [planning.roomy_length(longest[0])] * len(groups)
    room = size if targets else planning.power_of_two(min(size, len(items)))
    return Groups(groups, planning.roomy(groups, longest, devices), lengths, room, targets)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """One shape for whatever comes, for what must not compile again; a batch has one of the `rows` that it names."""

    shape: Shape

    def __call__(self, items: list[Item], size: int, devices: int, line: int | None = None) -> Groups:
        groups = [part for group in _cut(items, size) for part in self._that_fit(group)]
        most = self.shape.target_length  # labels of one token each: any number of them is this shape
        return Groups(groups, self.shape, [self.shape.row_length] * len(groups), size, most)

    @property
    def sizes(self) -> list["Fixed"]:
        """One for each number of rows: what there is to compile."""
        return [Fixed(dataclasses.replace(self.shape, rows=(rows,))) for rows in self.shape.rows]

    def _that_fit(self, group: list[Item]) -> list[list[Item]]:
        """The group in parts that the largest number of rows holds."""
        if len(group) <= 1 or len(assign_rows(group, self.shape)) <= self.shape.rows[-1]:
            return [group]
        half = len(group) // 2
        return [*self._that_fit(group[:half]), *self._that_fit(group[half:])]


def _cut(items: list[Item], size: int) -> list[list[Item]]:
    return [items[i : i + size] for i in range(0, max(len(items), 1), size)]


def _longest(items: Sequence[Item]) -> tuple[int, int]:
    """The longest input with its prompt, and the most tokens of an item's targets."""
    return max(item.length for item in items), max(max(item.target_length for item in items), 1)
