"""A TPU's kernel for attention over packed rows: it computes a head or two of one row after another on the chip.

A row of a few hundred positions is short enough to hold all of its logits at once, so that there is no softmax in
pieces to put together (as in Dao et al. 2022). Backward keeps query, keys and values alone and computes the softmax
again. Heads are joined, `[R S W]` with W = H A, as the products before and after have them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from prompt_tuning.by_example import MASKED

QUERIES = 256  # positions of a row that look at all of it at a time
LANES = 128  # numbers side by side in a register: narrower heads are computed together


def fits(length: int, heads: int, head_dim: int, dtype: Any) -> bool:
    """Whether the TPU that is traced for has room on the chip for rows of `length`."""
    chip = pltpu.get_tpu_info()
    needed = _needed(length, _together(heads, head_dim), head_dim, dtype)
    return chip.generation >= 4 and needed <= chip.vmem_capacity_bytes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(head_dim: int, interpret: bool, *inputs: Array) -> Float[Array, "R S W"]:
    """Of query, keys, values `[R S W]`, segments `[R S]` and bias `[H S S]`."""
    return _call(_see, head_dim, interpret, inputs, inputs[:1])[0]


def _forward(head_dim: int, interpret: bool, *inputs: CustomVJPPrimal) -> tuple[Array, Any]:
    values = tuple(leaf.value for leaf in inputs)
    return attend(head_dim, interpret, *values), (values, inputs[4].perturbed and jnp.zeros(()))


def _backward(head_dim: int, interpret: bool, kept: Any, change: Any) -> tuple:
    values, learned = kept
    query, keys, shown, _, bias = values
    if isinstance(change, SymbolicZero):
        change = jnp.zeros(change.shape, change.dtype)
    outputs = query, keys, shown, *([bias] if learned is not False else [])
    by_query, by_keys, by_values, *by_bias = _call(_look_back, head_dim, interpret, (*values, change), outputs)
    return by_query, by_keys, by_values, None, by_bias[0] if by_bias else None


attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _call(kernel: Callable[..., None], head_dim: int, interpret: bool, inputs: tuple, like: tuple) -> list[Array]:
    """`kernel` for some heads of one row after another, with results shaped as those inputs of it."""
    query, keys, values, segments, bias, *change = inputs
    (rows, length), together = segments.shape, _together(len(bias), head_dim)
    width, needed = together * head_dim, _needed(length, together, head_dim, query.dtype)
    part = pl.BlockSpec((1, length, width), lambda heads, row: (row, 0, heads))
    asking = pl.BlockSpec((1, length, 1), lambda heads, row: (row, 0, 0))
    asked = pl.BlockSpec((1, 1, length), lambda heads, row: (row, 0, 0))
    of_heads = (together, length, length), lambda heads, row: (heads, 0, 0)
    once = pl.BlockSpec(*of_heads, pipeline_mode=pl.Buffered(1))  # it changes with the heads only
    return pl.pallas_call(
        functools.partial(kernel, head_dim),
        grid=(len(bias) // together, rows),
        in_specs=[part, part, part, asking, asked, once, *[part] * len(change)],
        out_specs=[once if one is bias else part for one in like],
        out_shape=[jax.ShapeDtypeStruct(one.shape, one.dtype) for one in like],
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=2 * needed
        ),
    )(query, keys, values, segments[:, :, None], segments[:, None, :], bias, *change)


def _together(heads: int, head_dim: int) -> int:
    """How many heads fill the lanes; all, if they cannot be divided so."""
    few = LANES // head_dim if LANES % head_dim == 0 else 1
    return few if heads % few == 0 and few * head_dim % LANES == 0 else heads


def _needed(length: int, heads: int, head_dim: int, dtype: Any) -> int:
    """Bytes on the chip: the bias and its gradient, eight parts of a row twice, and a few `[QUERIES S]`."""
    parts = 16 * max(heads * head_dim, LANES) * jnp.dtype(dtype).itemsize
    return length * (8 * heads * length + parts + 16 * QUERIES)


def _see(head_dim: int, query: Any, keys: Any, values: Any, asking: Any, asked: Any, bias: Any, seen: Any) -> None:
    """The kernel of forward: what the row's positions see, head by head."""
    for head, queries in _pieces(query, head_dim):
        weights, total = _softmax(head, queries, head_dim, query, keys, asking, asked, bias)
        own = _own(head, head_dim)
        found = _product(weights.astype(values.dtype), values[0, :, own], 1, 0) / total
        seen[0, queries, own] = found.astype(seen.dtype)


def _look_back(
    head_dim: int, query: Any, keys: Any, values: Any, asking: Any, asked: Any, bias: Any, change: Any,
    by_query: Any, by_keys: Any, by_values: Any, by_bias: Any = None,
) -> None:  # fmt: skip
    """The kernel of backward, which computes the softmax again; the bias' gradient adds up over rows."""
    if by_bias is not None:

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            by_bias[...] = jnp.zeros_like(by_bias)

    sums: dict[int, Any] = {}
    for head, queries in _pieces(query, head_dim):
        own = _own(head, head_dim)
        weights, total = _softmax(head, queries, head_dim, query, keys, asking, asked, bias)
        weights = weights / total
        one, asked_for = change[0, queries, own], query[0, queries, own]
        by_weight = _product(one, values[0, :, own], 1, 1)
        by_logit = weights * (by_weight - (weights * by_weight).sum(1, keepdims=True))
        if by_bias is not None:
            by_bias[head, queries, :] += by_logit
        by_logit = by_logit.astype(query.dtype)
        by_query[0, queries, own] = _product(by_logit, keys[0, :, own], 1, 0).astype(by_query.dtype)
        added = _product(by_logit, asked_for, 0, 0), _product(weights.astype(one.dtype), one, 0, 0)
        sums[head] = jax.tree.map(jnp.add, sums[head], added) if head in sums else added
    for head, (of_keys, of_values) in sums.items():
        by_keys[0, :, _own(head, head_dim)] = of_keys.astype(by_keys.dtype)
        by_values[0, :, _own(head, head_dim)] = of_values.astype(by_values.dtype)


def _pieces(query: Any, head_dim: int) -> list[tuple[int, Any]]:
    """The heads of a part, and of each head the queries that look at a time."""
    _, length, width = query.shape
    return [(head, pl.ds(start, min(QUERIES, length - start)))
            for head in range(width // head_dim) for start in range(0, length, QUERIES)]  # fmt: skip


def _own(head: int, head_dim: int) -> Any:
    return pl.ds(head * head_dim, head_dim)


def _softmax(
    head: int, queries: Any, head_dim: int, query: Any, keys: Any, asking: Any, asked: Any, bias: Any
) -> tuple[Float[Array, "Q S"], Float[Array, "Q 1"]]:
    """Weights, and what they have to be divided by."""
    own = _own(head, head_dim)
    logits = _product(query[0, queries, own], keys[0, :, own], 1, 1) + bias[head, queries, :]
    logits = jnp.where(asking[0, queries, :] == asked[0], logits, MASKED)
    weights = jnp.exp(logits - logits.max(1, keepdims=True))
    return weights, weights.sum(1, keepdims=True)


def _product(left: Array, right: Array, of_left: int, of_right: int) -> Array:
    """Summed over one axis of each, in float32."""
    return jax.lax.dot_general(left, right, (((of_left,), (of_right,)), ((), ())), preferred_element_type=jnp.float32)
