"""T5: an encoder and a decoder that take embeddings, so that a prompt needs no subclass (Raffel et al. 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.decoder import Cache, Cross, Decoder
from prompt_tuning.dropout import Dropout
from prompt_tuning.encoder import Encoder
from prompt_tuning.layers import Stream
from prompt_tuning.stack import T5Config


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
        # Held together, or XLA on a CPU makes float32 of all of a bfloat16 table, in memory, at every step.
        tokens, table = jax.lax.optimization_barrier((tokens, self.embedding))
        return table[tokens]

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
        """Tokens as the stream has them; prompts that are placed among them are of its type, not the table's."""
        return self.token_embedder(tokens).astype(self.config.dtype)

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


def parameter_shapes(config: T5Config) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct`s, nothing allocated."""
    return _abstract(config)["params"]


def parameter_axes(config: T5Config) -> dict[str, Any]:
    """The logical axis names of every parameter, as T5X writes them."""
    return unfreeze(partitioning.get_axis_names(_abstract(config)["params_axes"]))


def _abstract(config: T5Config) -> dict[str, Any]:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)
