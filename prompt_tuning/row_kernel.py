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
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from prompt_tuning.by_example import MASKED

Named = dict[str, Any]  # arrays of rows, and in a kernel what it has of them

QUERIES = 256  # positions of a row that look at all of it at a time
LANES = 128  # numbers side by side in a register: narrower heads are computed together


def fits(length: int, heads: int, head_dim: int, dtype: Any) -> bool:
    """Whether the TPU that is traced for has room on the chip for rows of `length`."""
    chip = pltpu.get_tpu_info()
    needed = _needed(length, heads_at_once(heads, head_dim), head_dim, dtype)
    return chip.generation >= 4 and needed <= chip.vmem_capacity_bytes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    head_dim: int,
    interpret: bool,
    query: Float[Array, "R S W"],
    keys: Float[Array, "R S W"],
    values: Float[Array, "R S W"],
    segments: Int[Array, "R S"],
    bias: Float[Array, "H S S"],
    keep: Float[Array, "R H 1 S"] | None,
) -> Float[Array, "R S W"]:
    """What every position sees of its segment; `interpret` computes it on any device."""
    inputs = _named(query, keys, values, segments, bias, keep)
    return _call(_see, head_dim, interpret, inputs, {"seen": "query"})[0]


def _named(query: Array, keys: Array, values: Array, segments: Array, bias: Array, keep: Array | None) -> Named:
    dropped = {} if keep is None else {"keep": keep}
    asking, asked = segments[:, :, None], segments[:, None, :]
    return {"query": query, "keys": keys, "values": values, "asking": asking, "asked": asked, "bias": bias} | dropped


def _forward(head_dim: int, interpret: bool, *inputs: Any) -> tuple[Array, Any]:
    values = jax.tree.map(lambda leaf: leaf.value, inputs)
    learned = values[4] if inputs[4].perturbed else None
    return attend(head_dim, interpret, *values), (values, learned)


def _backward(head_dim: int, interpret: bool, kept: Any, change: Any) -> tuple:
    values, learned = kept
    if isinstance(change, SymbolicZero):
        change = jnp.zeros(change.shape, change.dtype)
    inputs = _named(*values) | {"change": change}
    outputs = {f"by_{name}": name for name in ("query", "keys", "values", *([] if learned is None else ["bias"]))}
    by_query, by_keys, by_values, *by_bias = _call(_look_back, head_dim, interpret, inputs, outputs)
    return by_query, by_keys, by_values, None, by_bias[0] if by_bias else None, None


attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _call(
    kernel: Callable[[int, Named], None], head_dim: int, interpret: bool, inputs: Named, outputs: dict[str, str]
) -> list[Array]:
    """`kernel` for some heads of one row after another; of each of its `outputs` the input that has its shape."""
    (rows, length, _), heads = inputs["query"].shape, len(inputs["bias"])
    together = heads_at_once(heads, head_dim)
    part = pl.BlockSpec((1, length, together * head_dim), lambda heads, row: (row, 0, heads))
    of_heads = (together, length, length), lambda heads, row: (heads, 0, 0)
    specs = {
        "asking": pl.BlockSpec((1, length, 1), lambda heads, row: (row, 0, 0)),
        "asked": pl.BlockSpec((1, 1, length), lambda heads, row: (row, 0, 0)),
        "keep": pl.BlockSpec((1, together, 1, length), lambda heads, row: (row, heads, 0, 0)),
        "bias": pl.BlockSpec(*of_heads, pipeline_mode=pl.Buffered(1)),  # it changes with the heads only
    }
    like = [inputs[name] for name in outputs.values()]
    names = [*inputs, *outputs]
    return pl.pallas_call(
        lambda *refs: kernel(head_dim, dict(zip(names, refs, strict=True))),
        grid=(heads // together, rows),
        in_specs=[specs.get(name, part) for name in inputs],
        out_specs=[specs.get(name, part) for name in outputs.values()],
        out_shape=[jax.ShapeDtypeStruct(one.shape, one.dtype) for one in like],
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=2 * _needed(length, together, head_dim, inputs["query"].dtype),
        ),
    )(*inputs.values())


def heads_at_once(heads: int, head_dim: int) -> int:
    """How many heads fill the lanes; all, if they cannot be divided so."""
    few = LANES // head_dim if LANES % head_dim == 0 else 1
    return few if heads % few == 0 and few * head_dim % LANES == 0 else heads


def _needed(length: int, heads: int, head_dim: int, dtype: Any) -> int:
    """Bytes on the chip: the bias and its gradient, eight parts of a row twice, and a few `[QUERIES S]`."""
    parts = 16 * max(heads * head_dim, LANES) * jnp.dtype(dtype).itemsize
    return length * (8 * heads * length + parts + 16 * QUERIES)


def _see(head_dim: int, on_chip: Named) -> None:
    """The kernel of forward: what the row's positions see, head by head."""
    for head, queries in _pieces(head_dim, on_chip):
        weights, total = _softmax(head, queries, head_dim, on_chip)
        found = _product(_dropped(weights, head, on_chip), _own(on_chip["values"], head, head_dim), 1, 0) / total
        _put(on_chip["seen"], head, head_dim, queries, found)


def _look_back(head_dim: int, on_chip: Named) -> None:
    """The kernel of backward; the bias' gradient adds up over rows."""
    if "by_bias" in on_chip:

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            on_chip["by_bias"][...] = jnp.zeros_like(on_chip["by_bias"])

    sums: dict[int, Any] = {}
    for head, queries in _pieces(head_dim, on_chip):
        query, change = (_own(on_chip[name], head, head_dim, queries) for name in ("query", "change"))
        keys, values = (_own(on_chip[name], head, head_dim) for name in ("keys", "values"))
        weights, total = _softmax(head, queries, head_dim, on_chip)
        weights = weights / total
        by_weight = _dropped(_product(change, values, 1, 1), head, on_chip)
        by_logit = weights * (by_weight - (weights * by_weight).sum(1, keepdims=True))
        if "by_bias" in on_chip:
            on_chip["by_bias"][head, queries, :] += by_logit
        _put(on_chip["by_query"], head, head_dim, queries, _product(by_logit, keys, 1, 0))
        added = _product(by_logit, query, 0, 0), _product(_dropped(weights, head, on_chip), change, 0, 0)
        sums[head] = jax.tree.map(jnp.add, sums[head], added) if head in sums else added
    for head, (by_keys, by_values) in sums.items():
        _put(on_chip["by_keys"], head, head_dim, slice(None), by_keys)
        _put(on_chip["by_values"], head, head_dim, slice(None), by_values)


def _pieces(head_dim: int, on_chip: Named) -> list[tuple[int, Any]]:
    """The heads of a part, and of each head the queries that look at a time."""
    _, length, width = on_chip["query"].shape
    return [(head, pl.ds(start, min(QUERIES, length - start)))
            for head in range(width // head_dim) for start in range(0, length, QUERIES)]  # fmt: skip


def _softmax(head: int, queries: Any, head_dim: int, on_chip: Named) -> tuple[Float[Array, "Q S"], Float[Array, "Q 1"]]:
    """Weights, and what they have to be divided by."""
    query, keys = _own(on_chip["query"], head, head_dim, queries), _own(on_chip["keys"], head, head_dim)
    logits = _product(query, keys, 1, 1) + on_chip["bias"][head, queries, :]
    logits = jnp.where(on_chip["asking"][0, queries, :] == on_chip["asked"][0], logits, MASKED)
    weights = jnp.exp(logits - logits.max(1, keepdims=True))
    return weights, weights.sum(1, keepdims=True)


def _dropped(weights: Float[Array, "Q S"], head: int, on_chip: Named) -> Float[Array, "Q S"]:
    return weights * on_chip["keep"][0, head] if "keep" in on_chip else weights


def _product(left: Array, right: Array, of_left: int, of_right: int) -> Array:
    """Of factors as narrow as `right`, summed over one axis of each, in float32."""
    sums = (((of_left,), (of_right,)), ((), ()))
    return jax.lax.dot_general(left.astype(right.dtype), right, sums, preferred_element_type=jnp.float32)


def _own(part: Any, head: int, head_dim: int, positions: Any = slice(None)) -> Float[Array, "Q A"]:
    return part[0, positions, _lanes(head, head_dim)]


def _put(part: Any, head: int, head_dim: int, positions: Any, new: Float[Array, "Q A"]) -> None:
    part[0, positions, _lanes(head, head_dim)] = new.astype(part.dtype)


def _lanes(head: int, head_dim: int) -> Any:
    return pl.ds(head * head_dim, head_dim)
