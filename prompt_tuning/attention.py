"""Attention over packed rows, with relative position bias: T5's, which looks at positions of its own example alone."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import by_example, by_row
from prompt_tuning.by_example import MASKED, Places
from prompt_tuning.by_row import Rows
from prompt_tuning.layers import Dense


@jax.custom_vjp
def attend(
    query: Float[Array, "R G M A"],
    keys: Float[Array, "R G S A"],
    values: Float[Array, "R G S A"],
    mask: Bool[Array, "R #G M S"],
    bias: Float[Array, "1 G M S"] | None,
    keep: Float[Array, "R G #M S"] | None,
) -> Float[Array, "R G M A"]:
    """What M queries see at the positions that `mask` admits; logits and softmax are float32.

    Backward keeps no `[M S]` array: it computes the logits again from the softmax's normaliser (Dao et al. 2022).
    """
    return _attend(query, keys, values, mask, bias, keep)[0]


def _logits(query: Array, keys: Array, mask: Array, bias: Array | None) -> Float[Array, "R G M S"]:
    logits = jnp.einsum("rgma,rgsa->rgms", query, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    return jnp.where(mask, logits, MASKED)


def _attend(query: Array, keys: Array, values: Array, mask: Array, bias: Array | None, keep: Array | None) -> Any:
    logits = _logits(query, keys, mask, bias)
    top = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    if keep is not None:
        weights = weights * keep
    seen = jnp.einsum("rgms,rgsa->rgma", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    seen = (seen / total).astype(values.dtype)
    return seen, (query, keys, values, mask, bias, keep, seen, top + jnp.log(total))


def _attend_backward(kept: Any, change: Float[Array, "R G M A"]) -> tuple:
    query, keys, values, mask, bias, keep, seen, normaliser = kept
    weights = jnp.exp(_logits(query, keys, mask, bias) - normaliser)
    by_weight = jnp.einsum("rgma,rgsa->rgms", change, values, preferred_element_type=jnp.float32)
    by_total = (change.astype(jnp.float32) * seen.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    kept_weights = weights
    if keep is not None:
        by_weight, kept_weights = by_weight * keep, weights * keep
    by_logit = jnp.where(mask, weights * (by_weight - by_total), 0.0)
    one = by_logit.astype(query.dtype)
    added = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    return (
        added("rgms,rgsa->rgma", one, keys).astype(query.dtype),
        added("rgms,rgma->rgsa", one, query).astype(keys.dtype),
        added("rgms,rgma->rgsa", kept_weights.astype(values.dtype), change).astype(values.dtype),
        None,
        None if bias is None else by_logit.sum(axis=0, keepdims=True),
        None,
    )


attend.defvjp(_attend, _attend_backward)


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(head_dim): T5 folds it into the query's initial scale."""

    heads: int
    head_dim: int
    features: int
    dtype: Any
    factors: Any  # of matrix products

    def setup(self) -> None:
        inner, types = self.heads * self.head_dim, (self.dtype, self.factors)
        project = lambda stddev: Dense((self.features, inner), ("embed", "joined_kv"), stddev, *types)
        self.query = project(1 / math.sqrt(self.head_dim))
        self.key = project(1.0)
        self.value = project(1.0)
        self.out = Dense((inner, self.features), ("joined_kv", "embed"), 1.0, *types)

    def _split(self, x: Float[Array, "R S A"]) -> Float[Array, "R S H A/H"]:
        x = x.astype(self.factors).reshape(*x.shape[:-1], self.heads, self.head_dim)
        return partitioning.with_sharding_constraint(x, ("batch", "length", "heads", "kv"))

    def project(self, x: Float[Array, "R S D"]) -> tuple[Float[Array, "R S H A"], Float[Array, "R S H A"]]:
        """Keys and values of the positions that can be looked at."""
        return self._split(self.key(x)), self._split(self.value(x))

    def ask(self, x: Float[Array, "R S D"]) -> tuple[Float[Array, "R S H A"], ...]:
        """Queries, keys and values of positions that look at one another."""
        return self._split(self.query(x)), *self.project(x)

    def look(
        self,
        query: Float[Array, "R Q H A"],
        keys: Float[Array, "R S H A"],
        values: Float[Array, "R S H A"],
        mask: Bool[Array, "R #H Q S"] | Places | Rows,
        bias: Float[Array, "#R H Q S"] | None = None,
        keep: Float[Array, "R H 1 S"] | None = None,
    ) -> Float[Array, "R Q A"]:
        """What is seen at the positions that `mask` admits; given `Places` or `Rows`, each at its own example's."""
        if isinstance(mask, Places):
            seen = _by_example(query, keys, values, mask, bias, keep)
        elif isinstance(mask, Rows):
            assert bias is not None  # only the encoder's positions look so
            seen = by_row.attend(query, keys, values, mask, bias, keep)
        else:
            heads = (jnp.swapaxes(y, 1, 2) for y in (query, keys, values))
            seen = jnp.swapaxes(attend(*heads, mask, bias, keep), 1, 2)
        return seen.reshape(*query.shape[:2], self.heads * self.head_dim)

    def __call__(
        self,
        x: Float[Array, "R Q D"],
        keys: Float[Array, "R S H A"],
        values: Float[Array, "R S H A"],
        mask: Bool[Array, "R #H Q S"] | Places,
        bias: Float[Array, "#R H Q S"] | None = None,
        keep: Float[Array, "R H 1 S"] | None = None,
    ) -> Float[Array, "R Q D"]:
        """Looks at the positions that `mask` admits, and takes what is seen into the stream."""
        return self.out(self.look(self._split(self.query(x)), keys, values, mask, bias, keep))

    def keep(self, keys: Float[Array, "R S H A"], values: Float[Array, "R S H A"]) -> tuple[Array, Array]:
        """Keys `[R H A S]` and values `[R H S A]`, for `recall`: as its products read them, which takes no copy."""
        return jnp.transpose(keys, (0, 2, 3, 1)), jnp.swapaxes(values, 1, 2)

    def recall(
        self,
        x: Float[Array, "R Q D"],
        keys: Float[Array, "R H A S"],
        values: Float[Array, "R H S A"],
        mask: Bool[Array, "R #H Q S"],
        bias: Float[Array, "#R H Q S"] | None = None,
    ) -> Float[Array, "R Q D"]:
        """`__call__` with what was kept for a decoder that asks again and again."""
        query = jnp.swapaxes(self._split(self.query(x)), 1, 2)
        logits = jnp.einsum("rhqa,rhas->rhqs", query, keys.astype(query.dtype), preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        weights = jax.nn.softmax(jnp.where(mask, logits, MASKED)).astype(values.dtype)
        seen = jnp.einsum("rhqs,rhsa->rhqa", weights, values, preferred_element_type=jnp.float32).astype(values.dtype)
        return self.out(jnp.swapaxes(seen, 1, 2).reshape(*x.shape[:2], self.heads * self.head_dim))

    def across(
        self,
        x: Float[Array, "R Q D"],
        source: Float[Array, "R S D"],
        mask: Bool[Array, "R 1 Q S"] | Places,
        keep: Float[Array, "R H 1 S"] | None = None,
    ) -> Float[Array, "R Q D"]:
        """Looks at `source` without a bias, the cheaper way round.

        Few queries are taken through the key matrix and look at `source` itself, and what they saw goes through the
        value matrix: Q H vectors of width D cost less than keys and values of all S positions while Q < A. Multiplies
        `dtype`: for one of its products XLA on a CPU has no kernel of narrower factors, and fails.
        """
        queries = (isinstance(mask, Places) and mask.asking) or x.shape[1]
        if 2 * queries > self.head_dim:
            return self(x, *self.project(source), mask, keep=keep)
        by_head = lambda dense: dense.kernel.astype(self.dtype).reshape(-1, self.heads, self.head_dim)
        query = jnp.einsum("rqha,dha->rqhd", self._split(self.query(x)).astype(self.dtype), by_head(self.key))
        source = source.astype(self.dtype)
        if isinstance(mask, Places):
            seen = _by_example(query, source, None, mask, None, keep)
        else:
            seen = _joined(query, source, mask, keep)
        seen = jnp.einsum("rqhd,dha->rqha", seen, by_head(self.value))
        return self.out(seen.reshape(*x.shape[:-1], self.heads * self.head_dim))


def _by_example(
    query: Array, keys: Array, values: Array | None, places: Places, bias: Array | None, keep: Array | None
) -> Float[Array, "R Q H A"]:
    """`by_example.attend` over rows as one line."""
    line = lambda y: None if y is None else y.reshape(-1, *y.shape[2:])
    left = None if keep is None else line(jnp.swapaxes(keep[:, :, 0], 1, 2))
    seen = by_example.attend(line(query), line(keys), line(values), places, None if bias is None else bias[0], left)
    return seen.reshape(query.shape)


def _joined(
    query: Float[Array, "R Q H D"], source: Float[Array, "R S D"], mask: Array, keep: Array | None
) -> Float[Array, "R Q H D"]:
    """`attend` with the queries of all heads as one group, as they look at the same."""
    joined = lambda y: y.reshape(y.shape[0], 1, -1, y.shape[-1])
    query = jnp.swapaxes(query, 1, 2)
    shape = (*query.shape[:-1], source.shape[1])
    keep = None if keep is None else joined(jnp.broadcast_to(keep, shape))
    one = source[:, None]
    seen = attend(joined(query), one, one, joined(jnp.broadcast_to(mask, shape)), None, keep)
    return jnp.swapaxes(seen.reshape(query.shape), 1, 2)


def relative_buckets(distance: np.ndarray, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of `key position - query position`: exact near, logarithmic up to `max_distance` (Raffel et al. 2020).

    Computed in float32 as T5 does, so that distances on the edge of a bucket fall on the same side.
    """
    offset: Any = 0
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(max_distance / exact)
    far = exact + (ratio.astype(np.float32) * (buckets - exact) + np.float32(1e-6)).astype(np.int32)
    return (offset + np.where(distance < exact, distance, np.minimum(far, buckets - 1))).astype(np.int32)


class RelativeBias(nn.Module):
    """A learned attention bias for each head and bucket of relative distance, one table a stack."""

    heads: int
    bidirectional: bool
    buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def __call__(self, length: int, position: Int[Array, ""] | None = None) -> Float[Array, "1 H Q S"]:
        """Bias between all positions of a row, or (`position` given) of one query against `length` keys."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        axes = ("heads", "relpos_buckets")
        table = partitioning.param_with_axes(
            "rel_embedding", init, (self.heads, self.buckets), jnp.float32, axes=axes
        ).astype(jnp.float32)
        if position is None:
            distance = np.arange(length)[None, :] - np.arange(length)[:, None]
            return table[:, self._bucket(distance)][None]
        by_distance = self._bucket(np.arange(length) - (length - 1))  # distances 1 - length .. 0
        start = (length - 1 - position).astype(jnp.int32)
        row = jnp.take(jnp.asarray(by_distance), start + jnp.arange(length, dtype=jnp.int32), mode="clip")
        return table[:, row][None, :, None, :]

    def _bucket(self, distance: np.ndarray) -> np.ndarray:
        return relative_buckets(distance, self.bidirectional, self.buckets, self.max_distance)
