"""The parts of a T5 layer: attention over packed rows, gated feed-forward block, RMS norm, relative position bias.

Parameter names and shapes are T5X's, so its checkpoints load without renaming. Every part works on rows that hold
several examples; `Stream` says what stands where.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

ACTIVATIONS: dict[str, Callable] = {"gelu": nn.gelu, "relu": nn.relu, "silu": nn.silu, "linear": lambda x: x}

MASKED = -1e10  # what T5 adds to the logit of a position that must not be seen


@struct.dataclass
class Stream:
    """Which example stands at each position of packed rows."""

    segments: Int[Array, "R S"]  # 1 + index of the example in the batch; 0 is padding
    positions: Int[Array, "R S"]  # offset inside the example


@struct.dataclass
class Dropout:
    """Dropout drawn once an example and broadcast over its positions, as T5 does, wherever the example is packed."""

    keys: Array  # Key[N], one an example
    rate: float = struct.field(pytree_node=False)

    def _keep(self, site: tuple[str, ...], shape: tuple[int, ...]) -> Float[Array, "N ..."]:
        """Multipliers (0 or 1 / (1 - rate)) for one place in the network; a longer `shape[0]` extends a shorter one."""
        number = zlib.crc32("/".join(site).encode())
        draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - self.rate, shape)
        return jax.vmap(draw)(self.keys).astype(jnp.float32) / (1 - self.rate)

    def features(self, x: Float[Array, "R S F"], stream: Stream, site: tuple[str, ...]) -> Float[Array, "R S F"]:
        """Drops features of `x`, the same ones at all positions of an example."""
        keep = self._keep(site, x.shape[-1:]).astype(x.dtype)
        return x * keep.at[stream.segments - 1].get(mode="clip")

    def weights(self, keys: Stream, heads: int, site: tuple[str, ...]) -> Float[Array, "R H 1 S"]:
        """Multipliers of attention weights, alike for all queries of an example."""
        keep = self._keep(site, (keys.segments.shape[-1], heads))
        keep = keep.at[keys.segments - 1, keys.positions].get(mode="clip")
        return jnp.swapaxes(keep, 1, 2)[:, :, None, :]


class Dense(nn.Module):
    """A linear map without bias; its kernel is `[in, out]`."""

    features: int
    axes: tuple[str, str]
    stddev: float  # of the initial kernel, times sqrt(in)
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... A"]) -> Float[Array, "... F"]:
        init = nn.initializers.variance_scaling(self.stddev**2, "fan_in", "normal")
        shape = (x.shape[-1], self.features)
        kernel = partitioning.param_with_axes("kernel", init, shape, jnp.float32, axes=self.axes)
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, computed in float32."""

    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = partitioning.param_with_axes("scale", nn.initializers.ones, x.shape[-1:], jnp.float32, axes=("embed",))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return x.astype(self.dtype) * jnp.broadcast_to(scale.astype(self.dtype), x.shape)


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(head_dim): T5 folds it into the query's initial scale."""

    heads: int
    head_dim: int
    features: int
    dtype: Any

    def setup(self) -> None:
        inner = self.heads * self.head_dim
        project = lambda stddev: Dense(inner, ("embed", "joined_kv"), stddev, self.dtype)
        self.query = project(1 / math.sqrt(self.head_dim))
        self.key = project(1.0)
        self.value = project(1.0)
        self.out = Dense(self.features, ("joined_kv", "embed"), 1.0, self.dtype)

    def _split(self, x: Float[Array, "R S A"]) -> Float[Array, "R S H A/H"]:
        x = x.reshape(*x.shape[:-1], self.heads, self.head_dim)
        return partitioning.with_sharding_constraint(x, ("batch", "length", "heads", "kv"))

    def project(self, x: Float[Array, "R S D"]) -> tuple[Float[Array, "R S H A"], Float[Array, "R S H A"]]:
        """Keys and values of the positions that can be looked at."""
        return self._split(self.key(x)), self._split(self.value(x))

    def __call__(
        self,
        x: Float[Array, "R Q D"],
        keys: Float[Array, "R S H A"],
        values: Float[Array, "R S H A"],
        mask: Bool[Array, "R #H Q S"],
        bias: Float[Array, "#R H Q S"] | None = None,
        keep: Float[Array, "R H 1 S"] | None = None,
    ) -> Float[Array, "R Q D"]:
        """Looks at the positions that `mask` admits; logits and softmax are float32."""
        query = self._split(self.query(x))
        logits = jnp.einsum("rqhd,rshd->rhqs", query, keys, preferred_element_type=jnp.float32)
        if bias is not None:
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        weights = jax.nn.softmax(jnp.where(mask, logits, MASKED))
        if keep is not None:
            weights = weights * jnp.broadcast_to(keep, weights.shape)
        seen = jnp.einsum("rhqs,rshd->rqhd", weights.astype(self.dtype), values)
        return self.out(seen.reshape(*x.shape[:-1], self.heads * self.head_dim))


class FeedForward(nn.Module):
    """T5 1.1's gated block `(act(x wi_0) * x wi_1) wo`; with one activation, T5 1.0's `act(x wi) wo`."""

    mlp_dim: int
    features: int
    activations: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R S D"], stream: Stream, dropout: Dropout | None) -> Float[Array, "R S D"]:
        names = ["wi"] if len(self.activations) == 1 else [f"wi_{i}" for i in range(len(self.activations))]
        hidden = None
        for name, activation in zip(names, self.activations, strict=True):
            gate = ACTIVATIONS[activation](Dense(self.mlp_dim, ("embed", "mlp"), 1.0, self.dtype, name=name)(x))
            hidden = gate if hidden is None else hidden * gate
        if dropout is not None:
            hidden = dropout.features(hidden, stream, (*self.path, "hidden"))
        hidden = partitioning.with_sharding_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(self.features, ("mlp", "embed"), 1.0, self.dtype, name="wo")(hidden)


def relative_buckets(distance: np.ndarray, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of `key position - query position`: exact near, logarithmic up to `max_distance` (Raffel et al. 2020).

    Computed in float32 as T5 does, so that distances on the edge of a bucket fall on the same side.
    """
    offset = 0
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
