"""T5's decoder: packed targets at once, teacher-forced, or one position more with a cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import backend, by_example, scan, stack
from prompt_tuning.by_example import Places
from prompt_tuning.dropout import Dropout, Keep, drop, of_keys
from prompt_tuning.layers import Dense, Stream
from prompt_tuning.product import product
from prompt_tuning.stack import T5Config

# One dict a layer of keys [B H A L] and values [B H L A] (scanned layers: one dict, N in front), and the next position.
Cache = dict[str, Any]
# Keys [X H A S] and values [X H S A] of the encoder's output, a pair a layer (scanned layers: one pair, N in front).
Cross = list[tuple[Array, Array]] | tuple[Array, Array]


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = stack.relative_bias(self.config, bidirectional=False, inside=True)
        self.pre_self_attention_layer_norm = stack.norm(self.config)
        self.self_attention = stack.attention(self.config)
        self.pre_cross_attention_layer_norm = stack.norm(self.config)
        self.encoder_decoder_attention = stack.attention(self.config)
        self.pre_mlp_layer_norm = stack.norm(self.config)
        self.mlp = stack.feed_forward(self.config)

    def project(self, encoded: Float[Array, "R S D"]) -> tuple[Array, Array]:
        """Keys and values of the encoder's output, the same at every decoding step."""
        attention = self.encoder_decoder_attention
        return attention.keep(*attention.project(encoded))

    def __call__(
        self,
        x: Float[Array, "R L D"],
        stream: Stream,
        mask: Bool[Array, "R 1 L L"],
        bias: Float[Array, "1 H L L"] | None,
        encoded: Float[Array, "R S D"],
        cross_mask: Bool[Array, "R 1 L S"] | Places,
        source: Stream,
        keep: Keep,
    ) -> Float[Array, "R L D"]:
        bias = self.relpos_bias(x.shape[1]) if self.relpos_bias else bias
        y = self.pre_self_attention_layer_norm(x)
        one = of_keys(keep.get("self_attention"), stream.segments, stream.positions)
        y = self.self_attention(y, *self.self_attention.project(y), mask, bias, one)
        x = x + drop(y, keep.get("self_attention_out"), stream.segments)
        y = self.pre_cross_attention_layer_norm(x)
        one = of_keys(keep.get("cross_attention"), source.segments, source.positions)
        y = self.encoder_decoder_attention.across(y, encoded, cross_mask, one)
        x = x + drop(y, keep.get("cross_attention_out"), stream.segments)
        y = self.mlp(self.pre_mlp_layer_norm(x), stream.segments, keep.get("mlp_hidden"))
        return x + drop(y, keep.get("mlp_out"), stream.segments)

    def step(
        self,
        x: Float[Array, "B 1 D"],
        cached: dict[str, Array],
        index: Int[Array, ""],
        mask: Bool[Array, "1 1 1 L"],
        bias: Float[Array, "1 H 1 L"] | None,
        cross: tuple[Array, Array],
        cross_mask: Bool[Array, "X 1 1 S"],
    ) -> tuple[Float[Array, "B 1 D"], dict[str, Array]]:
        """One position more; `cross` may be shared by B / X hypotheses of each of X examples."""
        bias = self.relpos_bias(cached["keys"].shape[-1], position=index) if self.relpos_bias else bias
        y = self.pre_self_attention_layer_norm(x)
        keys, values = self.self_attention.keep(*self.self_attention.project(y))
        put = lambda old, new, axis: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis)
        cached = {"keys": put(cached["keys"], keys, -1), "values": put(cached["values"], values, -2)}
        x = x + self.self_attention.recall(y, cached["keys"], cached["values"], mask, bias)
        y = self.pre_cross_attention_layer_norm(x)
        hypotheses = y.reshape(cross[0].shape[0], -1, y.shape[-1])
        x = x + self.encoder_decoder_attention.recall(hypotheses, *cross, cross_mask).reshape(y.shape)
        return x + self.mlp(self.pre_mlp_layer_norm(x)), cached


class Decoder(nn.Module):
    """Left to right over each target of a row, looking at the encoder's output of its own example only."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = stack.relative_bias(self.config, bidirectional=False, inside=False)
        layer = nn.remat(DecoderLayer, methods=["__call__"]) if self.config.remat else DecoderLayer
        self.layers = [layer(self.config, name=f"layers_{i}") for i in range(self.config.num_decoder_layers)]
        self.decoder_norm = stack.norm(self.config)
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense(
                (self.config.emb_dim, self.config.vocab_size), ("embed", "vocab"), 1.0, jnp.float32
            )

    def __call__(
        self,
        embedded: Float[Array, "R L D"],
        stream: Stream,
        examples: Int[Array, "R L"],
        encoded: Float[Array, "R S D"],
        source: Stream,
        dropout: Dropout | None = None,
    ) -> Float[Array, "R L D"]:
        """Hidden states of packed targets.

        `stream` tells the targets apart (several of one example when labels are ranked), `examples` is the segment of
        `source` that each target position looks at.
        """
        length = embedded.shape[1]
        cross_mask: Array | Places
        if source.block is None:
            cross_mask = stack.same_segment(examples, source.segments)
        else:
            asking = by_example.stretches(examples, source.count)
            looked_at = by_example.stretches(source.segments, source.count)
            widths = source.widths[::-2][::-1]  # fewer: few queries cost little, and a loop compiles long
            cross_mask = by_example.find(looked_at, widths, asking, stream.widths[-1])
        keep = self._drawn(dropout, length, stack.looking(cross_mask, encoded)) if dropout else {}
        x = drop(embedded.astype(self.config.dtype), keep.get("embedded"), stream.segments)
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        mask = stack.same_segment(stream.segments, stream.segments) & causal
        bias = self.relpos_bias(length) if self.relpos_bias else None
        x = stack.through(DecoderLayer, self, x, keep, stream, mask, bias, encoded, cross_mask, source)
        return drop(self.decoder_norm(x), keep.get("decoded"), stream.segments)

    def _drawn(self, dropout: Dropout, length: int, source_length: int) -> Keep:
        sizes, layers = self.config, range(len(self.layers))
        outs = {"embedded": sizes.emb_dim, "decoded": sizes.emb_dim}
        for i in layers:
            outs |= {f"{i}/{part}_attention_out": sizes.emb_dim for part in ("self", "cross")}
            outs |= {f"{i}/mlp_hidden": sizes.mlp_dim, f"{i}/mlp_out": sizes.emb_dim}
        heads = lambda part: {f"{i}/{part}_attention": sizes.num_heads for i in layers}
        keep = dropout.draw("decoder", (), outs) | dropout.draw("decoder attention", (length,), heads("self"))
        return keep | dropout.draw("cross attention", (source_length,), heads("cross"))

    def project(self, encoded: Float[Array, "X S D"]) -> Cross:
        """Every layer's keys and values of the encoder's output, for `step`."""
        of_layer = lambda params, encoded: stack.alone(DecoderLayer, self.config, params, encoded, method="project")
        if self.config.scan_layers:
            one = lambda _, params: (None, of_layer(params, encoded))
            return scan.through(one, None, stack.stacked(self))[1]
        layers = [self.variables["params"][f"layers_{i}"] for i in range(len(self.layers))]
        if backend.platform() != "cpu":
            return [of_layer(params, encoded) for params in layers]
        # What is multiplied for one example is turned while a core still has it at hand.
        alone = lambda encoded: [of_layer(params, encoded[None]) for params in layers]
        return jax.tree.map(lambda kept: kept[:, 0], jax.lax.map(alone, encoded))

    def step(
        self, embedded: Float[Array, "B 1 D"], cache: Cache, cross: Cross, seen: Bool[Array, "X S"]
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """Hidden state of the next position of B = X * hypotheses targets, and the cache with that position added."""
        x, index = embedded.astype(self.config.dtype), cache["index"]
        one = cache["layers"] if self.config.scan_layers else cache["layers"][0]
        length = one["keys"].shape[-1]
        mask = (jnp.arange(length) <= index)[None, None, None, :]
        bias = self.relpos_bias(length, position=index) if self.relpos_bias else None
        seen = seen[:, None, None, :]
        if self.config.scan_layers:
            one = lambda x, params, cached, keys_values: stack.alone(
                DecoderLayer, self.config, params, x, cached, index, mask, bias, keys_values, seen, method="step"
            )
            x, layers = scan.through(one, x, stack.stacked(self), cache["layers"], cross)
        else:
            layers = []
            for layer, cached, keys_values in zip(self.layers, cache["layers"], cross, strict=True):
                x, cached = layer.step(x, cached, index, mask, bias, keys_values, seen)  # type: ignore[arg-type]
                layers.append(cached)
        return self.decoder_norm(x), {"layers": layers, "index": index + 1}

    def logits(self, x: Float[Array, "... D"], table: Float[Array, "V D"]) -> Float[Array, "... V"]:
        """Float32 logits; T5 1.0 uses the embedding table and rescales."""
        if not self.config.logits_via_embedding:
            return self.logits_dense(x)
        return product(x, table.T, table.dtype, jnp.float32) / jnp.sqrt(jnp.float32(x.shape[-1]))


def empty_cache(config: T5Config, batch: int, length: int) -> Cache:
    """A cache for `batch` targets of up to `length` tokens."""
    count, heads, width = config.num_decoder_layers, config.num_heads, config.head_dim
    empty = lambda *shape: jnp.zeros(shape, config.multiplied)
    one = lambda *lead: {
        "keys": empty(*lead, batch, heads, width, length), "values": empty(*lead, batch, heads, length, width)
    }  # fmt: skip
    layers = one(count) if config.scan_layers else [one() for _ in range(count)]
    return {"layers": layers, "index": jnp.zeros((), jnp.int32)}


def regroup(cache: Cache, of: Callable[[Float[Array, "B ..."]], Float[Array, "B ..."]]) -> Cache:
    """The cache with its targets in another order."""
    scanned = isinstance(cache["layers"], dict)
    return {**cache, "layers": jax.tree.map(jax.vmap(of) if scanned else of, cache["layers"])}
