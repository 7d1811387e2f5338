"""The parts of a T5 layer but attention: linear maps, RMS norm, gated feed-forward block.

Parameter names and shapes are T5X's, so its checkpoints load without renaming. Every part works on rows that hold
several examples; `Stream` says what stands where.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen import partitioning
from jaxtyping import Array, Float, Int

from prompt_tuning import backend
from prompt_tuning.dropout import drop
from prompt_tuning.product import product

ACTIVATIONS: dict[str, Callable] = {"gelu": nn.gelu, "relu": nn.relu, "silu": nn.silu, "linear": lambda x: x}


@struct.dataclass
class Stream:
    """Which example stands at each position of packed rows."""

    segments: Int[Array, "R S"]  # 1 + index of the example in the batch; 0 is padding
    positions: Int[Array, "R S"]  # offset inside the example
    count: int = struct.field(pytree_node=False, default=0)  # most examples there can be
    widths: tuple[int, ...] = struct.field(pytree_node=False, default=())  # that examples are cut out at; the last: any
    block: int | None = struct.field(pytree_node=False, default=None)  # only filled blocks are computed; None: rows


class Dense(nn.Module):
    """A linear map without bias."""

    shape: tuple[int, int]  # in, out
    axes: tuple[str, str]
    stddev: float  # of the initial kernel, times sqrt(in)
    dtype: Any
    factors: Any = None  # what is multiplied; None: the kernel's own type

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(self.stddev**2, "fan_in", "normal")
        self.kernel = partitioning.param_with_axes("kernel", init, self.shape, jnp.float32, axes=self.axes, module=self)

    def __call__(self, x: Float[Array, "... A"]) -> Float[Array, "... F"]:
        return product(x, self.kernel, self.factors or self.kernel.dtype, self.dtype)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, computed in float32."""

    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = partitioning.param_with_axes("scale", nn.initializers.ones, x.shape[-1:], jnp.float32, axes=("embed",))
        return _normed(x, scale.astype(self.dtype), self.epsilon)


@functools.partial(jax.checkpoint, static_argnums=2)  # backward needs `x` again, and nothing else is kept
def _normed(x: Float[Array, "... D"], scale: Float[Array, "D"], epsilon: float) -> Float[Array, "... D"]:
    x = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    if backend.platform() == "cpu":  # so that its gradient is a product: XLA adds up what was multiplied one by one
        inverse = inverse @ jnp.ones((1, x.shape[-1]), jnp.float32)
    x = x * inverse
    return x.astype(scale.dtype) * jnp.broadcast_to(scale, x.shape)


class FeedForward(nn.Module):
    """T5 1.1's gated block `(act(x wi_0) * x wi_1) wo`; with one activation, T5 1.0's `act(x wi) wo`."""

    mlp_dim: int
    features: int
    activations: tuple[str, ...]
    dtype: Any
    factors: Any  # of matrix products

    def setup(self) -> None:
        one, count = len(self.activations) == 1, len(self.activations)
        dense = lambda name, inside, out, *axes: Dense((inside, out), axes, 1.0, self.dtype, self.factors, name=name)
        names = ["wi"] if one else [f"wi_{i}" for i in range(count)]
        self.wide = [dense(name, self.features, self.mlp_dim, "embed", "mlp") for name in names]
        self.wo = dense("wo", self.mlp_dim, self.features, "mlp", "embed")

    def widen(self, x: Float[Array, "R S D"]) -> list[Float[Array, "R S F"]]:
        """What goes into the activations."""
        return [wi(x).astype(self.factors) for wi in self.wide]

    def narrow(
        self, hidden: list[Float[Array, "R S F"]], segments: Int[Array, "R S"] | None, keep: Float[Array, "N F"] | None
    ) -> Float[Array, "R S D"]:
        """Activates, drops features, and takes the rest back."""
        gated = _gated(self.activations, [h.astype(self.dtype) for h in hidden])
        gated = gated if segments is None else drop(gated, keep, segments)
        return self.wo(partitioning.with_sharding_constraint(gated, ("batch", "length", "mlp")))

    def __call__(
        self,
        x: Float[Array, "R S D"],
        segments: Int[Array, "R S"] | None = None,
        keep: Float[Array, "N F"] | None = None,
    ) -> Float[Array, "R S D"]:
        return self.narrow(self.widen(x), segments, keep)


@functools.partial(jax.checkpoint, static_argnums=0)  # backward computes the activations again
def _gated(activations: tuple[str, ...], hidden: list[Float[Array, "R S F"]]) -> Float[Array, "R S F"]:
    return functools.reduce(jnp.multiply, (ACTIVATIONS[name](h) for name, h in zip(activations, hidden, strict=True)))
