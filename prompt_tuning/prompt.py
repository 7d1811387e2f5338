"""The bank of prompts and the layer that puts its vectors in front of the frozen embedding table."""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning
from jaxtyping import Array, Float, Int


def place(
    bank: Float[Array, "K P D"], rows: Int[Array, "R S"], embedded: Float[Array, "R S D"]
) -> Float[Array, "R S D"]:
    """Embedded rows with prompt vectors where the layout wants them (Lester et al. 2021, §2).

    `rows` holds -1 where a token stands, else the row of `bank.reshape(K * P, D)` that stands there.
    """
    vectors, stands = bank.reshape(-1, bank.shape[-1]), rows >= 0
    none = len(vectors)  # so that backward adds nothing up where a token stands, and the rest in float32
    placed = vectors.at[jnp.where(stands, rows, none)].get(mode="fill", fill_value=0)
    return jnp.where(stands[..., None], placed.astype(embedded.dtype), embedded)


class PromptBank(nn.Module):
    """K trainable prompts of up to P vectors; one prompt is a bank of one slot."""

    slots: int
    length: int
    features: int

    @nn.compact
    def __call__(self, embedded: Float[Array, "R S D"], rows: Int[Array, "R S"]) -> Float[Array, "R S D"]:
        shape = (self.slots, self.length, self.features)
        axes = ("slots", "prompt_length", "prompt_embed")  # replicated on every device
        bank = partitioning.param_with_axes("bank", nn.initializers.zeros, shape, jnp.float32, axes=axes)
        return place(bank, rows, embedded)
