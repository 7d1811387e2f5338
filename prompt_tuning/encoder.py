"""T5's encoder: it takes embeddings, so that a prompt needs no subclass, and rows that hold several examples."""

import functools
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import by_block, by_example, by_row, stack
from prompt_tuning.by_block import Blocks
from prompt_tuning.by_example import Places
from prompt_tuning.by_row import Rows
from prompt_tuning.dropout import Dropout, Keep, drop, of_keys
from prompt_tuning.layers import Stream
from prompt_tuning.stack import T5Config


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normed before and added after."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = stack.relative_bias(self.config, bidirectional=True, inside=True)
        self.pre_attention_layer_norm = stack.norm(self.config)
        self.attention = stack.attention(self.config)
        self.pre_mlp_layer_norm = stack.norm(self.config)
        self.mlp = stack.feed_forward(self.config)

    def __call__(
        self,
        x: Float[Array, "R S D"],
        stream: Stream,
        mask: Bool[Array, "R 1 S S"] | Places | Rows,
        bias: Float[Array, "1 H W W"] | None,
        blocks: Blocks | None,
        keep: Keep,
    ) -> Float[Array, "R S D"]:
        bias = self.relpos_bias(stack.looking(mask, x)) if self.relpos_bias else bias
        through = functools.partial(self._through, blocks, keep, stream.segments)
        query, keys, values = through(["ask"], x)
        kept_keys = of_keys(keep.get("attention"), stream.segments, stream.positions)
        seen = self.attention.look(query, keys, values, mask, bias, kept_keys)
        return through(["take_in", "widen", "narrow"], x, seen)

    def _through(
        self, blocks: Blocks | None, keep: Keep, segments: Int[Array, "R S"], steps: list[str], *values: Any
    ) -> Any:
        """What the last of these steps makes of all positions, or of the blocks that hold something.

        A step is handed `values` and what the steps before it made, and ends with its matrix product.
        """
        if blocks is None:
            for step in steps:
                values = (*values, getattr(self, step)(keep, segments, *values))
            return values[-1]
        keep = {place: of for place, of in keep.items() if place != "attention"}
        alone = lambda step: (
            lambda held, segments, *values: stack.alone(
                EncoderLayer, self.config, held[0], held[1], segments, *values, method=step
            )
        )
        return by_block.each(tuple(map(alone, steps)), blocks, (self.variables["params"], keep), segments, *values)

    def ask(self, keep: Keep, segments: Int[Array, "R S"], x: Float[Array, "R S D"]) -> tuple[Array, ...]:
        """Queries, keys and values."""
        return self.attention.ask(self.pre_attention_layer_norm(x))

    def take_in(self, keep: Keep, segments: Int[Array, "R S"], x: Float[Array, "R S D"], seen: Array) -> Array:
        """The stream with what was seen."""
        return x + drop(self.attention.out(seen), keep.get("attention_out"), segments)

    def widen(self, keep: Keep, segments: Int[Array, "R S"], x: Array, seen: Array, taken_in: Array) -> list[Array]:
        """What goes into the activations."""
        return self.mlp.widen(self.pre_mlp_layer_norm(taken_in))

    def narrow(
        self, keep: Keep, segments: Int[Array, "R S"], x: Array, seen: Array, taken_in: Array, hidden: list[Array]
    ) -> Float[Array, "R S D"]:
        """The stream with what comes out of the activations."""
        y = self.mlp.narrow(hidden, segments, keep.get("mlp_hidden"))
        return taken_in + drop(y, keep.get("mlp_out"), segments)


class Encoder(nn.Module):
    """Bidirectional over each example of a row; positions are offsets, so packing does not change them."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = stack.relative_bias(self.config, bidirectional=True, inside=False)
        layer = nn.remat(EncoderLayer) if self.config.remat else EncoderLayer
        self.layers = [layer(self.config, name=f"layers_{i}") for i in range(self.config.num_encoder_layers)]
        self.encoder_norm = stack.norm(self.config)

    def __call__(
        self, embedded: Float[Array, "R S D"], stream: Stream, dropout: Dropout | None = None
    ) -> Float[Array, "R S D"]:
        held, blocks = stream.segments, None
        mask: Array | Places | Rows
        if stream.block is None:
            heads = self.config.num_heads, self.config.head_dim, self.config.multiplied
            mask = Rows(held) if by_row.fits(held.shape[1], *heads) else stack.same_segment(held, held)
        else:
            mask = by_example.find(by_example.stretches(held, stream.count), stream.widths)
            blocks = by_block.find(held, stream.block)
        length = stack.looking(mask, embedded)
        keep = self._drawn(dropout, length) if dropout else {}
        x = drop(embedded.astype(self.config.dtype), keep.get("embedded"), held)
        x = partitioning.with_sharding_constraint(x, ("batch", "length", "embed"))
        bias = self.relpos_bias(length) if self.relpos_bias else None
        x = stack.through(EncoderLayer, self, x, keep, stream, mask, bias, blocks)
        return drop(self.encoder_norm(x), keep.get("encoded"), held)

    def _drawn(self, dropout: Dropout, length: int) -> Keep:
        sizes = self.config
        outs = {"embedded": sizes.emb_dim, "encoded": sizes.emb_dim}
        for i in range(len(self.layers)):
            outs |= {
                f"{i}/attention_out": sizes.emb_dim,
                f"{i}/mlp_hidden": sizes.mlp_dim,
                f"{i}/mlp_out": sizes.emb_dim,
            }
        heads = {f"{i}/attention": sizes.num_heads for i in range(len(self.layers))}
        return dropout.draw("encoder", (), outs) | dropout.draw("encoder attention", (length,), heads)
