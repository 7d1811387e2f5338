"""The shape that batches are packed in: row length, rows at a time, blocks and widths that cost least (numpy only).

Planned from a few batches and the longest example; every batch of a run then has this shape, which is compiled once.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from prompt_tuning.layout import (
    POSITIONS_PER_PAIR,
    Filled,
    Item,
    Shape,
    assign_rows,
    in_parts,
    round_up,
    rows_of_devices,
)  # fmt: skip

BLOCKS = range(128, 257, 16)  # sizes to choose from
POSITIONS_PER_BLOCK = 18.0  # what every block costs beside its positions
POSITIONS_PER_PART = 512.0  # what every part costs beside its rows, of a T5 small on a CPU
WIDTHS = 4  # more compute less in vain, and compile longer
COUNTS = 2  # of rows to choose from, at most: each is a program of its own, which takes seconds to minutes to compile
SAVED = 0.02  # of the rows, that one more count must save
POSITIONS_PER_PROGRAM = 100_000.0  # that a run of few steps must save by it besides
GROUPS_PER_LENGTH = 8  # of examples that are written, for each length that sources are padded to
USUAL = 0.9  # share of rows whose targets are planned for
ROOMY = (128, 256, 512, 1024)  # row lengths that few examples take
SAMPLE = 16  # batches that the row length is chosen by, at most: all lengths are tried


def plan(
    batches: Sequence[Sequence[Item]],
    longest: tuple[int, int],
    packing: bool = True,
    multiple: int = 1,
    at_once: int | None = None,
    line: int | None = None,
    more: bool = True,
    steps: float = math.inf,
) -> Shape:
    """A shape for batches like these: the row length, and the rows taken at a time, that cost least.

    `longest` is the longest example (input and prompt; targets together) of all that will come, `multiple` the devices
    of the data axis. Each takes `at_once` rows at a time; or else, when packing, one row of up to `line` positions of
    which only what is filled costs; or else (neither given) all. Parts without examples are not computed, so that one R
    holds every batch; without parts, a batch takes the least of a few R that holds it, one of them spare if `more`
    batches than these will come, or (else) the one R that holds the largest. In a run of few `steps` all take the spare
    one, as to compile more would cost more than it saves.
    """
    length, target_length = (round_up(n, m) for n, m in zip(longest, (16, 4), strict=True))
    block = _block(batches, multiple) if packing and line else None
    if not packing:
        lengths = [length]
    elif block and line and not at_once:
        lengths, at_once = [round_up(max(min(int(1.1 * max(_loads(batches, multiple))), line), length), block)], 1
    else:
        lengths = sorted({length, *(s for s in range(128, 1025, 64) if s >= length)})
        lengths = sorted({round_up(length, block or 1) for length in lengths})
    few = batches[:: -(-len(batches) // SAMPLE)]
    shapes = [_of_length(row_length, target_length, few, packing, multiple, at_once) for row_length in lengths]
    shape = min(shapes, key=lambda shape: _cost(_rows_needed(few, shape), shape))
    if at_once is not None:
        shape = _parted(shape, batches, longest, more)
    else:
        counts = _rows_needed(batches, shape)
        largest = int(counts.max())
        spare = round_up(largest + packing, multiple)  # for a batch that needs a row more than these
        taken, fewer = _counts(counts)
        saved = (spare - taken / len(counts)) * shape.row_length * steps
        worth_it = saved > POSITIONS_PER_PROGRAM * len(fewer)
        rows = sorted({*(fewer if worth_it else ()), spare}) if more else [largest]
        shape = dataclasses.replace(shape, rows=tuple(rows))
    if block is None:
        return shape
    of_items = np.array([item.length for batch in batches for item in batch])
    return dataclasses.replace(shape, filled=Filled(_widths(of_items, longest[0]), longest[1], block))


def roomy(batches: Sequence[Sequence[Item]], longest: tuple[int, int], multiple: int = 1) -> Shape:
    """A shape that other batches of a few examples have as well: to compile one costs more than some air does."""
    least = roomy_length(longest[0])
    lengths = [least, *(length for length in ROOMY if length > least)]
    targets = power_of_two(max(longest[1], 16))
    shapes = [_of_length(length, targets, batches, True, multiple, None) for length in lengths]
    shape = min(shapes, key=lambda shape: _cost(_rows_needed(batches, shape), shape))
    needed = int(_rows_needed(batches, shape).max())
    above = power_of_two(needed)
    rows = above if above <= 16 else round_up(needed, above // 4)  # 1 2 4 8 16 24 32 48 64 ...
    return dataclasses.replace(shape, target_length=power_of_two(shape.target_length), rows=(round_up(rows, multiple),))


def roomy_length(longest: int) -> int:
    """The shortest row that a few examples take, none of which is longer than `longest`."""
    return next((length for length in ROOMY if length >= longest), round_up(longest, ROOMY[-1]))


def source_lengths(longest: Sequence[int]) -> list[int]:
    """What the sources of each group are padded to, of which the longest is so long: few lengths, each a program."""
    most = min(1 + len(longest) // GROUPS_PER_LENGTH, WIDTHS)
    levels = _levels(np.array([round_up(n, 16) for n in longest]), round_up(max(longest), 16), most, float)[1]
    return [next(level for level in levels if level >= n) for n in longest]


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _of_length(
    row_length: int, target_length: int, batches: Sequence[Sequence[Item]], packing: bool, multiple: int,
    at_once: int | None,
) -> Shape:  # fmt: skip
    """A shape of that row length, with room for most rows' targets."""
    shape = Shape(row_length, target_length, (1,), None if packing else 1, multiple, at_once)
    room = _target_room(batches, shape) if packing else 0
    return dataclasses.replace(shape, target_length=max(target_length, room))


def _rows_needed(batches: Sequence[Sequence[Item]], shape: Shape) -> np.ndarray:
    """The rows of each batch, which the devices share out evenly."""
    return np.array([round_up(len(assign_rows(batch, shape)), shape.multiple) for batch in batches])


def _loads(batches: Sequence[Sequence[Item]], multiple: int) -> list[int]:
    """Positions that each device has of each batch."""
    whole = Shape(1 << 30, 1 << 30, (1,), multiple=multiple)
    return [sum(batch[i].length for row in rows for i in row)
            for batch in batches for rows in rows_of_devices(batch, whole)]  # fmt: skip


def _block(batches: Sequence[Sequence[Item]], multiple: int) -> int:
    """The size of blocks with which batches like these cost least: large ones are quicker, small ones hold less air."""
    loads = np.array(_loads(batches, multiple))
    return min(BLOCKS, key=lambda size: float(np.sum(-(-loads // size) * (size + POSITIONS_PER_BLOCK))))


def _widths(lengths: np.ndarray, longest: int) -> tuple[int, ...]:
    """The widths, WIDTHS at most, that examples of such lengths are cut out at with the least to compute in vain."""
    cost = lambda width: width * (1 + width / POSITIONS_PER_PAIR)
    return _levels(-(-lengths // 16) * 16, round_up(longest, 16), WIDTHS, cost)[1]


def _counts(rows: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """The numbers of rows, COUNTS at most, to take batches in that need so many; before them, the rows of all."""
    choices = [_levels(rows, int(rows.max()), count, float) for count in range(1, COUNTS + 1)]
    return min(choices, key=lambda choice: choice[0] * (1 + SAVED) ** len(choice[1]))


def _levels(needed: np.ndarray, top: int, most: int, cost: Callable[[int], float]) -> tuple[float, tuple[int, ...]]:
    """The levels, so many at most and the last of them `top`, that cost least, and that cost.

    What is needed is taken from the next level above it and costs what that does.
    """
    found, counts = np.unique(needed, return_counts=True)
    paid = lambda level, above: float(counts[(found > above) & (found <= level)].sum() * cost(level))
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # for all that is no higher: its cost, and levels
    choices = sorted({*found.tolist(), top})
    for _ in range(most):
        higher = [
            (level, (before + paid(level, below), (*levels, level)))
            for below, (before, levels) in best.items()
            for level in choices
            if level > below
        ]
        best |= {level: min(each for at, each in higher if at == level) for level in choices}
    return best[top]


def _parted(shape: Shape, batches: Sequence[Sequence[Item]], longest: tuple[int, int], more: bool) -> Shape:
    """The shape with as many examples in a part, and as many parts, as batches like these can need, or as these do."""
    at_once = shape.at_once or 1
    rows = [rows for batch in batches for rows in rows_of_devices(batch, shape)]
    parts = [part for of_one in rows for part in in_parts(of_one, at_once, 1 << 30)]
    most = round_up(max((sum(map(len, part)) for part in parts), default=1) + 1, 4)
    if more:
        room = min(shape.row_length // longest[0], shape.target_length // max(longest[1], 1))
        room = max(min(most, shape.per_row or most, room), 1)
        needed = round_up(-(-max(map(len, batches)) // room), at_once)  # of all examples, if all are the longest
    else:
        needed = at_once * max(len(in_parts(of_one, at_once, most)) for of_one in rows)
    return dataclasses.replace(shape, rows=(max(needed, at_once) * shape.multiple,), part_examples=most)


def _target_room(batches: Sequence[Sequence[Item]], shape: Shape) -> int:
    """What the targets of most rows take."""
    endless = dataclasses.replace(shape, target_length=1 << 30)
    rows = [sum(batch[i].target_length for i in row)
            for batch in batches for rows in rows_of_devices(batch, endless) for row in rows]  # fmt: skip
    return round_up(int(np.quantile(rows, USUAL)), 4)


def _cost(rows: np.ndarray, shape: Shape) -> float:
    """Of a step with so many rows, in positions, on the mean.

    A row costs that of its positions and of its pairs of positions, a part something more. Attention computes every
    pair of a row's positions, whether masked or not.
    """
    one = shape.row_length * (1 + shape.row_length / POSITIONS_PER_PAIR)
    parts, at_once = (-(-rows // shape.at_once), shape.at_once) if shape.at_once else (rows, 1)
    each = one * at_once + (POSITIONS_PER_PART if shape.at_once else 0)
    return float(np.mean(parts * each))
