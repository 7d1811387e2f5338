"""The matrix product of a layer: its factors may be of a narrower type than what they add up to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: Float[Array, "... A"], kernel: Float[Array, "A F"], factors: Any, dtype: Any) -> Float[Array, "... F"]:
    """`x @ kernel` as `dtype`, of factors that are rounded to `factors`; its gradients are such products as well.

    A processor with instructions for it multiplies bfloat16 many times as fast as float32, if the sums are float32.
    """
    if _narrow(kernel, factors):  # held together, or XLA widens all kernels, in memory, before a loop
        x, kernel = jax.lax.optimization_barrier((x, kernel))
    return _multiplied("...a,af->...f", x, kernel, factors, dtype)


def _narrow(kernel: Array, factors: Any) -> bool:
    """Whether `kernel` is stored as something narrower than what is multiplied."""
    return jnp.dtype(kernel.dtype).itemsize < jnp.dtype(factors).itemsize


def _multiplied(form: str, left: Array, right: Array, factors: Any, dtype: Any) -> Array:
    return jnp.einsum(form, left.astype(factors), right.astype(factors), preferred_element_type=dtype)


def _forward(x: CustomVJPPrimal, kernel: CustomVJPPrimal, factors: Any, dtype: Any) -> tuple[Array, tuple]:
    kept = x.value if kernel.perturbed else None, jnp.zeros((), x.value.dtype), kernel.value
    return product(x.value, kernel.value, factors, dtype), kept


def _backward(factors: Any, dtype: Any, kept: tuple, change: Any) -> tuple:
    x, like, kernel = kept
    if isinstance(change, SymbolicZero):
        change = jnp.zeros(change.shape, change.dtype)
    # Held together, or XLA turns the kernel outside of a loop, in memory, where the product could read it as it is.
    held = kernel if _narrow(kernel, factors) else kernel.astype(factors)
    change, held = jax.lax.optimization_barrier((change.astype(factors), held))
    by_x = _multiplied("...f,af->...a", change, held, factors, dtype).astype(like.dtype)
    if x is None:
        return by_x, None
    return by_x, _multiplied("...a,...f->af", x, change, factors, jnp.float32).astype(kernel.dtype)


product.defvjp(_forward, _backward, symbolic_zeros=True)
