"""The layout made on the host: which token, prompt vector or padding stands at each position of each row (numpy only).

Lester et al. (2021) pad every example to one length. Here several examples share a row, each behind its own prompt:
`[prompt a; input a; prompt b; input b; padding]`. The model sees them apart by their segment numbers, so loss and
gradient are those of the padded batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gin
import numpy as np

# (input tokens, prompt length) -> tokens with room for the prompt, and the prompt position at each place or -1
Placement = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def _insert(tokens: np.ndarray, length: int, at: int) -> tuple[np.ndarray, np.ndarray]:
    placed = np.concatenate([tokens[:at], np.zeros(length, np.int32), tokens[at:]])
    rows = np.full(len(placed), -1, np.int32)
    rows[at : at + length] = np.arange(length)
    return placed, rows


@gin.register
def front(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompt before the input (Lester et al. 2021)."""
    return _insert(tokens, length, 0)


@gin.register
def after_bos(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompt behind the input's first token."""
    return _insert(tokens, length, min(1, len(tokens)))


@gin.register
def behind(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompt behind the whole input."""
    return _insert(tokens, length, len(tokens))


@dataclasses.dataclass(frozen=True)
class Item:
    """One example to lay out: its input behind prompt `slot`, and the targets to score against it."""

    inputs: np.ndarray  # int32[T]
    targets: Sequence[np.ndarray]  # int32[L] each: one when training, one a label when ranking, none when decoding
    slot: int = 0
    number: int = 0  # of the example in its slot's batch; dropout is drawn from it
    prompt_length: int = 0
    placement: Placement = front

    @property
    def length(self) -> int:
        return len(self.inputs) + self.prompt_length

    @property
    def target_length(self) -> int:
        return sum(len(t) for t in self.targets)


@dataclasses.dataclass(frozen=True)
class Filled:
    """What must be known beforehand to compute only what is filled of packed rows."""

    widths: tuple[int, ...]  # that examples with their prompts are cut out at, ascending; none is longer than the last
    target: int  # positions of an example's targets together, at most
    block: int  # positions that are computed or left out together, which divide a row


@dataclasses.dataclass(frozen=True)
class Shape:
    """Static shape of a packed batch: compiled once for each of `rows`."""

    row_length: int  # S
    target_length: int  # L, all targets of a row together
    rows: tuple[int, ...]  # the R to choose from, ascending
    per_row: int | None = None  # at most so many examples a row; 1 is no packing
    multiple: int = 1  # devices of the data axis, which divides every R
    at_once: int | None = None  # rows that each device takes at a time, which divide its share of every R; None: all
    part_examples: int | None = None  # at most so many examples in the rows that are taken at a time; None: any number
    filled: Filled | None = None  # only what is filled is computed; None: whole rows

    def padding(self, batch: "Batch") -> float:
        """Share of the encoder positions that are computed and hold nothing."""
        held = batch.encoder_segments > 0
        held = held[held.any((1, 2))] if batch.in_parts else held
        if self.filled:
            blocks = held.reshape(-1, self.filled.block)
            held = blocks[blocks.any(1)]
        return 1 - float(held.mean()) if held.size else 1.0


Ints = Any  # int32, of numpy on the host and of JAX on the device


class Batch(NamedTuple):
    """Packed rows (R S and R L), what stands in them, and whose each example (N) and each target (M) is.

    A batch in parts has one axis more in front; the parts of the first device come first.
    """

    encoder_tokens: Ints  # [R S]
    prompt_rows: Ints  # [R S] -1, or a row of the flattened bank
    encoder_segments: Ints  # [R S] 1 + example, 0 padding
    encoder_positions: Ints  # [R S] offset inside the example
    decoder_inputs: Ints  # [R L] targets shifted right behind a 0
    decoder_targets: Ints  # [R L]
    decoder_segments: Ints  # [R L] 1 + target, 0 padding
    decoder_examples: Ints  # [R L] 1 + example the target belongs to
    decoder_positions: Ints  # [R L]
    example_slots: Ints  # [N]
    example_numbers: Ints  # [N]
    target_examples: Ints  # [M]

    @property
    def in_parts(self) -> bool:
        """Whether parts of it are to be taken one after another."""
        return self.encoder_tokens.ndim == 3

    @property
    def rows(self) -> int:
        """R, of all parts together."""
        return int(np.prod(self.encoder_tokens.shape[:-1]))


def assign_rows(items: Sequence[Item], shape: Shape) -> list[list[int]]:
    """Best fit, longest first: the examples of each row. Deterministic in the items' order."""
    rows: list[list[int]] = []
    room = np.zeros(0, np.int64)
    target_room = np.zeros(0, np.int64)
    limits = [n for n in (shape.per_row, shape.part_examples) if n is not None]  # a row stands in one part
    for i in sorted(range(len(items)), key=lambda i: -items[i].length):
        length, target_length = items[i].length, items[i].target_length
        fits = (room >= length) & (target_room >= target_length)
        if limits:
            fits &= np.array([len(row) < min(limits) for row in rows], bool)
        if fits.any():
            row = int(np.where(fits, room, np.iinfo(np.int64).max).argmin())
        else:
            row = len(rows)
            rows.append([])
            room = np.append(room, shape.row_length)
            target_room = np.append(target_room, shape.target_length)
        rows[row].append(i)
        room[row] -= length
        target_room[row] -= target_length
    return rows


def pack(
    items: Sequence[Item], shape: Shape, bank_length: int = 0, examples: int | None = None, each: int | None = None
) -> Batch:
    """Lays a batch out in the fewest of `shape.rows` that hold it (or a few more rows if none does).

    `bank_length` is P of the bank, `examples` is N if the batch may be smaller than that (a last batch), and there is
    room for `each` targets of every example, if some may have fewer. With `shape.at_once`, the batch is in parts of so
    many rows, each a batch of its own, on a new first axis of every array; every device has as many of them, those that
    hold something first. Raises ValueError for an item longer than a row.
    """
    for i, item in enumerate(items):
        if item.length > shape.row_length or item.target_length > shape.target_length:
            found = f"{item.length} + {item.target_length}"
            raise ValueError(f"example {i} has {found} positions, a row {shape.row_length} + {shape.target_length}")
    each = each or max((len(item.targets) for item in items), default=1)
    if shape.at_once is None:
        rows = assign_rows(items, shape)
        count = next((r for r in shape.rows if r >= len(rows)), round_up(len(rows), 4 * shape.multiple))
        return _written(items, rows, count, shape, bank_length, examples or len(items), each)
    most = shape.part_examples or len(items)
    shares = [in_parts(rows, shape.at_once, most) for rows in rows_of_devices(items, shape)]
    count = max(shape.rows[-1] // shape.at_once // shape.multiple, *map(len, shares))
    parts = [part for share in shares for part in share + [[]] * (count - len(share))]
    return Batch(*map(np.stack, zip(*(_part(items, p, shape, bank_length, most, each) for p in parts), strict=True)))


def rows_of_devices(items: Sequence[Item], shape: Shape) -> list[list[list[int]]]:
    """The rows of each device, which are given about the same work: the longest examples first, to who has least."""
    shares: list[list[int]] = [[] for _ in range(shape.multiple)]
    work = [0.0] * shape.multiple
    for i in sorted(range(len(items)), key=lambda i: -items[i].length):
        least = work.index(min(work))
        shares[least].append(i)
        work[least] += items[i].length * (1 + items[i].length / POSITIONS_PER_PAIR)
    by_row = lambda share: assign_rows([items[i] for i in share], shape)
    return [[[share[i] for i in row] for row in by_row(share)] for share in shares]


def in_parts(rows: list[list[int]], at_once: int, examples: int) -> list[list[list[int]]]:
    """The rows in order, as parts of at most so many rows and examples."""
    parts: list[list[list[int]]] = []
    held = 0
    for row in rows:
        if not parts or len(parts[-1]) == at_once or held + len(row) > examples:
            parts, held = [*parts, []], 0
        parts[-1].append(row)
        held += len(row)
    return parts


def _part(
    items: Sequence[Item], rows: list[list[int]], shape: Shape, bank_length: int, examples: int, targets_each: int
) -> Batch:
    """Some of the rows as a batch of their own examples."""
    own = [items[i] for row in rows for i in row]
    numbers = iter(range(len(own)))
    renumbered = [[next(numbers) for _ in row] for row in rows]
    return _written(own, renumbered, shape.at_once or len(rows), shape, bank_length, examples, targets_each)


def _written(
    items: Sequence[Item], rows: list[list[int]], count: int, shape: Shape, bank_length: int, examples: int,
    targets_each: int,
) -> Batch:  # fmt: skip
    batch = _empty(count, shape, examples, examples * targets_each)
    for r, row in enumerate(rows):
        at = target_at = 0
        for i in row:
            at = _write_input(batch, r, at, i, items[i], bank_length)
            for t, target in enumerate(items[i].targets):
                target_at = _write_target(batch, r, target_at, i, i * targets_each + t, target)
    for i, item in enumerate(items):
        batch.example_slots[i], batch.example_numbers[i] = item.slot, item.number
        batch.target_examples[i * targets_each : (i + 1) * targets_each] = i
    return batch


def _empty(rows: int, shape: Shape, examples: int, targets: int) -> Batch:
    encoder = lambda: np.zeros((rows, shape.row_length), np.int32)
    decoder = lambda: np.zeros((rows, shape.target_length), np.int32)
    return Batch(
        encoder(), encoder() - 1, encoder(), encoder(), decoder(), decoder(), decoder(), decoder(), decoder(),
        np.zeros(examples, np.int32), np.zeros(examples, np.int32), np.zeros(targets, np.int32),
    )  # fmt: skip


def _write_input(batch: Batch, r: int, at: int, example: int, item: Item, bank_length: int) -> int:
    tokens, rows = item.placement(item.inputs, item.prompt_length)
    end = at + len(tokens)
    batch.encoder_tokens[r, at:end] = tokens
    batch.prompt_rows[r, at:end] = np.where(rows >= 0, rows + item.slot * bank_length, -1)
    batch.encoder_segments[r, at:end] = example + 1
    batch.encoder_positions[r, at:end] = np.arange(len(tokens))
    return end


def _write_target(batch: Batch, r: int, at: int, example: int, target: int, tokens: np.ndarray) -> int:
    end = at + len(tokens)
    batch.decoder_inputs[r, at + 1 : end] = tokens[:-1]
    batch.decoder_targets[r, at:end] = tokens
    batch.decoder_segments[r, at:end] = target + 1
    batch.decoder_examples[r, at:end] = example + 1
    batch.decoder_positions[r, at:end] = np.arange(len(tokens))
    return end


POSITIONS_PER_PAIR = 512.0  # of a T5 small on a CPU: row length at which attention costs as much as everything else


def round_up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
