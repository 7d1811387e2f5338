"""Cross-entropy of targets, summed for each target and for each slot of a bank."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(logits: Float[Array, "R L V"], targets: Int[Array, "R L"], z_loss: float = 0.0) -> Float[Array, "R L"]:
    """-log p of each target token, in float32, plus `z_loss` times the squared log of the softmax normaliser."""
    normaliser = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return normaliser - chosen + z_loss * jnp.square(normaliser)


def per_target(values: Float[Array, "R L"], segments: Int[Array, "R L"], targets: int) -> Float[Array, "M"]:
    """Sums over the tokens of each target; padding belongs to none."""
    return jax.ops.segment_sum(values.ravel(), segments.ravel(), num_segments=targets + 1)[1:]


def per_slot(values: Float[Array, "N"], slots: Int[Array, "N"], count: int) -> Float[Array, "K"]:
    """Sums over the examples of each slot: the loss T5X computes with no normalising factor."""
    return jax.ops.segment_sum(values, slots, num_segments=count)
