"""The authors' own prompt tuning on T5X, timed on the lengths that bench.py hands over; run by it.

    python scripts/bench_t5x.py JOB.json        # prints {"seconds": a step, "memory_gib": ..., "compile_s": ...}

The model that their t5_1_1_prompt.gin describes, with random weights, dropout 0.1 and a prompt of 100, through T5X's
training function with T5X's Adafactor. Every example is padded to the same length, as T5X does. Their package is called
prompt_tuning too and has to be what `import prompt_tuning` finds, so this script imports nothing of this project.
"""

# ruff: noqa: E402 - a module must be put in place before T5X is imported

import functools
import json
import resource
import statistics
import sys
import time
import types
from pathlib import Path

import flax

# Their train/utils.py imports `flax.optim`, gone since flax 0.6, to subclass a class that no recipe uses.
flax.optim = sys.modules["flax.optim"] = types.ModuleType("flax.optim")
flax.optim.MultiOptimizer = flax.optim.OptimizerDef = object

import gin
import jax
import jax.numpy as jnp
import numpy as np
import t5.data  # noqa: F401 - has gin configurables that must exist before gin files are parsed
import t5x
from t5x import models, train_state, trainer

import prompt_tuning

BINDINGS = """
from __gin__ import dynamic_registration
import seqio
VOCABULARY = @seqio.PassThroughVocabulary()
seqio.PassThroughVocabulary.size = {vocab}
seqio.PassThroughVocabulary.eos_id = 1
NUM_EMBEDDINGS = {vocab}
EMBED_DIM = {d_model}
NUM_HEADS = {num_heads}
HEAD_DIM = {d_kv}
MLP_DIM = {d_ff}
NUM_ENCODER_LAYERS = {num_layers}
NUM_DECODER_LAYERS = {num_decoder_layers}
PROMPT_LENGTH = {prompt}
ACTIVATION_DTYPE = '{dtype}'
"""


def authors_model(job: dict) -> models.EncoderDecoderModel:
    for package in (t5x, prompt_tuning):
        gin.add_config_file_search_path(str(Path(next(iter(package.__path__))).parent))
    bindings = BINDINGS.format(
        **job["config"], vocab=job["vocab"], prompt=job["prompt"], dtype=job["dtype"]
    ).splitlines()
    gin.parse_config_files_and_bindings(["prompt_tuning/configs/models/t5_1_1_prompt.gin"], bindings)
    return gin.query_parameter("%MODEL").scoped_configurable_fn()


def features(job: dict, lengths: list[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What SeqIO's feature converter hands to T5X: inputs padded so that with the prompt they fill the length."""
    longest = job["length"] - job["prompt"]
    ids = rng.integers(2, job["vocab"], (len(lengths), longest)) * (np.arange(longest) < np.array(lengths)[:, None])
    targets = rng.integers(2, job["vocab"], (len(lengths), job["target"]))
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    texts = {"encoder_input_tokens": ids, "decoder_input_tokens": shifted, "decoder_target_tokens": targets}
    return {name: array.astype(np.int32) for name, array in texts.items()} | {
        "decoder_loss_weights": np.ones(targets.shape, np.int32)
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    model, rng = authors_model(job), np.random.default_rng(0)
    batches = [features(job, lengths, rng) for lengths in [job["lengths"][0], *job["lengths"]]]
    shapes = {name: array.shape for name, array in batches[0].items()}
    variables = jax.jit(lambda key: model.get_initial_variables(key, shapes, dict.fromkeys(shapes, jnp.int32)))(
        jax.random.PRNGKey(0)
    )
    state = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
    pure = functools.partial(trainer.train_with_lr, learning_rate=jnp.float32(0.3), model=model, num_microbatches=None)
    started = time.perf_counter()
    step = jax.jit(pure, donate_argnums=0).lower(state, batches[0], dropout_rng=jax.random.PRNGKey(1)).compile()
    compile_s, seconds = time.perf_counter() - started, []
    for number, batch in enumerate(batches):  # the first one warms up
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, dropout_rng=jax.random.PRNGKey(number)))
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": statistics.fmean(seconds[1:]), "memory_gib": memory, "compile_s": compile_s}))


if __name__ == "__main__":
    main()
