"""What the two stacks of a T5 have in common: its sizes, the parts of a layer, and the way through the layers."""

import dataclasses
from typing import Any

import gin
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import scan
from prompt_tuning.attention import Attention, RelativeBias
from prompt_tuning.by_example import Places
from prompt_tuning.by_row import Rows
from prompt_tuning.dropout import Keep, of_layer
from prompt_tuning.layers import FeedForward, RMSNorm


@gin.configurable
@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and variant of a T5; the defaults are T5 1.1 small."""

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")  # T5 1.0: ("relu",)
    logits_via_embedding: bool = False  # T5 1.0 ties the output to the embedding table
    shared_relative_bias: bool = True  # False: a table a layer, as in T5X's scalable_t5 and umT5
    dtype: Any = jnp.float32  # of activations
    factors: Any = None  # of what matrix products multiply, and add up as `dtype`; None: `dtype`
    remat: bool = False  # backward computes each layer again instead of keeping what it saw
    scan_layers: bool = False  # the parameters are `scan.stacked`, and a stack compiles as one layer

    @property
    def multiplied(self) -> Any:
        """The type of what matrix products multiply."""
        return self.factors or self.dtype


def norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.dtype)


def relative_bias(config: T5Config, bidirectional: bool, inside: bool) -> RelativeBias | None:
    """The table of a stack, or of a layer `inside` it, whichever of the two this T5 has."""
    return None if config.shared_relative_bias == inside else RelativeBias(config.num_heads, bidirectional)


def attention(config: T5Config) -> Attention:
    return Attention(config.num_heads, config.head_dim, config.emb_dim, config.dtype, config.multiplied)


def feed_forward(config: T5Config) -> FeedForward:
    activations = tuple(config.mlp_activations)
    return FeedForward(config.mlp_dim, config.emb_dim, activations, config.dtype, config.multiplied)


def through(
    layer: type[nn.Module], stack: Any, x: Float[Array, "R S D"], keep: Keep, *seen: Any
) -> Float[Array, "R S D"]:
    """`x` after every layer of an encoder or decoder, each of which is handed what is `seen` and its part of `keep`."""
    if not stack.config.scan_layers:
        for i, each in enumerate(stack.layers):
            x = each(x, *seen, of_layer(keep, i))
        return x
    one = lambda x, params, keep: (alone(layer, stack.config, params, x, *seen, keep), None)
    keeps = scan.of_layers(keep, len(stack.layers))
    return scan.through(one, x, stacked(stack), keeps, remat=stack.config.remat)[0]


def stacked(stack: Any) -> Any:
    """The parameters of all layers, one array a weight."""
    return stack.variables["params"][scan.STACKED]


def alone(layer: type[nn.Module], config: T5Config, params: Any, *args: Any, method: str = "__call__") -> Any:
    """What one layer makes of its arguments, outside of the stack."""
    return layer(config, parent=None).apply({"params": params}, *args, method=method)


def same_segment(queries: Int[Array, "R Q"], keys: Int[Array, "R S"]) -> Bool[Array, "R 1 Q S"]:
    """Who may look at whom; padding looks at padding, which nothing reads."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def looking(mask: Bool[Array, "R 1 S S"] | Places | Rows, x: Float[Array, "R S D"]) -> int:
    """How many positions, at most, look at one another."""
    return mask.widths[-1] if isinstance(mask, Places) else x.shape[1]
