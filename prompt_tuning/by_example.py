"""Attention example by example: in packed rows, a pair of positions of two examples is not even computed.

For a CPU, which computes small products as quickly as large ones. All rows are one line of P = R S positions. Each
example is cut out of it at one of a few widths, a little longer than itself, so that one program serves every batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

WIDTHS = 8  # as many cuts of a row: more compute less and compile longer
MASKED = -1e10  # what T5 adds to the logit of a position that must not be seen
LONG = 384  # positions of a row from which it pays


@struct.dataclass
class Places:
    """Where each of N examples stands in the line, those of one width one after another."""

    starts: Int[Array, "N"]
    lengths: Int[Array, "N"]
    bounds: Int[Array, "W+1"]  # examples bounds[w] to bounds[w + 1] are cut out at widths[w]
    widths: tuple[int, ...] = struct.field(pytree_node=False)


def find(segments: Int[Array, "R S"], count: int) -> Places:
    """The places of up to `count` examples; each stands in one row, without gaps."""
    line, length = segments.reshape(-1), segments.shape[1]
    widths = sorted({min(length, -(-length * k // (16 * WIDTHS)) * 16) for k in range(1, WIDTHS + 1)})
    starts = jnp.full(count + 1, line.size).at[line].min(jnp.arange(line.size))[1:]
    lengths = jnp.zeros(count + 1, jnp.int32).at[line].add(1)[1:]
    kinds = jnp.where(lengths > 0, jnp.searchsorted(jnp.asarray(widths), lengths), len(widths))
    order = jnp.argsort(kinds)
    bounds = jnp.searchsorted(kinds[order], jnp.arange(len(widths) + 1))
    return Places(starts[order], lengths[order], bounds, tuple(widths))


@jax.custom_vjp
def attend(
    query: Float[Array, "P H A"],
    keys: Float[Array, "P H A"],
    values: Float[Array, "P H A"],
    places: Places,
    bias: Float[Array, "H S S"],
    keep: Float[Array, "P H"] | None,
) -> Float[Array, "P H A"]:
    """What every position sees of its own example, and 0 where nothing stands; `layers.attend` for one line.

    Backward computes the logits again from the softmax's normaliser (Dao et al. 2022).
    """
    return _attend(query, keys, values, places, bias, keep)[0]


def _attend(query: Array, keys: Array, values: Array, places: Places, bias: Array, keep: Array | None) -> Any:
    def one(cut: "_Cut", written: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = cut.logits(query, keys, bias)
        top = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1)
        if keep is not None:
            weights = weights * cut.out(keep).T[:, None, :]
        value = cut.out(values)
        seen = jnp.einsum("hqk,kha->qha", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return cut.put(written, (seen / total.T[:, :, None], (top[..., 0] + jnp.log(total)).T))

    start = jnp.zeros_like(query), jnp.zeros(query.shape[:2], jnp.float32)
    seen, normaliser = _for_each(one, places, start)
    return seen, (query, keys, values, places, bias, keep, seen, normaliser)


def _attend_backward(kept: Any, change: Float[Array, "P H A"]) -> tuple:
    query, keys, values, places, bias, keep, seen, normaliser = kept
    by_total = (change.astype(jnp.float32) * seen.astype(jnp.float32)).sum(axis=-1)  # [P H]

    def one(cut: "_Cut", written: tuple[Any, Array]) -> tuple[Any, Array]:
        by_input, by_bias = written
        weights = jnp.exp(cut.logits(query, keys, bias) - cut.out(normaliser).T[:, :, None])
        weights = jnp.where(cut.own[:, None], weights, 0.0)  # the positions of others ask nothing
        asked, looked_at, by_seen = cut.out(query), cut.out(keys), cut.out(change)
        by_weight = jnp.einsum("qha,kha->hqk", by_seen, cut.out(values), preferred_element_type=jnp.float32)
        kept_weights = weights
        if keep is not None:
            left = cut.out(keep).T[:, None, :]
            by_weight, kept_weights = by_weight * left, weights * left
        by_logit = weights * (by_weight - cut.out(by_total).T[:, :, None])
        each = by_logit.astype(asked.dtype)
        new = (
            jnp.einsum("hqk,kha->qha", each, looked_at),
            jnp.einsum("hqk,qha->kha", each, asked),
            jnp.einsum("hqk,qha->kha", kept_weights.astype(by_seen.dtype), by_seen),
        )
        return cut.put(by_input, new), by_bias.at[:, : cut.width, : cut.width].add(by_logit)

    start = (jnp.zeros_like(query), jnp.zeros_like(keys), jnp.zeros_like(values)), jnp.zeros_like(bias)
    by_input, by_bias = _for_each(one, places, start)
    return *by_input, None, by_bias, None


attend.defvjp(_attend, _attend_backward)


class _Cut:
    """One example's stretch of the line, perhaps with some of its neighbours, who are not its `own`."""

    def __init__(self, places: Places, i: Int[Array, ""], width: int, positions: int) -> None:
        self.width = width
        self.start = jnp.minimum(places.starts[i], positions - width)
        offset = jnp.arange(width) - (places.starts[i] - self.start)
        self.own = (offset >= 0) & (offset < places.lengths[i])

    def out(self, line: Float[Array, "P ..."]) -> Float[Array, "W ..."]:
        return jax.lax.dynamic_slice_in_dim(line, self.start, self.width)

    def logits(self, query: Array, keys: Array, bias: Array) -> Float[Array, "H W W"]:
        found = jnp.einsum("qha,kha->hqk", self.out(query), self.out(keys), preferred_element_type=jnp.float32)
        found = found + bias[:, : self.width, : self.width]  # which depends on distances alone
        return jnp.where(self.own, found, MASKED)

    def put(self, lines: Any, new: Any) -> Any:
        """`new` where the example stands, for each of several lines."""

        def one(line: Array, values: Array) -> Array:
            own = self.own.reshape(-1, *(1,) * (line.ndim - 1))
            values = jnp.where(own, values.astype(line.dtype), self.out(line))
            return jax.lax.dynamic_update_slice_in_dim(line, values, self.start, 0)

        return jax.tree.map(one, lines, new)


def _for_each(one: Any, places: Places, written: Any) -> Any:
    """`one(cut, written)` for every example, a loop a width."""
    positions = jax.tree.leaves(written)[0].shape[0]
    for w, width in enumerate(places.widths):
        body = functools.partial(lambda width, i, written: one(_Cut(places, i, width, positions), written), width)
        written = jax.lax.fori_loop(places.bounds[w], places.bounds[w + 1], body, written)
    return written
