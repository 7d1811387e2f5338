"""A GPU's kernel for attention over packed rows, tile by tile; tiles of positions of other examples are left out.

The softmax is put together from pieces, and backward computes it again from its normaliser (Dao et al. 2022). The bias
is one for all rows, and has a gradient computed only where it is learned.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from prompt_tuning.by_example import MASKED

LOG2E = 1.4426950408889634  # logits are in powers of two, which a GPU has an instruction for


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a kernel goes about it: it holds `own` positions, and goes through the others `other` at a time."""

    own: int
    other: int
    warps: int
    stages: int


# Measured on an H100, of rows of 512 positions with 32 heads of 64.
SEE = Tiles(64, 64, 4, 3)
BY_QUERY = Tiles(64, 32, 4, 3)
BY_KEY = Tiles(64, 32, 4, 3)
BY_BIAS = Tiles(64, 64, 4, 2)
MULTIPLE = 64  # of positions, which every tile divides


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    interpret: bool,
    query: Float[Array, "R S H A"],
    keys: Float[Array, "R S H A"],
    values: Float[Array, "R S H A"],
    segments: Int[Array, "R S"],
    bias: Float[Array, "H S S"],
    keep: Float[Array, "R H S"] | None,
) -> Float[Array, "R S H A"]:
    """What every position sees of its segment, and 0 or anything where nothing stands; segments do not interleave.

    `interpret` computes it on any device.
    """
    return _attend(interpret, query, keys, values, segments, bias, keep)[0]


def _attend(interpret: bool, query: Array, keys: Array, values: Array, segments: Array, bias: Array, keep: Any) -> Any:
    rows, length, heads, _ = query.shape
    inputs = _named(query, keys, values, segments, bias, keep)
    outputs = {"seen": query, "normaliser": jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)}
    return _call(_see, SEE, interpret, inputs, outputs)


def _named(query: Array, keys: Array, values: Array, segments: Array, bias: Array, keep: Array | None) -> dict:
    dropped = {} if keep is None else {"keep": keep}
    bias = (bias * LOG2E).astype(query.dtype)
    return {"query": query, "keys": keys, "values": values, "segments": segments, "bias": bias} | dropped


def _forward(interpret: bool, *inputs: Any) -> tuple[Array, Any]:
    values = jax.tree.map(lambda leaf: leaf.value, inputs)
    learned = values[4] if inputs[4].perturbed else None
    seen, normaliser = _attend(interpret, *values)
    return seen, (values, seen, normaliser, learned)


def _backward(interpret: bool, kept: Any, change: Any) -> tuple:
    given, seen, normaliser, learned = kept
    if isinstance(change, SymbolicZero):
        change = jnp.zeros(change.shape, change.dtype)
    query, keys, values, _, bias, _ = given
    by_total = jnp.einsum("rsha,rsha->rhs", change, seen, preferred_element_type=jnp.float32)
    inputs = _named(*given) | {"change": change, "normaliser": normaliser, "by_total": by_total}
    (by_query,) = _call(_by_query, BY_QUERY, interpret, inputs, {"by_query": query})
    turned = inputs | {"bias": jnp.swapaxes(inputs["bias"], 1, 2)}
    by_keys, by_values = _call(_by_key, BY_KEY, interpret, turned, {"by_keys": keys, "by_values": values})
    by_bias = [] if learned is None else _call(_by_bias, BY_BIAS, interpret, inputs, {"by_bias": bias}, False)
    return by_query, by_keys, by_values, None, by_bias[0] if by_bias else None, None


attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _call(
    kernel: Callable[[dict[str, Any], Tiles], None], tiles: Tiles, interpret: bool, inputs: dict[str, Array],
    outputs: dict[str, Any], row_by_row: bool = True,
) -> list[Array]:  # fmt: skip
    """`kernel` for every tile of its own positions, head and row; or for every pair of tiles and head, of all rows."""
    inputs = inputs | _reach(inputs["segments"], tiles)
    rows, length, heads, width = inputs["query"].shape
    count = length // tiles.own
    at: Callable[..., tuple[Any, Any]]
    if row_by_row:
        grid, held, at = (count, heads, rows), None, lambda tile, head, row: (row, head)
    else:
        grid, held, at = (count, length // tiles.other, heads), rows, lambda tile, other, head: (0, head)
    spec = lambda shape, place: pl.BlockSpec(shape, lambda *ids: place(*at(*ids)))
    specs = {
        "segments": spec((held, length), lambda row, head: (row, 0)),
        "bias": spec((None, length, length), lambda row, head: (head, 0, 0)),
        **dict.fromkeys(("first", "past"), spec((held, count), lambda row, head: (row, 0))),
        **dict.fromkeys(
            ("keep", "normaliser", "by_total"), spec((held, None, length), lambda row, head: (row, head, 0))
        ),
    }
    specs["by_bias"] = specs["bias"]
    part = spec((held, length, None, width), lambda row, head: (row, 0, head, 0))
    names = [*inputs, *outputs]
    return pl.pallas_call(
        lambda *refs: kernel(dict(zip(names, refs, strict=True)), tiles),
        grid=grid,
        in_specs=[specs.get(name, part) for name in inputs],
        out_specs=[specs.get(name, part) for name in outputs],
        out_shape=[jax.ShapeDtypeStruct(one.shape, one.dtype) for one in outputs.values()],
        interpret=interpret,
        name=kernel.__name__.strip("_"),
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
    )(*inputs.values())


def _reach(segments: Int[Array, "R S"], tiles: Tiles) -> dict[str, Int[Array, "R T"]]:
    """The `first` of the others' tiles that a tile has to do with, and the one `past` the last; padding has none."""
    rows, length = segments.shape
    positions = jnp.arange(length, dtype=jnp.int32)
    alike = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    starts = jnp.where(alike, positions, length).min(-1).reshape(rows, -1, tiles.own).min(-1)
    ends = jnp.where(alike, positions + 1, 0).max(-1).reshape(rows, -1, tiles.own).max(-1)
    return {"first": starts // tiles.other, "past": -(-ends // tiles.other)}


class _Row:
    """What a kernel has of one head of a row, which is numbered where the kernel has all rows, and its own tile."""

    def __init__(self, refs: dict[str, Any], tiles: Tiles, tile: Any, *number: Any) -> None:
        self.refs, self.tiles, self.tile, self.number = refs, tiles, tile, number
        self.own = pl.ds(tile * tiles.own, tiles.own)
        segments = self["segments", self.own]
        self.segments = jnp.where(segments > 0, segments, -1)  # padding looks at nothing

    def __getitem__(self, place: tuple[str, Any]) -> Array:
        """What stands at some positions."""
        name, positions = place
        return self.refs[name][(*self.number, positions)]

    def __setitem__(self, place: tuple[str, Any], new: Array) -> None:
        name, positions = place
        ref = self.refs[name]
        ref[positions] = new.astype(ref.dtype)

    def zeros(self) -> Float[Array, "O A"]:
        """For what becomes of the tile."""
        return jnp.zeros((self.tiles.own, self.refs["query"].shape[-1]), jnp.float32)

    def logits(self, own: Float[Array, "O A"], other: Float[Array, "T A"], others: Any) -> tuple[Array, Array]:
        """Of the tile's positions and `others`: which are of one segment, and the logits in powers of two, `[O T]`."""
        mask = self.segments[:, None] == self["segments", others][None, :]
        return mask, _product(own, other, 1) * LOG2E + self.refs["bias"][self.own, others].astype(jnp.float32)

    def kept(self, of_keys: Float[Array, "O T"], keys: Any, axis: int) -> Float[Array, "O T"]:
        """With what dropout leaves of what stands at `keys`, along an axis."""
        return of_keys * jnp.expand_dims(self["keep", keys], 1 - axis) if "keep" in self.refs else of_keys

    def through_others(self, one: Callable[[Any, Any], Any], start: Any) -> Any:
        """`one(positions, so_far)` for each tile of the others that this one has to do with."""
        other = self.tiles.other
        body = lambda i, so_far: one(pl.ds(i * other, other), so_far)
        return jax.lax.fori_loop(self["first", self.tile], self["past", self.tile], body, start)


def _see(refs: dict[str, Any], tiles: Tiles) -> None:
    """The kernel of forward: what a tile's queries see."""
    row = _Row(refs, tiles, pl.program_id(0))
    query = row["query", row.own]

    def one(keys: Any, so_far: tuple) -> tuple:
        top, total, seen = so_far
        mask, logits = row.logits(query, row["keys", keys], keys)
        logits = jnp.where(mask, logits, MASKED)
        higher = jnp.maximum(top, logits.max(1))
        weights, less = jnp.exp2(logits - higher[:, None]), jnp.exp2(top - higher)
        new = _product(row.kept(weights, keys, 1).astype(query.dtype), row["values", keys], 0)
        return higher, total * less + weights.sum(1), seen * less[:, None] + new

    nothing = jnp.zeros(tiles.own, jnp.float32)
    top, total, seen = row.through_others(one, (nothing + MASKED, nothing, row.zeros()))
    total = jnp.where(total > 0, total, 1.0)
    row["seen", row.own] = seen / total[:, None]
    row["normaliser", row.own] = top + jnp.log2(total)


def _by_query(refs: dict[str, Any], tiles: Tiles) -> None:
    """A kernel of backward: the gradient of a tile's queries."""
    row = _Row(refs, tiles, pl.program_id(0))
    by_logit = _by_logit(row)
    one = lambda keys, sums: sums + _product(by_logit(keys).astype(row.refs["keys"].dtype), row["keys", keys], 0)
    row["by_query", row.own] = row.through_others(one, row.zeros())


def _by_bias(refs: dict[str, Any], tiles: Tiles) -> None:
    """A kernel of backward: the gradient of the bias of two tiles, which adds up over rows."""
    tile, others = pl.program_id(0), pl.ds(pl.program_id(1) * tiles.other, tiles.other)
    one = lambda number, sums: sums + _by_logit(_Row(refs, tiles, tile, number))(others)
    start = jnp.zeros((tiles.own, tiles.other), jnp.float32)
    sums = jax.lax.fori_loop(0, refs["query"].shape[0], one, start)
    refs["by_bias"][pl.ds(tile * tiles.own, tiles.own), others] = sums


def _by_logit(row: _Row) -> Callable[[Any], Float[Array, "O T"]]:
    """The gradient of the logits of a tile's queries, given the keys."""
    query, change = row["query", row.own], row["change", row.own]
    normaliser, by_total = row["normaliser", row.own][:, None], row["by_total", row.own][:, None]

    def of(keys: Any) -> Float[Array, "O T"]:
        mask, logits = row.logits(query, row["keys", keys], keys)
        weights = jnp.where(mask, jnp.exp2(logits - normaliser), 0.0)
        return weights * (row.kept(_product(change, row["values", keys], 1), keys, 1) - by_total)

    return of


def _by_key(refs: dict[str, Any], tiles: Tiles) -> None:
    """A kernel of backward: the gradients of a tile's keys and values; the bias is turned."""
    row = _Row(refs, tiles, pl.program_id(0))
    looked_at = row["keys", row.own]
    values = row.kept(row["values", row.own].astype(jnp.float32), row.own, 0).astype(looked_at.dtype)

    def one(queries: Any, sums: tuple) -> tuple:
        by_keys, by_values = sums
        query, change = row["query", queries], row["change", queries]
        mask, logits = row.logits(looked_at, query, queries)
        weights = jnp.where(mask, jnp.exp2(logits - row["normaliser", queries][None, :]), 0.0)
        by_logit = weights * (_product(values, change, 1) - row["by_total", queries][None, :])
        by_keys += _product(by_logit.astype(query.dtype), query, 0)
        return by_keys, by_values + _product(weights.astype(query.dtype), change, 0)

    by_keys, by_values = row.through_others(one, (row.zeros(), row.zeros()))
    row["by_keys", row.own], row["by_values", row.own] = by_keys, row.kept(by_values, row.own, 0)


def _product(left: Float[Array, "O B"], right: Array, of_right: int) -> Float[Array, "O C"]:
    """Summed over the last axis of `left`, in float32."""
    sums = (((1,), (of_right,)), ((), ()))
    return jax.lax.dot_general(left, right, sums, preferred_element_type=jnp.float32)
