"""The same network, prompts and inits under T5X itself: `python -m t5x.train`, `t5x.eval`, `t5x.infer` with gin/t5x.

T5X wants one module that takes padded tokens and keeps its decoding cache in a flax collection. The prompt's parameter
is called `encoder/prompt/prompt/prompt`, as in the authors' code, so that their checkpoints and prompt files fit.
"""

import io
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from flax.linen import partitioning
from jaxtyping import Array, Float, Int
from t5x import adafactor, checkpoints

from prompt_tuning import base, inits, prompt_file
from prompt_tuning.decoder import Decoder, empty_cache
from prompt_tuning.dropout import Dropout
from prompt_tuning.encoder import Encoder
from prompt_tuning.errors import UserError
from prompt_tuning.layers import Stream
from prompt_tuning.prompt import place
from prompt_tuning.stack import T5Config
from prompt_tuning.t5 import Embedding, unpacked
from prompt_tuning.vocabulary import Vocabulary

Initializer = Callable[[Array, Sequence[int]], Array]
AXES = ("prompt_length", "prompt_embed")  # replicated, so that one host can write the prompt to a file


class _Vectors(nn.Module):
    length: int
    initializer: Initializer

    @nn.compact
    def __call__(self, features: int) -> Float[Array, "P D"]:
        shape = (self.length, features)
        return partitioning.param_with_axes("prompt", self.initializer, shape, jnp.float32, axes=AXES)


class _Prompt(nn.Module):
    length: int
    initializer: Initializer

    @nn.compact
    def __call__(self, features: int) -> Float[Array, "P D"]:
        return _Vectors(self.length, self.initializer, name="prompt")(features)


class PromptedEncoder(Encoder):
    """The encoder and the prompt that stands in front of its input."""

    length: int = 0
    initializer: Initializer = nn.initializers.zeros

    def setup(self) -> None:
        super().setup()
        self.prompt = _Prompt(self.length, self.initializer)


class PromptedT5(nn.Module):
    """T5 behind a prompt, with the calls that `t5x.models.EncoderDecoderModel` makes; B is batch times beams."""

    config: T5Config
    prompt_length: int
    prompt_init: Initializer
    dropout_rate: float = 0.0

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config.vocab_size, self.config.emb_dim)
        self.encoder = PromptedEncoder(self.config, self.prompt_length, self.prompt_init)
        self.decoder = Decoder(self.config)

    def encode(
        self, encoder_input_tokens: Int[Array, "B T"], encoder_segment_ids: Any = None, enable_dropout: bool = True
    ) -> Float[Array, "B S D"]:
        """Encoder output over prompt and input."""
        if encoder_segment_ids is not None:
            raise UserError(
                "T5X packs examples without room for their prompts. Type --gin.train/DatasetConfig.pack=False."
            )
        count, length = encoder_input_tokens.shape
        tokens = jnp.pad(encoder_input_tokens.astype(jnp.int32), ((0, 0), (self.prompt_length, 0)))
        rows = jnp.arange(self.prompt_length + length, dtype=jnp.int32)
        rows = jnp.broadcast_to(jnp.where(rows < self.prompt_length, rows, -1), tokens.shape)
        embedded = place(self.encoder.prompt(self.config.emb_dim)[None], rows, self.token_embedder(tokens))
        return self.encoder(embedded, self._source(encoder_input_tokens), self._dropout(count, enable_dropout))

    def decode(
        self,
        encoded: Float[Array, "B S D"],
        encoder_input_tokens: Int[Array, "B T"],
        decoder_input_tokens: Int[Array, "B L"],
        decoder_target_tokens: Int[Array, "B L"],
        encoder_segment_ids: Any = None,
        decoder_segment_ids: Any = None,
        decoder_positions: Any = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of every target position, or with `decode` those after the one token given, from the cache."""
        source, dropout = self._source(encoder_input_tokens), self._dropout(len(encoded), enable_dropout)
        embedded = self.token_embedder(decoder_input_tokens.astype(jnp.int32))
        if decode:
            cross = self.decoder.project(encoded)
            hidden, cache = self.decoder.step(embedded, self._read_cache(), cross, source.segments > 0)
            self._write_cache(cache)
        else:
            stream = unpacked(decoder_target_tokens, padding=False)
            hidden = self.decoder(embedded, stream, stream.segments, encoded, source, dropout)
        return self.decoder.logits(hidden, self.token_embedder.table)

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "B T"],
        decoder_input_tokens: Int[Array, "B L"],
        decoder_target_tokens: Int[Array, "B L"],
        encoder_segment_ids: Any = None,
        decoder_segment_ids: Any = None,
        encoder_positions: Any = None,
        decoder_positions: Any = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
    ) -> Float[Array, "B L V"]:
        """Teacher-forced logits; with `decode`, also makes a cache for as many tokens as `decoder_input_tokens` has."""
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
        if decode:
            self._write_cache(empty_cache(self.config, *decoder_input_tokens.shape))
        tokens = (encoder_input_tokens, decoder_input_tokens, decoder_target_tokens)
        return self.decode(encoded, *tokens, enable_dropout=enable_dropout)

    def _source(self, tokens: Int[Array, "B T"]) -> Stream:
        return unpacked(jnp.pad(tokens.astype(jnp.int32), ((0, 0), (self.prompt_length, 0)), constant_values=1))

    def _dropout(self, count: int, enabled: bool) -> Dropout | None:
        if not enabled or not self.dropout_rate:
            return None
        return Dropout(jax.random.split(self.make_rng("dropout"), count), self.dropout_rate)

    def _write_cache(self, cache: dict[str, Any]) -> None:
        """Under the leaf names by which T5X tells what has a batch axis."""
        names = {"keys": "cached_key", "values": "cached_value"}
        layers = {
            f"layers_{i}": {names[kind]: array for kind, array in layer.items()}
            for i, layer in enumerate(cache["layers"])
        }
        self.put_variable("cache", "decoder", {**layers, "cache_index": cache["index"]})

    def _read_cache(self) -> dict[str, Any]:
        stored = flax.core.unfreeze(self.get_variable("cache", "decoder"))
        layers = [stored[f"layers_{i}"] for i in range(self.config.num_decoder_layers)]
        renamed = [{"keys": layer["cached_key"], "values": layer["cached_value"]} for layer in layers]
        return {"layers": renamed, "index": stored["cache_index"]}


def prompt_init(
    init: inits.Init = inits.class_labels,
    base_path: str | None = None,
    vocabulary_file: str | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Initializer:
    """One of this project's inits as a flax initializer: the prompt that our own trainer starts slot 0 with.

    It depends on `seed` and not on T5X's random numbers. `base_path` is read for its embedding table only.
    """

    def initialize(_: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        table: list[np.ndarray] = []

        def embed(ids: np.ndarray) -> np.ndarray:
            if not table:
                if base_path is None:
                    raise UserError("This init needs the embedding table of the base: set INITIAL_CHECKPOINT_PATH.")
                table.append(base.open_source(base_path).read("token_embedder/embedding"))
            return table[0][np.asarray(ids)]

        vocabulary = Vocabulary(_local_copy(vocabulary_file)) if vocabulary_file else None
        start = inits.Start(shape[0], shape[1], embed, vocabulary, tuple(labels))
        with jax.ensure_compile_time_eval():  # T5X initialises while it traces
            rng = jax.random.fold_in(jax.random.key(seed), 1)
            vectors = np.asarray(init(start, rng=rng), np.float32)
        return jnp.asarray(vectors, dtype)

    return initialize


def _local_copy(file: str) -> str:
    """Our vocabulary reads local files, T5X's also gs://."""
    if "://" not in file:
        return file
    copy = Path(tempfile.mkdtemp()) / "sentencepiece.model"
    copy.write_bytes(epath.Path(file).read_bytes())
    return str(copy)


def only(regex: str = r".*/prompt/.*") -> Callable[[str, Any], bool]:
    """What T5X's MultiOptimizer trains: parameters whose whole path matches."""
    return lambda path, _: re.fullmatch(regex, path) is not None


def factor_rules() -> Any:
    """T5X's Adafactor rules, and none for the prompt: T5X then goes by its size, as our own Adafactor does."""
    rules = flax.core.unfreeze(adafactor.standard_logical_factor_rules())
    return flax.core.freeze(rules | dict.fromkeys(AXES, adafactor.FactorDim.NONE))


def axis_rules() -> tuple[tuple[str, None], ...]:
    """The prompt is replicated on all devices."""
    return tuple((name, None) for name in AXES)


def _write_npy(file: epath.Path, array: np.ndarray) -> None:
    """Whole or not at all: a bucket writes objects so by itself."""
    if "://" in str(file):
        data = io.BytesIO()
        np.save(data, array, allow_pickle=False)
        file.write_bytes(data.getvalue())
    else:
        prompt_file.save_npy(Path(file), array)


class PromptCheckpointer(checkpoints.Checkpointer):
    """T5X's checkpointer that also writes the prompt as npy, in the authors' place, for good."""

    def save(self, train_state: Any, *args: Any, **kwargs: Any) -> None:
        """First the prompt, so that whoever waits for the checkpoint finds it."""
        params = traverse_util.flatten_dict(flax.core.unfreeze(train_state.params), sep="/")
        step = f"checkpoint_{int(train_state.step)}"
        folder = epath.Path(self.checkpoints_dir) / "numpy_checkpoints" / step
        for name, array in params.items():
            if only()(name, None) and jax.process_index() == 0:
                _write_npy(folder / name.replace("/", "."), np.asarray(array))
        super().save(train_state, *args, **kwargs)
