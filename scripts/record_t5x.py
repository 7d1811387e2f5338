"""Records what T5X does with the authors' prompt modules, for tests/test_t5x_parity.py.

    PYTHONPATH=$PROMPT_TUNING_REFERENCE:$PYTHONPATH python scripts/record_t5x.py [FOLDER]

docs/from_t5x.md sets both variables. The authors' package is called prompt_tuning too, so this script imports nothing
of this project but tests/golden/parity_inputs.py. Writes t5x_{short,long}.npz to tests/golden, or to FOLDER.

Recorded with t5x cc342d4, google-research/prompt-tuning 72285ee, flaxformer 399ea3a, jax 0.10.2, flax 0.12.8.
"""

# ruff: noqa: E402 - a module must be put in place before T5X is imported

import dataclasses
import functools
import sys
import types
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
sys.path.insert(0, str(GOLDEN.parent))

import flax

# The authors' train/utils.py imports `flax.optim`, gone since flax 0.6, to subclass a class that no recipe uses.
flax.optim = sys.modules["flax.optim"] = types.ModuleType("flax.optim")
flax.optim.MultiOptimizer = flax.optim.OptimizerDef = object

import gin
import jax
import jax.numpy as jnp
import t5.data  # noqa: F401 - has gin configurables that must exist before gin files are parsed
from flax import traverse_util
from golden import parity_inputs
from t5x import decoding, models, train_state, trainer
from t5x.examples.t5 import network

ORIGINS = (0, 1_100_000)

BINDINGS = """
from __gin__ import dynamic_registration
import seqio
from t5x import adafactor
VOCABULARY = @seqio.PassThroughVocabulary()
seqio.PassThroughVocabulary.size = {vocab_size}
seqio.PassThroughVocabulary.eos_id = 1
NUM_EMBEDDINGS = {vocab_size}
EMBED_DIM = {emb_dim}
NUM_HEADS = {num_heads}
HEAD_DIM = {head_dim}
MLP_DIM = {mlp_dim}
NUM_ENCODER_LAYERS = {layers}
NUM_DECODER_LAYERS = {layers}
PROMPT_LENGTH = {prompt_length}
Z_LOSS = {z_loss}
adafactor.Adafactor.weight_decay_rate = {weight_decay}
ACTIVATION_DTYPE = 'float32'
"""


def authors_model(case: parity_inputs.Case) -> models.EncoderDecoderModel:
    """The model that the authors' gin files describe, in the sizes of the case."""
    gin.clear_config(clear_constants=True)
    gin.parse_config_files_and_bindings(
        ["prompt_tuning/configs/models/t5_1_1_prompt.gin"], BINDINGS.format(**dataclasses.asdict(case)).splitlines()
    )
    return gin.query_parameter("%MODEL").scoped_configurable_fn()


def features(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What seqio's EncDecFeatureConverter would hand to T5X."""
    targets = batch["targets"]
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    weights = (targets > 0).astype(np.int32)
    return {
        "encoder_input_tokens": batch["inputs"],
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
    }


def start(model: models.EncoderDecoderModel, case: parity_inputs.Case, step: int) -> train_state.FlaxOptimTrainState:
    """T5X's state with the fixture's weights and prompt at `step`."""
    first = features(parity_inputs.batch(case, 0))
    shapes = {name: array.shape for name, array in first.items()}
    variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes, dict.fromkeys(shapes, jnp.int32))
    state = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
    flat = traverse_util.flatten_dict(flax.core.unfreeze(state.params), sep="/")
    new = parity_inputs.weights({name: array.shape for name, array in flat.items() if "prompt" not in name})
    new["encoder/prompt/prompt/prompt"] = parity_inputs.prompt(case)
    assert new.keys() == flat.keys()
    params = traverse_util.unflatten_dict({name: jnp.asarray(array) for name, array in new.items()}, sep="/")
    return state.replace_params(flax.core.freeze(params)).replace_step(jnp.asarray(step, jnp.int32))


def train(model: models.EncoderDecoderModel, case: parity_inputs.Case, origin: int) -> dict[str, np.ndarray]:
    """Losses of 20 steps of T5X's own training function, and the prompt after the first and the last."""
    step = jax.jit(
        functools.partial(
            trainer.train_with_lr,
            learning_rate=jnp.float32(case.learning_rate),
            dropout_rng=None,
            model=model,
            num_microbatches=None,
        )
    )
    state, losses, prompts = start(model, case, origin), [], []
    for number in range(parity_inputs.STEPS):
        state, metrics = step(state, features(parity_inputs.batch(case, number)))
        losses.append(float(metrics["loss"].compute()))
        prompts.append(np.asarray(state.params["encoder"]["prompt"]["prompt"]["prompt"]))
    return {f"losses_{origin}": np.float32(losses), f"first_{origin}": prompts[0], f"last_{origin}": prompts[-1]}


def forward(model: models.EncoderDecoderModel, case: parity_inputs.Case) -> dict[str, np.ndarray]:
    """Logits, summed loss without z-loss, prompt gradient, greedy and beam outputs before training."""
    state, batch = start(model, case, 0), features(parity_inputs.batch(case, 0))
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]

    def loss(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = flax.core.unfreeze(state.params)
        params["encoder"]["prompt"]["prompt"]["prompt"] = prompt
        logits = model._compute_logits(params, batch)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -(chosen * weights).sum(), logits

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(parity_inputs.prompt(case)))
    short = batch | {"decoder_input_tokens": np.zeros((case.batch, parity_inputs.DECODE_LENGTH), np.int32)}
    decode = functools.partial(model.predict_batch_with_aux, state.params, short, return_all_decodes=True)
    beams, aux = decode(num_decodes=4, decoder_params={"alpha": 0.6})
    model._decode_fn = functools.partial(decoding.temperature_sample, temperature=0.0)
    greedy, _ = decode(num_decodes=1)
    return {
        "logits": logits, "loss": value, "gradient": gradient,
        "greedy": greedy[:, 0], "beams": beams, "beam_scores": aux["scores"],
    }  # fmt: skip


def minimal(case: parity_inputs.Case) -> dict[str, np.ndarray]:
    """The same of T5X's minimal T5, whose prompt is P more rows of the embedding table."""
    vocab = case.vocab_size
    config = network.T5Config(
        vocab_size=vocab + case.prompt_length, emb_dim=case.emb_dim, num_heads=case.num_heads, head_dim=case.head_dim,
        mlp_dim=case.mlp_dim, num_encoder_layers=case.layers, num_decoder_layers=case.layers, dropout_rate=0.0,
        mlp_activations=("gelu", "linear"), logits_via_embedding=False, dtype=jnp.float32,
    )  # fmt: skip
    model, batch = network.Transformer(config), features(parity_inputs.batch(case, 0))
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    rows = np.broadcast_to(np.arange(vocab, vocab + case.prompt_length), (case.batch, case.prompt_length))
    inputs = np.concatenate([rows, batch["encoder_input_tokens"]], axis=1)
    args = (inputs, batch["decoder_input_tokens"], targets)
    variables = jax.eval_shape(functools.partial(model.init, enable_dropout=False), jax.random.PRNGKey(0), *args)
    names = traverse_util.flatten_dict(flax.core.unfreeze(variables["params"]), sep="/")
    shapes = {name: leaf.shape for name, leaf in names.items()}
    shapes["token_embedder/embedding"] = (vocab, case.emb_dim)
    shapes["decoder/logits_dense/kernel"] = (case.emb_dim, vocab)
    flat = parity_inputs.weights(shapes)
    flat["decoder/logits_dense/kernel"] = np.pad(flat["decoder/logits_dense/kernel"], ((0, 0), (0, case.prompt_length)))

    def loss(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = jnp.concatenate([flat["token_embedder/embedding"], prompt])
        params = traverse_util.unflatten_dict(flat | {"token_embedder/embedding": table}, sep="/")
        logits = model.apply({"params": params}, *args, enable_dropout=False)[..., :vocab]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -(chosen * weights).sum(), logits

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(parity_inputs.prompt(case)))
    return {"minimal_logits": logits, "minimal_loss": value, "minimal_gradient": gradient[case.kept]}


def record(name: str, folder: Path) -> None:
    case = parity_inputs.CASES[name]
    numbers = forward(authors_model(case), case) | minimal(case)
    for origin in ORIGINS:
        numbers |= train(authors_model(case), case, origin)
    path = folder / f"t5x_{name}.npz"
    prompts = {k: np.asarray(v)[case.kept] for k, v in numbers.items() if k.startswith(("first", "last", "gradient"))}
    np.savez_compressed(path, **{k: np.asarray(v) for k, v in numbers.items()} | prompts)
    print(path, f"{path.stat().st_size:,} bytes")
    print({k: np.asarray(v).round(4).tolist() for k, v in numbers.items() if "losses" in k or k == "greedy"})


if __name__ == "__main__":
    gin.add_config_file_search_path(str(Path(sys.modules["t5x"].__file__).parents[1]))
    import prompt_tuning

    gin.add_config_file_search_path(str(Path(prompt_tuning.__path__[0]).parent))
    for name in parity_inputs.CASES:
        record(name, Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
