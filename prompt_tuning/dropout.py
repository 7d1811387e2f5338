"""Dropout as T5 has it: drawn once an example, and the same wherever the example is packed."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from prompt_tuning import backend

Keep = Mapping[str, Float[Array, "N ..."]]  # what dropout leaves of each example at a place; nothing without dropout


@struct.dataclass
class Dropout:
    """Dropout drawn once an example and broadcast over its positions, as T5 does, wherever the example is packed."""

    keys: Array  # Key[N], one an example
    rate: float = struct.field(pytree_node=False)

    def draw(self, name: str, lead: tuple[int, ...], widths: Mapping[str, int]) -> dict[str, Float[Array, "N ..."]]:
        """Multipliers (0 or 1 / (1 - rate)), `[N *lead W]` for each place; a longer `lead` extends a shorter one.

        A stack's places are drawn together: one by one they take longer to compile than the layers do.
        """
        shape, number = (*lead, sum(widths.values())), zlib.crc32(name.encode())
        one = lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - self.rate, shape)
        drawn = jnp.split(jax.vmap(one)(self.keys), np.cumsum(list(widths.values()))[:-1], axis=-1)
        return {name: part.astype(jnp.float32) / (1 - self.rate) for name, part in zip(widths, drawn, strict=True)}


def of_layer(keep: Keep, layer: int) -> Keep:
    """The part of a stack's multipliers, by names such as `3/mlp_out`, that is one layer's."""
    start = f"{layer}/"
    return {name.removeprefix(start): part for name, part in keep.items() if name.startswith(start)}


def drop(
    x: Float[Array, "R S F"], keep: Float[Array, "N F"] | None, segments: Int[Array, "R S"]
) -> Float[Array, "R S F"]:
    """Drops features of `x`, the same ones at all positions of an example."""
    return x if keep is None else _drop(x, keep.astype(x.dtype), segments)


@jax.checkpoint  # backward spreads them again rather than keep a multiplier for every position
def _drop(x: Float[Array, "R S F"], keep: Float[Array, "N F"], segments: Int[Array, "R S"]) -> Float[Array, "R S F"]:
    few = 4 * len(keep) <= x.shape[-1]  # a product that picks rows is faster than a gather while there are few
    if few and backend.platform() != "gpu":  # where XLA makes one product of those of all layers, and keeps it
        exact = "highest" if x.dtype == jnp.float32 else None  # what is narrower is exact as it is
        return x * jnp.dot(jax.nn.one_hot(segments - 1, len(keep), dtype=x.dtype), keep, precision=exact)
    return x * keep.at[segments - 1].get(mode="clip")


def of_keys(
    keep: Float[Array, "N S H"] | None, segments: Int[Array, "R S"], positions: Int[Array, "R S"]
) -> Float[Array, "R H 1 S"] | None:
    """Multipliers of attention weights where the keys stand, alike for all queries of an example."""
    if keep is None:
        return None
    return jnp.swapaxes(keep.at[segments - 1, positions].get(mode="clip"), 1, 2)[:, :, None, :]
