"""The shape that batches are packed in: row length, rows at a time, blocks and widths that cost least (numpy only).

Planned from a few batches and the longest example; every batch of a run then has this shape, which is compiled once.
"""

import dataclasses
from collections.abc import Sequence

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
USUAL = 0.9  # share of batches, and of rows, that what is planned for them holds


def plan(
    batches: Sequence[Sequence[Item]],
    longest: tuple[int, int],
    packing: bool = True,
    multiple: int = 1,
    at_once: int | None = None,
    line: int | None = None,
) -> Shape:
    """A shape for batches like these: the row length, and the rows taken at a time, that cost least.

    `longest` is the longest example (input and prompt; targets together) of all that will come, `multiple` the devices
    of the data axis. Each takes `at_once` rows at a time; or else, when packing, one row of up to `line` positions of
    which only what is filled costs; or else (neither given) all. Parts without examples are not computed, so that one R
    holds every batch; without parts, R is one of two: of most of these batches, and of all.
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
    best: tuple[float, Shape] | None = None
    for row_length in lengths:
        shape = Shape(row_length, target_length, (1,), None if packing else 1, multiple, at_once)
        if packing:
            shape = dataclasses.replace(shape, target_length=max(target_length, _target_room(batches, shape)))
        counts = np.array([round_up(len(assign_rows(batch, shape)), multiple) for batch in batches])
        cost = float(np.mean([_cost(count, row_length, at_once) for count in counts]))
        if best is None or cost < best[0]:
            usual, largest = int(np.ceil(np.quantile(counts, USUAL))), int(counts.max()) + packing
            rows = sorted({round_up(n, multiple) for n in (usual, largest)})
            best = cost, dataclasses.replace(shape, rows=tuple(rows))
    assert best is not None
    shape = best[1] if at_once is None else _parted(best[1], batches, longest)
    if block is None:
        return shape
    of_items = np.array([item.length for batch in batches for item in batch])
    return dataclasses.replace(shape, filled=Filled(_widths(of_items, longest[0]), longest[1], block))


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
    needed, counts = np.unique(-(-lengths // 16) * 16, return_counts=True)

    def cost(width: int, above: int) -> float:
        return counts[(needed > above) & (needed <= width)].sum() * width * (1 + width / POSITIONS_PER_PAIR)

    choices = sorted({*needed.tolist(), round_up(longest, 16)})
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # for all that is no longer: its cost, and widths
    for _ in range(WIDTHS):
        longer = [
            (width, (paid + cost(width, above), (*widths, width)))
            for above, (paid, widths) in best.items()
            for width in choices
            if width > above
        ]
        best |= {width: min(found for at, found in longer if at == width) for width in choices}
    return best[choices[-1]][1]


def _parted(shape: Shape, batches: Sequence[Sequence[Item]], longest: tuple[int, int]) -> Shape:
    """The shape with as many examples in a part, and as many parts, as batches like these can need."""
    at_once = shape.at_once or 1
    parts = [part for batch in batches for rows in rows_of_devices(batch, shape)
             for part in in_parts(rows, at_once, 1 << 30)]  # fmt: skip
    most = round_up(max((sum(map(len, part)) for part in parts), default=1) + 1, 4)
    room = min(most, shape.per_row or most, shape.row_length // longest[0], shape.target_length // max(longest[1], 1))
    rows = -(-max(map(len, batches)) // max(room, 1))  # even if one device has all examples, and all are the longest
    return dataclasses.replace(shape, rows=(round_up(rows, at_once) * shape.multiple,), part_examples=most)


def _target_room(batches: Sequence[Sequence[Item]], shape: Shape) -> int:
    """What the targets of most rows take."""
    endless = dataclasses.replace(shape, target_length=1 << 30)
    rows = [sum(batch[i].target_length for i in row)
            for batch in batches for rows in rows_of_devices(batch, endless) for row in rows]  # fmt: skip
    return round_up(int(np.quantile(rows, USUAL)), 4)


def _cost(rows: int, row_length: int, at_once: int | None) -> float:
    """Of a step, in positions: a row costs that of its positions and of its pairs of positions, a part something more.

    Attention computes every pair of a row's positions, whether masked or not.
    """
    one = row_length * (1 + row_length / POSITIONS_PER_PAIR)
    return -(-rows // at_once) * (POSITIONS_PER_PART + at_once * one) if at_once else rows * one
