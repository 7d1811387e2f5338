"""What is computed at each position for itself, block by block: blocks where nothing stands are left out.

For a CPU, where it also keeps what a layer computes in the caches. All rows are one line of P = R S positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Int

from prompt_tuning import line


@struct.dataclass
class Blocks:
    """The blocks of a line, those first in which something stands."""

    order: Int[Array, "N"]
    filled: Int[Array, ""]
    size: int = struct.field(pytree_node=False)


def find(segments: Int[Array, "R S"], size: int) -> Blocks:
    """The blocks of a line, whose length `size` divides; 0 is where nothing stands."""
    filled = (segments.reshape(-1, size) > 0).any(1)
    return Blocks(jnp.argsort(~filled), filled.sum(), size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def each(steps: tuple[Callable, ...], blocks: Blocks, held: Any, marks: Any, *lines: Any) -> Any:
    """What the last of `steps` makes of every block, and 0 where nothing stands.

    A step is handed `held`, `marks`, the lines, and what the steps before it made: `step(held, marks, *values)`. Lines,
    `marks` and what is made are trees of `[R S ...]`; a step sees `[1 size ...]` of them, each position for itself.
    `held` is the same for all blocks (frozen weights); neither it nor `marks` have gradients. Backward keeps what the
    steps made and goes through each of them again: what comes last in a step, a matrix product, is not computed twice.
    """
    return _through(steps, blocks, held, marks, lines, every=False)[-1]


def _through(
    steps: Sequence[Callable], blocks: Blocks, held: Any, marks: Any, lines: Sequence[Any], every: bool
) -> list[Any]:
    """What `every` step, or the last one alone, made of all blocks."""

    def made(n: Any) -> list[Any]:
        values = list(_cut(blocks, lines, n))
        for step in steps:
            values.append(step(held, _cut(blocks, marks, n), *values))
        return values[len(lines) :] if every else values[-1:]

    rows = jax.tree.leaves(lines)[0].shape[:2]
    empty = lambda of_block: jnp.zeros((*rows, *of_block.shape[2:]), of_block.dtype)
    start = jax.tree.map(empty, jax.eval_shape(lambda: made(0)))
    return _written(blocks, start, made)


def _forward(steps: tuple[Callable, ...], blocks: Any, held: Any, marks: Any, *lines: Any) -> tuple[Any, tuple]:
    if any(leaf.perturbed for leaf in jax.tree.leaves((held, marks))):
        raise TypeError("by_block.each has no gradient of what is held: use it with frozen weights")
    blocks, held, marks, lines = jax.tree.map(lambda leaf: leaf.value, (blocks, held, marks, lines))
    *made, last = _through(steps, blocks, held, marks, lines, every=True)
    return last, (blocks, held, marks, lines, made)


def _backward(steps: tuple[Callable, ...], kept: tuple, change: Any) -> tuple:
    blocks, held, marks, lines, made = kept
    filled_in = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf
    change = jax.tree.map(filled_in, change)

    def changed(n: Array) -> Any:
        values = [*_cut(blocks, lines, n), *_cut(blocks, made, n)]
        changes = [*jax.tree.map(jnp.zeros_like, values), _cut(blocks, change, n)]
        for number in reversed(range(len(steps))):
            seen = len(lines) + number
            step = functools.partial(steps[number], held, _cut(blocks, marks, n))
            by_seen = jax.vjp(step, *values[:seen])[1](changes[seen])
            changes[:seen] = jax.tree.map(jnp.add, changes[:seen], list(by_seen))
        return tuple(changes[: len(lines)])

    return None, None, None, *_written(blocks, jax.tree.map(jnp.zeros_like, lines), changed)


each.defvjp(_forward, _backward, symbolic_zeros=True)


def _written(blocks: Blocks, rows: Any, made: Callable[[Any], Any]) -> Any:
    """`rows` with what is `made(n)` of each filled block n."""

    def body(i: Array, lines: Any) -> Any:
        n = blocks.order[i]
        return line.put(lines, jax.tree.map(_one_line, made(n)), n * blocks.size)

    lines = jax.lax.fori_loop(0, blocks.filled, body, line.carried(jax.tree.map(_one_line, rows)))
    return jax.tree.map(lambda written, empty: written.reshape(empty.shape), line.numbers(lines), rows)


def _one_line(rows: Array) -> Array:
    return rows.reshape(-1, *rows.shape[2:])


def _cut(blocks: Blocks, rows: Any, n: Any) -> Any:
    """Block n of rows, as one short row."""
    block = line.cut(jax.tree.map(_one_line, rows), n * blocks.size, blocks.size)
    return jax.tree.map(lambda positions: positions[None], block)
