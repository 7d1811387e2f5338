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

from prompt_tuning import line

MASKED = -1e10  # what T5 adds to the logit of a position that must not be seen


@struct.dataclass
class Stretches:
    """Where each of N examples stands in a line."""

    starts: Int[Array, "N"]
    lengths: Int[Array, "N"]


@struct.dataclass
class Places:
    """What each of N examples looks at, and from where; those of one width one after another."""

    keys: Stretches
    queries: Stretches
    bounds: Int[Array, "W+1"]  # examples bounds[w] to bounds[w + 1] are cut out at widths[w]
    widths: tuple[int, ...] = struct.field(pytree_node=False)
    asking: int | None = struct.field(pytree_node=False)  # width of the queries' cut; None: queries stand where keys do


def stretches(segments: Int[Array, "R S"], count: int) -> Stretches:
    """The stretches of up to `count` examples; each stands in one row, without gaps."""
    line = segments.reshape(-1)
    starts = jnp.full(count + 1, line.size).at[line].min(jnp.arange(line.size))[1:]
    return Stretches(starts, jnp.zeros(count + 1, jnp.int32).at[line].add(1)[1:])


def find(
    keys: Stretches, widths: tuple[int, ...], queries: Stretches | None = None, asking: int | None = None
) -> Places:
    """The places of examples no longer than the last of `widths`, looked at from themselves or from `asking` others."""
    kinds = jnp.where(keys.lengths > 0, jnp.searchsorted(jnp.asarray(widths), keys.lengths), len(widths))
    order = jnp.argsort(kinds)
    keys, queries = jax.tree.map(lambda of_each: of_each[order], (keys, queries or keys))
    return Places(keys, queries, jnp.searchsorted(kinds[order], jnp.arange(len(widths) + 1)), widths, asking)


@jax.custom_vjp
def attend(
    query: Float[Array, "Q H A"],
    keys: Float[Array, "P *H A"],
    values: Float[Array, "P *H A"] | None,
    places: Places,
    bias: Float[Array, "H W W"] | None,
    keep: Float[Array, "P H"] | None,
) -> Float[Array, "Q H A"]:
    """What every query sees of its own example, and 0 where nothing stands; `attention.attend` for one line.

    Keys and values without an axis of heads are those of every head; without values, keys are seen. Backward computes
    the logits again from the softmax's normaliser (Dao et al. 2022).
    """
    return _attend(query, keys, values, places, bias, keep)[0]


def _attend(
    query: Array, keys: Array, values: Array | None, places: Places, bias: Array | None, keep: Array | None
) -> Any:
    shown = keys if values is None else values
    seeing = _product("hqk", keys, "qha")

    def one(cut: "_Cut", written: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = cut.logits(query, keys, bias)
        top = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1)
        if keep is not None:
            weights = weights * cut.keys.out(keep).T[:, None, :]
        value = cut.keys.out(shown)
        seen = seeing(weights.astype(value.dtype), value)
        return cut.queries.put(written, (seen / total.T[:, :, None], (top[..., 0] + jnp.log(total)).T))

    start = jnp.zeros_like(query), jnp.zeros(query.shape[:2], jnp.float32)
    seen, normaliser = _for_each(one, places, query, keys, start)
    return seen, (query, keys, values, places, bias, keep, seen, normaliser)


def _attend_backward(kept: Any, change: Float[Array, "Q H A"]) -> tuple:
    query, keys, values, places, bias, keep, seen, normaliser = kept
    both = change.astype(jnp.float32) * seen.astype(jnp.float32)
    by_total = both @ jnp.ones(both.shape[-1], jnp.float32)  # [Q H]; XLA adds up what was multiplied one by one
    shown = keys if values is None else values
    seen_by, asked_by = _product("qha", keys, "hqk"), _product("hqk", keys, "qha")
    looked_at_by = _to_keys(keys)

    def one(cut: "_Cut", written: tuple[Any, Any, Array | None]) -> tuple[Any, Any, Array | None]:
        by_query, by_keys, by_bias = written
        weights = jnp.exp(cut.logits(query, keys, bias) - cut.queries.out(normaliser).T[:, :, None])
        weights = jnp.where(cut.queries.own[:, None], weights, 0.0)  # the positions of others ask nothing
        asked, looked_at, by_seen = cut.queries.out(query), cut.keys.out(keys), cut.queries.out(change)
        by_weight = seen_by(by_seen, cut.keys.out(shown))
        kept_weights = weights
        if keep is not None:
            left = cut.keys.out(keep).T[:, None, :]
            by_weight, kept_weights = by_weight * left, weights * left
        by_logit = weights * (by_weight - cut.queries.out(by_total).T[:, :, None])
        each = by_logit.astype(asked.dtype)
        by_query = cut.queries.put(by_query, asked_by(each, looked_at).astype(asked.dtype))
        new = looked_at_by(each, asked), looked_at_by(kept_weights.astype(by_seen.dtype), by_seen)
        new = (new[0] + new[1], None) if values is None else new
        if by_bias is not None:
            by_bias = by_bias.at[:, : cut.keys.width, : cut.keys.width].add(by_logit)
        return by_query, cut.keys.put(by_keys, new), by_bias

    start = jnp.zeros_like(query), (jnp.zeros_like(keys), _zeros(values)), _zeros(bias)
    by_query, by_keys, by_bias = _for_each(one, places, query, keys, start)
    return by_query, *by_keys, None, by_bias, None


attend.defvjp(_attend, _attend_backward)


def _zeros(array: Array | None) -> Array | None:
    return None if array is None else jnp.zeros_like(array)


def _product(left: str, keys: Array, out: str) -> Any:
    """The product of `left` with what stands at the keys, in float32."""
    right = "kha" if keys.ndim == 3 else "ka"
    return functools.partial(jnp.einsum, f"{left},{right}->{out}", preferred_element_type=jnp.float32)


def _to_keys(keys: Array) -> Any:
    """The product of weights with what stands at the queries, for every key, in float32."""
    out = "kha" if keys.ndim == 3 else "ka"
    return functools.partial(jnp.einsum, f"hqk,qha->{out}", preferred_element_type=jnp.float32)


class _Stretch:
    """One example's stretch of a line, perhaps with some of its neighbours, who are not its `own`."""

    def __init__(self, of: Stretches, i: Int[Array, ""], width: int, positions: int) -> None:
        self.width = width
        self.start = jnp.minimum(of.starts[i], positions - width)
        offset = jnp.arange(width) - (of.starts[i] - self.start)
        self.own = (offset >= 0) & (offset < of.lengths[i])

    def out(self, of_all: Float[Array, "P ..."]) -> Float[Array, "W ..."]:
        return line.cut(of_all, self.start, self.width)

    def put(self, lines: Any, new: Any) -> Any:
        """`new` where the example stands, for each of several lines."""

        def chosen(of_all: Array, values: Array) -> Array:
            old = self.out(of_all)
            own = self.own.reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(own, values.astype(old.dtype), old)

        return line.put(lines, jax.tree.map(chosen, lines, new), self.start)


class _Cut:
    """One example: where it is looked at, and where it is looked at from."""

    def __init__(self, places: Places, i: Int[Array, ""], width: int, asked: int, looked_at: int) -> None:
        width = min(width, looked_at)
        self.keys = self.queries = _Stretch(places.keys, i, width, looked_at)
        if places.asking is not None:
            self.queries = _Stretch(places.queries, i, min(places.asking, asked), asked)

    def logits(self, query: Array, keys: Array, bias: Array | None) -> Float[Array, "H W W"]:
        found = _product("qha", keys, "hqk")(self.queries.out(query), self.keys.out(keys))
        if bias is not None:
            found = found + bias[:, : self.keys.width, : self.keys.width]  # which depends on distances alone
        return jnp.where(self.keys.own, found, MASKED)


def _for_each(one: Any, places: Places, query: Array, keys: Array, written: Any) -> Any:
    """`one(cut, written)` for every example, a loop a width."""
    written = line.carried(written)
    for w, width in enumerate(places.widths):
        body = functools.partial(
            lambda width, i, written: one(_Cut(places, i, width, len(query), len(keys)), written), width
        )
        written = jax.lax.fori_loop(places.bounds[w], places.bounds[w + 1], body, written)
    return line.numbers(written)
