"""T5: an encoder and a decoder that take embeddings, so that a prompt needs no subclass (Raffel et al. 2020)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import by_block, by_example, scan
from prompt_tuning.by_block import Blocks
from prompt_tuning.by_example import Places
from prompt_tuning.dropout import Dropout, Keep, drop, of_keys, of_layer
from prompt_tuning.layers import Attention, Dense, FeedForward, RelativeBias, RMSNorm, Stream

# One dict(keys, values) a layer, each [B L H A] (scanned layers: one dict, each [N B L H A]), and the next position.
Cache = dict[str, Any]
# Keys and values of the encoder's output, a pair a layer, each [X S H A] (scanned layers: one pair, each [N X S H A]).
Cross = list[tuple[Array, Array]] | tuple[Array, Array]


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
    remat: bool = False  # backward computes each layer again instead of keeping what it saw
    scan_layers: bool = False  # the parameters are `scan.stacked`, and a stack compiles as one layer


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.dtype)


def _bias(config: T5Config, bidirectional: bool, inside: bool) -> RelativeBias | None:
    """The table of a stack, or of a layer `inside` it, whichever of the two this T5 has."""
    return None if config.shared_relative_bias == inside else RelativeBias(config.num_heads, bidirectional)


def _attention(config: T5Config) -> Attention:
    return Attention(config.num_heads, config.head_dim, config.emb_dim, config.dtype)


def _feed_forward(config: T5Config) -> FeedForward:
    return FeedForward(config.mlp_dim, config.emb_dim, tuple(config.mlp_activations), config.dtype)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normed before and added after."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = _bias(self.config, bidirectional=True, inside=True)
        self.pre_attention_layer_norm = _norm(self.config)
        self.attention = _attention(self.config)
        self.pre_mlp_layer_norm = _norm(self.config)
        self.mlp = _feed_forward(self.config)

    def __call__(
        self,
        x: Float[Array, "R S D"],
        stream: Stream,
        mask: Bool[Array, "R 1 S S"] | Places,
        bias: Float[Array, "1 H W W"] | None,
        blocks: Blocks | None,
        keep: Keep,
    ) -> Float[Array, "R S D"]:
        bias = self.relpos_bias(_looking(mask, x)) if self.relpos_bias else bias
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
            lambda held, segments, *values: _alone(
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


def _looking(mask: Bool[Array, "R 1 S S"] | Places, x: Float[Array, "R S D"]) -> int:
    """How many positions, at most, look at one another."""
    return mask.widths[-1] if isinstance(mask, Places) else x.shape[1]


class Encoder(nn.Module):
    """Bidirectional over each example of a row; positions are offsets, so packing does not change them."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = _bias(self.config, bidirectional=True, inside=False)
        layer = nn.remat(EncoderLayer) if self.config.remat else EncoderLayer
        self.layers = [layer(self.config, name=f"layers_{i}") for i in range(self.config.num_encoder_layers)]
        self.encoder_norm = _norm(self.config)

    def __call__(
        self, embedded: Float[Array, "R S D"], stream: Stream, dropout: Dropout | None = None
    ) -> Float[Array, "R S D"]:
        held, blocks = stream.segments, None
        mask: Array | Places
        if stream.block is None:
            mask = same_segment(held, held)
        else:
            mask = by_example.find(by_example.stretches(held, stream.count), stream.longest)
            blocks = by_block.find(held, stream.block)
        length = _looking(mask, embedded)
        keep = self._drawn(dropout, length) if dropout else {}
        x = drop(embedded.astype(self.config.dtype), keep.get("embedded"), held)
        x = partitioning.with_sharding_constraint(x, ("batch", "length", "embed"))
        bias = self.relpos_bias(length) if self.relpos_bias else None
        x = _through(EncoderLayer, self, x, keep, stream, mask, bias, blocks)
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


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = _bias(self.config, bidirectional=False, inside=True)
        self.pre_self_attention_layer_norm = _norm(self.config)
        self.self_attention = _attention(self.config)
        self.pre_cross_attention_layer_norm = _norm(self.config)
        self.encoder_decoder_attention = _attention(self.config)
        self.pre_mlp_layer_norm = _norm(self.config)
        self.mlp = _feed_forward(self.config)

    def project(self, encoded: Float[Array, "R S D"]) -> tuple[Array, Array]:
        """Keys and values of the encoder's output, the same at every decoding step."""
        return self.encoder_decoder_attention.project(encoded)

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
        bias = self.relpos_bias(cached["keys"].shape[1], position=index) if self.relpos_bias else bias
        y = self.pre_self_attention_layer_norm(x)
        new = dict(zip(("keys", "values"), self.self_attention.project(y), strict=True))
        put = lambda old, one: jax.lax.dynamic_update_slice_in_dim(old, one.astype(old.dtype), index, axis=1)
        cached = {name: put(cached[name], new[name]) for name in new}
        x = x + self.self_attention(y, cached["keys"], cached["values"], mask, bias)
        y = self.pre_cross_attention_layer_norm(x)
        hypotheses = y.reshape(cross[0].shape[0], -1, y.shape[-1])
        y = self.encoder_decoder_attention(hypotheses, *cross, cross_mask).reshape(y.shape)
        x = x + y
        return x + self.mlp(self.pre_mlp_layer_norm(x)), cached


class Decoder(nn.Module):
    """Left to right over each target of a row, looking at the encoder's output of its own example only."""

    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = _bias(self.config, bidirectional=False, inside=False)
        layer = nn.remat(DecoderLayer, methods=["__call__"]) if self.config.remat else DecoderLayer
        self.layers = [layer(self.config, name=f"layers_{i}") for i in range(self.config.num_decoder_layers)]
        self.decoder_norm = _norm(self.config)
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
            cross_mask = same_segment(examples, source.segments)
        else:
            asking = by_example.stretches(examples, source.count)
            looked_at = by_example.stretches(source.segments, source.count)
            cross_mask = by_example.find(looked_at, source.longest, asking, stream.longest)
        keep = self._drawn(dropout, length, _looking(cross_mask, encoded)) if dropout else {}
        x = drop(embedded.astype(self.config.dtype), keep.get("embedded"), stream.segments)
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        mask = same_segment(stream.segments, stream.segments) & causal
        bias = self.relpos_bias(length) if self.relpos_bias else None
        x = _through(DecoderLayer, self, x, keep, stream, mask, bias, encoded, cross_mask, source)
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
        if self.config.scan_layers:
            one = lambda _, params: (None, _alone(DecoderLayer, self.config, params, encoded, method="project"))
            return scan.through(one, None, _stacked(self))[1]
        return [layer.project(encoded) for layer in self.layers]

    def step(
        self, embedded: Float[Array, "B 1 D"], cache: Cache, cross: Cross, seen: Bool[Array, "X S"]
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """Hidden state of the next position of B = X * hypotheses targets, and the cache with that position added."""
        x, index = embedded.astype(self.config.dtype), cache["index"]
        length = jax.tree.leaves(cache["layers"])[0].shape[-3]
        mask = (jnp.arange(length) <= index)[None, None, None, :]
        bias = self.relpos_bias(length, position=index) if self.relpos_bias else None
        seen = seen[:, None, None, :]
        if self.config.scan_layers:
            one = lambda x, params, cached, keys_values: _alone(
                DecoderLayer, self.config, params, x, cached, index, mask, bias, keys_values, seen, method="step"
            )
            x, layers = scan.through(one, x, _stacked(self), cache["layers"], cross)
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
        return jnp.dot(x.astype(jnp.float32), table.astype(jnp.float32).T) / jnp.sqrt(jnp.float32(x.shape[-1]))


def _through(
    layer: type[nn.Module], stack: Encoder | Decoder, x: Float[Array, "R S D"], keep: Keep, *seen: Any
) -> Float[Array, "R S D"]:
    """`x` after every layer of a stack, each of which is handed what is `seen` and its part of `keep`."""
    if not stack.config.scan_layers:
        for i, each in enumerate(stack.layers):
            x = each(x, *seen, of_layer(keep, i))
        return x
    one = lambda x, params, keep: (_alone(layer, stack.config, params, x, *seen, keep), None)
    keeps = scan.of_layers(keep, len(stack.layers))
    return scan.through(one, x, _stacked(stack), keeps, remat=stack.config.remat)[0]


def _stacked(stack: Encoder | Decoder) -> Any:
    return stack.variables["params"][scan.STACKED]


def _alone(layer: type[nn.Module], config: T5Config, params: Any, *args: Any, method: str = "__call__") -> Any:
    return layer(config, parent=None).apply({"params": params}, *args, method=method)


class Embedding(nn.Module):
    """The table of token embeddings, N(0, 1) at first."""

    vocab_size: int
    features: int

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)
        shape = (self.vocab_size, self.features)
        self.embedding = partitioning.param_with_axes(
            "embedding", init, shape, jnp.float32, axes=("vocab", "embed"), module=self
        )

    def __call__(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
        return self.embedding[tokens]

    @property
    def table(self) -> Float[Array, "V D"]:
        return self.embedding


class T5(nn.Module):
    """The frozen network in four pieces: embed, encode, decode, and the cached decoding step."""

    config: T5Config

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config.vocab_size, self.config.emb_dim)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def embed(self, tokens: Int[Array, "R S"]) -> Float[Array, "R S D"]:
        return self.token_embedder(tokens)

    def encode(self, embedded: Float[Array, "R S D"], stream: Stream, dropout: Dropout | None = None) -> Array:
        """Encoder output `[R S D]` of embedded (prompted) rows."""
        return self.encoder(embedded, stream, dropout)

    def decode(
        self,
        tokens: Int[Array, "R L"],
        stream: Stream,
        examples: Int[Array, "R L"],
        encoded: Float[Array, "R S D"],
        source: Stream,
        dropout: Dropout | None = None,
    ) -> Float[Array, "R L V"]:
        """Logits of every target position, teacher-forced."""
        hidden = self.decoder(self.embed(tokens), stream, examples, encoded, source, dropout)
        return self.decoder.logits(hidden, self.token_embedder.table)

    def project(self, encoded: Float[Array, "X S D"]) -> Cross:
        """Keys and values of every decoder layer, computed once before `step`."""
        return self.decoder.project(encoded)

    def step(
        self, tokens: Int[Array, "B"], cache: Cache, cross: Cross, seen: Bool[Array, "X S"]
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the next token and the longer cache; `seen` marks the encoder positions that are not padding."""
        hidden, cache = self.decoder.step(self.embed(tokens[:, None]), cache, cross, seen)
        return self.decoder.logits(hidden[:, 0], self.token_embedder.table), cache

    def __call__(self, inputs: Int[Array, "B S"], targets: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        """Unpacked, promptless logits; creates every parameter under `init`."""
        source, stream = unpacked(inputs), unpacked(targets, padding=False)
        encoded = self.encode(self.embed(inputs), source)
        return self.decode(targets, stream, stream.segments, encoded, source)


def unpacked(tokens: Int[Array, "B S"], padding: bool = True) -> Stream:
    """One example a row; with `padding`, id 0 is none of it."""
    rows = jnp.broadcast_to(jnp.arange(1, tokens.shape[0] + 1, dtype=jnp.int32)[:, None], tokens.shape)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], tokens.shape)
    return Stream(jnp.where((tokens > 0) | (not padding), rows, 0), positions)


def same_segment(queries: Int[Array, "R Q"], keys: Int[Array, "R S"]) -> Bool[Array, "R 1 Q S"]:
    """Who may look at whom; padding looks at padding, which nothing reads."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def empty_cache(config: T5Config, batch: int, length: int) -> Cache:
    """A cache for `batch` targets of up to `length` tokens."""
    shape = (batch, length, config.num_heads, config.head_dim)
    one = lambda *lead: {name: jnp.zeros((*lead, *shape), config.dtype) for name in ("keys", "values")}
    count = config.num_decoder_layers
    layers = one(count) if config.scan_layers else [one() for _ in range(count)]
    return {"layers": layers, "index": jnp.zeros((), jnp.int32)}


def regroup(cache: Cache, of: Callable[[Float[Array, "B ..."]], Float[Array, "B ..."]]) -> Cache:
    """The cache with its targets in another order."""
    scanned = isinstance(cache["layers"], dict)
    return {**cache, "layers": jax.tree.map(jax.vmap(of) if scanned else of, cache["layers"])}


def parameter_shapes(config: T5Config) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct`s, nothing allocated."""
    return _abstract(config)["params"]


def parameter_axes(config: T5Config) -> dict[str, Any]:
    """The logical axis names of every parameter, as T5X writes them."""
    return unfreeze(partitioning.get_axis_names(_abstract(config)["params_axes"]))


def _abstract(config: T5Config) -> dict[str, Any]:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)
