"""The short list of static shapes that a server compiles when it starts, and which to fill next (numpy only)."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from prompt_tuning.layout import POSITIONS_PER_PAIR, Shape, assign_rows, round_up

TEXT = 32  # tokens of a usual text: rows are cut so that a few such, with their prompts, fill one
ROWS = (128, 256)  # positions of a usual row; longer rows waste less at their ends and more in attention
CALL = 256.0  # positions that cost as much as what every call costs beside its rows


class Size(NamedTuple):
    """What an example needs of a row."""

    length: int  # prompt and input
    target_length: int  # its labels together; 0 if it is written to


def ladder(prompt: int, longest: Size, labels: int, room: int, devices: int = 1) -> tuple[Shape, ...]:
    """Shapes of one row count each that hold `room` positions at most, and at least one example of `longest`.

    `prompt` and `labels` are usual numbers of prompt vectors and label tokens, `devices` divides every row count.
    """
    usual = prompt + TEXT
    lengths = {min(round_up(usual * max(1, round(row / usual)), 16), round_up(longest.length, 16)) for row in ROWS}
    shapes = []
    for length in sorted(lengths | {round_up(longest.length, 16)}):
        targets = min(round_up(labels * max(1, length // usual), 4), round_up(longest.target_length, 4))
        shapes += [Shape(length, targets, (rows,)) for rows in _powers_of_two(room // length, devices)]
    if shapes[-1].target_length < longest.target_length:
        shapes.append(Shape(round_up(longest.length, 16), round_up(longest.target_length, 4), (devices,)))
    return tuple(shapes)


def for_reading(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Two of the shapes, for texts that will be written to and have no targets: a short one and the longest."""
    short = max((s for s in shapes if s.row_length == shapes[0].row_length), key=lambda s: min(s.rows[0], 4))
    longest = min((s for s in shapes if s.row_length == shapes[-1].row_length), key=lambda s: s.rows[0])
    return tuple(dataclasses.replace(s, target_length=4) for s in dict.fromkeys((short, longest)))


def fit(sizes: Sequence[Size], shapes: Iterable[Shape]) -> tuple[Shape, list[int]]:
    """The shape that computes the most positions for its cost, and which examples go into it.

    The first example, which has waited longest, is always among them, so that none waits forever; a later one that
    fits may overtake one that does not. Raises ValueError if no shape holds the first.
    """
    kinds: dict[tuple[int, int], list[Shape]] = {}
    for shape in shapes:
        kinds.setdefault((shape.row_length, shape.target_length), []).append(shape)
    best: tuple[float, Shape, list[int]] | None = None
    for kind, of_kind in kinds.items():
        rows_of = _first_fit(sizes, *kind, max(shape.rows[0] for shape in of_kind))
        for shape in of_kind if rows_of[0] >= 0 else ():
            chosen = [i for i, row in enumerate(rows_of) if 0 <= row < shape.rows[0]]
            value = sum(sizes[i].length for i in chosen) / cost(shape)
            if best is None or value > best[0]:
                best = value, shape, chosen
    if best is None:
        raise ValueError(f"no shape holds an example of {sizes[0]}")
    _, shape, chosen = best
    while len(assign_rows(cast(Any, [sizes[i] for i in chosen]), shape)) > shape.rows[0]:
        chosen.pop()  # the layout fills rows in another order, which once in a while needs one more
    return shape, chosen


def cost(shape: Shape) -> float:
    """What a batch costs, in positions: those of its rows, their pairs in attention, the targets', and the call."""
    row = shape.row_length * (1 + shape.row_length / POSITIONS_PER_PAIR) + 2 * shape.target_length
    return shape.rows[0] * row + CALL


def _first_fit(sizes: Sequence[Size], length: int, target_length: int, rows: int) -> list[int]:
    """Each example's row, or -1; those in the first n rows are the same whatever `rows` is."""
    room = [length] * rows
    target_room = [target_length] * rows
    found = []
    for size in sizes:
        at = next(
            (r for r in range(rows) if room[r] >= size.length and target_room[r] >= size.target_length), -1
        )  # fmt: skip
        if at >= 0:
            room[at] -= size.length
            target_room[at] -= size.target_length
        found.append(at)
    return found


def _powers_of_two(most: int, devices: int) -> list[int]:
    counts = [devices]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts
