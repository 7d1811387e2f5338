"""A prompt and its base as a program that ranks labels without this package: StableHLO through `jax.export`.

The folder holds the program, the weights it is called with, the vocabulary, and program.json, which says how to call
it. scripts/run_stablehlo.py does so with jax, numpy, safetensors and sentencepiece.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int
from safetensors.numpy import save_file

from prompt_tuning import disk, layout, loss
from prompt_tuning.base import Base
from prompt_tuning.errors import UserError
from prompt_tuning.prompt_file import Prompt
from prompt_tuning.step import Model
from prompt_tuning.vocabulary import Vocabulary

PROGRAM, WEIGHTS, VOCABULARY, CARD = "program.jax", "weights.safetensors", "spiece.model", "program.json"
BYTECODE = "program.mlirbc"  # the same as portable StableHLO, for what is not JAX
PLATFORMS = ("cpu", "cuda", "tpu")
LABEL_LENGTH = 512  # most tokens of a label

Program = Callable[[dict[str, Array], Int[Array, "B T"]], tuple[Float[Array, "B C"], Float[Array, "B C"]]]


def write(prompt: Prompt, base: Base, vocabulary: Vocabulary, labels: Sequence[str], length: int, out: Path) -> Path:
    """Writes the folder `out`, whole or not at all; inputs have up to `length` tokens, batches any size.

    Raises UserError for a prompt without labels, one of another base, or a folder that exists.
    """
    if not labels:
        raise UserError("This prompt's card names no labels to rank. Type --labels LABEL LABEL ...")
    base.check(prompt, prompt.card.name)
    vocabulary.check_labels(labels, LABEL_LENGTH, "the prompt")
    with disk.new_folder(out) as folder:
        weights = traverse_util.flatten_dict(base.params, sep="/") | {"prompt/bank": prompt.vectors[None]}
        weights = {name: np.asarray(array) for name, array in weights.items()}
        exported = _exported(_program(prompt, base, vocabulary, labels), weights, length)
        (folder / PROGRAM).write_bytes(exported.serialize())
        (folder / BYTECODE).write_bytes(exported.mlir_module_serialized)
        with disk.writing("the program", out.parent):
            save_file(weights, folder / WEIGHTS)
        shutil.copymode(folder / PROGRAM, folder / WEIGHTS)  # safetensors writes for the file's owner alone
        vocabulary.save(folder / VOCABULARY)
        (folder / CARD).write_text(json.dumps(_card(prompt, base, labels, length), indent=2) + "\n")
    return out


def _exported(program: Program, weights: dict[str, np.ndarray], length: int) -> jax.export.Exported:
    (batch,) = jax.export.symbolic_shape("B")
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    return jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, tokens)


def _program(prompt: Prompt, base: Base, vocabulary: Vocabulary, labels: Sequence[str]) -> Program:
    """(weights, tokens) -> (probabilities, log-likelihoods) of the labels; a row of tokens is one text, 0 behind it."""
    model = Model(base.config, 1, len(prompt.vectors))
    ids = [np.array([*vocabulary.encode(label), vocabulary.eos_id], np.int32) for label in labels]
    item = layout.Item(np.zeros(0, np.int32), ids)
    targets = layout.pack([item], layout.Shape(1, item.target_length, (1,)))  # one decoder row: every label, once
    owner = jax.nn.one_hot(targets.decoder_segments[0] - 1, len(labels))

    def run(weights: dict[str, Array], tokens: Int[Array, "B T"]) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        batch = rows(tokens, len(prompt.vectors), prompt.card.placement or "front", targets)
        losses = loss.token_losses(
            model.logits(traverse_util.unflatten_dict(weights, sep="/"), batch), batch.decoder_targets
        )
        scores = -jnp.matmul(losses, owner, precision=jax.lax.Precision.HIGHEST)  # sums, which nothing may round
        return jax.nn.softmax(scores), scores

    return run


def rows(tokens: Int[Array, "B T"], length: int, placement: str, targets: layout.Batch) -> layout.Batch:
    """One text a row behind its prompt, laid out on the device as `layout.pack` does on the host."""
    count, width = tokens.shape
    own = (tokens > 0).sum(axis=1, dtype=jnp.int32)[:, None]
    start = {"front": own * 0, "after_bos": jnp.minimum(own, 1), "behind": own}[placement]
    at = jnp.broadcast_to(jnp.arange(width + length, dtype=jnp.int32)[None], (count, width + length))
    inside = (at >= start) & (at < start + length)
    source = jnp.clip(jnp.where(at < start, at, at - length), 0, width - 1)
    one = lambda name: jnp.broadcast_to(getattr(targets, name), (count, targets.decoder_targets.shape[1]))
    nothing = jnp.zeros(1, jnp.int32)  # nothing below asks whose each example is
    return layout.Batch(
        encoder_tokens=jnp.where(inside, 0, jnp.take_along_axis(tokens, source, axis=1)),
        prompt_rows=jnp.where(inside, at - start, -1),
        encoder_segments=(at < own + length).astype(jnp.int32),
        encoder_positions=at,
        example_slots=nothing, example_numbers=nothing, target_examples=nothing,
        **{name: one(name) for name in layout.Batch._fields if name.startswith("decoder_")},
    )  # fmt: skip


def _card(prompt: Prompt, base: Base, labels: Sequence[str], length: int) -> dict[str, Any]:
    """How to call the program, and what it is."""
    card = dataclasses.asdict(prompt.card) | {"base": base.path, "base_digest": base.digest, "labels": list(labels)}
    return {
        "call": "jax.export.deserialize(program).call(weights, tokens) -> (probabilities, log_likelihoods)",
        "files": {"program": PROGRAM, "stablehlo": BYTECODE, "weights": WEIGHTS, "vocabulary": VOCABULARY},
        "tokens": {
            "dtype": "int32", "shape": ["B", length],
            "meaning": "sentencepiece ids of a text, cut to the shape, with eos_id behind them, then pad_id",
            "eos_id": Vocabulary.eos_id, "pad_id": Vocabulary.pad_id,
        },
        "outputs": {"dtype": "float32", "shape": ["B", len(labels)], "columns": list(labels)},
        "platforms": list(PLATFORMS),
        "prompt_length": len(prompt.vectors),
        "card": card,
    }  # fmt: skip
