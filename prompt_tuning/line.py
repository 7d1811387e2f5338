"""A line of positions, of which a loop cuts parts out and puts others in their places.

Only for what is written in a loop: XLA on a CPU writes into an array of bfloat16 by way of float32, and all of it. So
a loop carries such a line as the integers that its numbers are stored as.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def carried(lines: Any) -> Any:
    """Lines as a loop carries them."""
    as_integers = lambda line: jax.lax.bitcast_convert_type(line, jnp.uint16) if line.dtype == jnp.bfloat16 else line
    return jax.tree.map(as_integers, lines)


def numbers(lines: Any) -> Any:
    """What `carried` lines are."""
    as_numbers = lambda line: jax.lax.bitcast_convert_type(line, jnp.bfloat16) if line.dtype == jnp.uint16 else line
    return jax.tree.map(as_numbers, lines)


def cut(lines: Any, start: Any, size: int) -> Any:
    """Positions `start` to `start + size` of each line, carried or not."""
    one = lambda line: jax.lax.dynamic_slice_in_dim(line, start, size)
    return numbers(jax.tree.map(one, carried(lines)))


def put(lines: Any, parts: Any, start: Any) -> Any:
    """Carried lines with `parts` from position `start` on."""

    def one(line: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(line, carried(part), start, 0)

    return jax.tree.map(one, lines, parts)
