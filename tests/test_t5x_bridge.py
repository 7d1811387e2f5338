"""Under T5X itself, this project's network, prompt, inits and checkpoints do what they do here.

Needs T5X on the path; docs/from_t5x.md says how to put it there. T5X's own programs run in processes of their own.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from golden import parity_inputs
from golden.parity_inputs import CASES, Case

from prompt_tuning import base, export
from prompt_tuning.stack import T5Config
from prompt_tuning.t5 import T5, parameter_shapes

pytestmark = pytest.mark.t5x
pytest.importorskip("t5x", reason="T5X is not importable; docs/from_t5x.md says how to install it beside the project")

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
CASE = CASES["short"]
START = 1_100_000
VOCAB = 144  # of the toy task: 40 pieces and T5's 100 extra ids
SENTENCES = ["the film is good and warm", "the film is bad and cold", "a warm good play", "a cold bad play"]
TASK = """
import functools, seqio, tensorflow as tf
vocabulary = seqio.SentencePieceVocabulary({vocabulary!r})
def dataset(split, shuffle_files, seed=None):
    texts = {sentences!r} * 8
    return tf.data.Dataset.from_tensor_slices(
        {{"inputs": texts, "targets": ["good" if "good" in t else "bad" for t in texts]}})
def accuracy(targets, predictions):
    return {{"accuracy": 100.0 * sum(map(str.__eq__, targets, predictions)) / len(targets)}}
seqio.TaskRegistry.add(
    "toy", source=seqio.FunctionDataSource(dataset, splits=["train", "validation"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={{k: seqio.Feature(vocabulary, add_eos=True) for k in ("inputs", "targets")}},
    metric_fns=[accuracy],
)
"""


def config(case: Case, vocab_size: int) -> T5Config:
    layers = {"num_encoder_layers": case.layers, "num_decoder_layers": case.layers}
    return T5Config(vocab_size, case.emb_dim, case.num_heads, case.head_dim, case.mlp_dim, **layers)


def sizes_for_t5x() -> dict:
    """The case's configuration as T5X's own networks take it, without dropout."""
    ours = {"shared_relative_bias", "factors", "remat", "scan_layers"}
    sizes = vars(config(CASE, CASE.vocab_size)) | {"dropout_rate": 0.0}
    return {name: value for name, value in sizes.items() if name not in ours}


def random_weights(config: T5Config) -> dict:
    shapes = {k: v.shape for k, v in traverse_util.flatten_dict(parameter_shapes(config), sep="/").items()}
    return traverse_util.unflatten_dict(parity_inputs.weights(shapes), sep="/")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A vocabulary, a task and a promptless T5X checkpoint."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("t5x")
    (folder / "text").write_text("\n".join(SENTENCES * 20))
    trainer = functools.partial(sentencepiece.SentencePieceTrainer.train, minloglevel=2, hard_vocab_limit=False)
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    trainer(input=str(folder / "text"), model_prefix=str(folder / "spm"), vocab_size=40, **ids)
    (folder / "toy_task.py").write_text(TASK.format(vocabulary=str(folder / "spm.model"), sentences=SENTENCES))
    base.save_t5x(random_weights(config(CASE, VOCAB)), folder / "base", START)
    return folder


def run_t5x(workplace: Path, program: str, bindings: dict, prompt_length: int = 5) -> None:
    """`python -m t5x.<program>` with this project's gin files, on one CPU device."""
    sizes = {f"T5Config.{k}": v for k, v in vars(config(CASE, VOCAB)).items() if k != "dtype"}
    given = {
        "VOCABULARY_FILE": str(workplace / "spm.model"), "ACTIVATION_DTYPE": "float32", "PROMPT_LENGTH": prompt_length,
        "MIXTURE_OR_TASK_NAME": "toy", "MIXTURE_OR_TASK_MODULE": "toy_task",
        "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 4},
    }  # fmt: skip
    flags = [f"--gin.{name}={value!r}" for name, value in {**given, **sizes, **bindings}.items()]
    files = [f"--gin_file=t5x/{program}.gin", "--gin_file=models/t5_1_1_tiny.gin"]
    command = [sys.executable, "-m", f"t5x.{program}", f"--gin_search_paths={ROOT / 'gin'}", *files, *flags]
    paths = [str(workplace), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]


def train(workplace: Path, model_dir: str, steps: int, **more: object) -> None:
    bindings = {
        "MODEL_DIR": str(workplace / model_dir), "INITIAL_CHECKPOINT_PATH": str(workplace / f"base/checkpoint_{START}"),
        "TRAIN_STEPS": START + steps, "CLASS_LABELS": ["good", "bad"], "BATCH_SIZE": 4, "EVAL_PERIOD": 3,
        "EVAL_STEPS": 1, "RANDOM_SEED": 0, "DROPOUT_RATE": 0.0, "utils.SaveCheckpointConfig.period": 3,
        "utils.SaveCheckpointConfig.keep": None, "train/utils.DatasetConfig.seed": 0,
        "infer_eval/utils.DatasetConfig.task_feature_lengths": {"inputs": 16, "targets": 4},
    }  # fmt: skip
    run_t5x(workplace, "train", bindings | more)


def prompt_at(workplace: Path, model_dir: str, step: int) -> np.ndarray:
    folder = workplace / model_dir / "numpy_checkpoints" / f"checkpoint_{START + step}"
    return np.load(folder / "encoder.prompt.prompt.prompt")


@pytest.fixture(scope="module")
def trained(workplace) -> Path:
    """Six steps in one run, and three that another run goes on from."""
    train(workplace, "whole", 6)
    train(workplace, "resumed", 3)
    train(workplace, "resumed", 6)
    return workplace


def test_t5x_trains_the_prompt_and_nothing_else(trained):
    before = base.load_base(trained / "base")
    after = base.load_base(trained / "whole" / f"checkpoint_{START + 6}")
    assert after.digest == before.digest
    assert np.abs(prompt_at(trained, "whole", 6) - prompt_at(trained, "whole", 3)).max() > 0.1


def test_a_run_that_stops_is_resumed_under_t5x(trained):
    assert (trained / "resumed" / f"checkpoint_{START + 6}").is_dir()
    np.testing.assert_allclose(prompt_at(trained, "resumed", 3), prompt_at(trained, "whole", 3), atol=1e-5)
    assert np.abs(prompt_at(trained, "resumed", 6) - prompt_at(trained, "resumed", 3)).max() > 0.1


def test_t5x_evaluates_and_infers_with_a_prompt_file(trained):
    prompt = trained / f"whole/numpy_checkpoints/checkpoint_{START + 6}/encoder.prompt.prompt.prompt"
    np.save(trained / "prompt.npy", np.load(prompt))
    shared = {"PROMPT_FILE": str(trained / "prompt.npy"), "CHECKPOINT_PATH": str(trained / f"base/checkpoint_{START}")}
    more = {"utils.DatasetConfig.batch_size": 4, "utils.RestoreCheckpointConfig.dtype": "float32"}
    run_t5x(trained, "eval", {**shared, **more, "EVAL_OUTPUT_DIR": str(trained / "eval")})
    run_t5x(trained, "infer", {**shared, **more, "INFER_OUTPUT_DIR": str(trained / "infer")})
    metrics = json.loads((trained / "eval/inference_eval/toy-metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= metrics["accuracy"] <= 100
    answers = (trained / "infer/toy-predict.jsonl-00000-of-00001").read_text().splitlines()
    assert len(answers) == 32 and "prediction" in json.loads(answers[0])


def encoder_decoder_model() -> object:
    """T5X's model of the case over our network, which trains the prompt alone."""
    import seqio
    from t5x import adafactor, models, optimizers

    from prompt_tuning import t5x_bridge

    vocabulary = seqio.PassThroughVocabulary(size=CASE.vocab_size, eos_id=1)
    rules, prompt = t5x_bridge.factor_rules(), traverse_util.ModelParamTraversal(t5x_bridge.only())
    settings = {"multiply_by_parameter_scale": False, "weight_decay_rate": CASE.weight_decay}
    optimizer = optimizers.MultiOptimizer(((prompt, adafactor.Adafactor(**settings, logical_factor_rules=rules)),))
    module = t5x_bridge.PromptedT5(config(CASE, CASE.vocab_size), CASE.prompt_length, nn.initializers.zeros)
    return models.EncoderDecoderModel(module, vocabulary, vocabulary, optimizer, z_loss=CASE.z_loss)


def prompted() -> dict:
    """The case's weights with its prompt, where T5X has it."""
    params = random_weights(config(CASE, CASE.vocab_size))
    params["encoder"]["prompt"] = {"prompt": {"prompt": parity_inputs.prompt(CASE)}}
    return jax.tree.map(jnp.asarray, params)


def drawn_state(model: object) -> object:
    """T5X's state of a model with random parameters, in one compiled call."""
    from t5x import train_state

    tokens = {"encoder_input_tokens": (2, 8), "decoder_input_tokens": (2, 4)}
    variables = jax.jit(lambda key: model.get_initial_variables(key, tokens))(jax.random.key(1))
    return train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)


def state_at(model: object, step: int) -> object:
    return drawn_state(model).replace_params(prompted()).replace_step(jnp.asarray(step, jnp.int32))


@contextlib.contextmanager
def promotion():
    """T5X promotes types and ranks, which the tests forbid elsewhere."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_t5xs_own_beam_search_over_our_cache_gives_the_recorded_answers():
    golden, drawn = np.load(GOLDEN / "t5x_short.npz"), parity_inputs.batch(CASE, 0)
    targets = np.zeros((CASE.batch, parity_inputs.DECODE_LENGTH), np.int32)
    batch = {"encoder_input_tokens": drawn["inputs"], "decoder_input_tokens": targets}
    with promotion():
        decode = functools.partial(encoder_decoder_model().predict_batch_with_aux, return_all_decodes=True)
        beams, aux = decode(prompted(), batch, num_decodes=4, decoder_params={"alpha": 0.6})
    np.testing.assert_array_equal(beams, golden["beams"])
    np.testing.assert_allclose(aux["scores"], golden["beam_scores"], rtol=1e-5)


@pytest.mark.parametrize("origin", [0, START])
def test_t5xs_own_trainer_over_our_network_takes_the_recorded_steps(origin):
    from t5x import trainer

    golden, losses = np.load(GOLDEN / "t5x_short.npz"), []
    with promotion():
        model = encoder_decoder_model()
        settings = {"learning_rate": jnp.float32(CASE.learning_rate), "dropout_rng": None, "num_microbatches": None}
        step = jax.jit(functools.partial(trainer.train_with_lr, model=model, **settings))
        state = state_at(model, origin)
        for number in range(parity_inputs.STEPS):
            drawn = parity_inputs.batch(CASE, number)
            features = {
                "encoder_input_tokens": drawn["inputs"], "decoder_target_tokens": drawn["targets"],
                "decoder_input_tokens": np.pad(drawn["targets"][:, :-1], ((0, 0), (1, 0))),
                "decoder_loss_weights": (drawn["targets"] > 0).astype(np.int32),
            }  # fmt: skip
            state, metrics = step(state, features)
            losses.append(float(metrics["loss"].compute()))
    assert np.abs(np.asarray(losses) / golden[f"losses_{origin}"] - 1).max() < 1e-4
    assert np.abs(state.params["encoder"]["prompt"]["prompt"]["prompt"] - golden[f"last_{origin}"]).max() < 1e-4


def test_t5xs_minimal_network_and_ours_agree_side_by_side():
    from t5x.examples.t5 import network

    drawn, params = parity_inputs.batch(CASE, 0), random_weights(config(CASE, CASE.vocab_size))
    shifted = np.pad(drawn["targets"][:, :-1], ((0, 0), (1, 0)))
    with promotion():
        module = network.Transformer(network.T5Config(**sizes_for_t5x()))
        apply = jax.jit(functools.partial(module.apply, enable_dropout=False))
        theirs = apply({"params": params}, drawn["inputs"], shifted, drawn["targets"])
    ours = jax.jit(T5(config(CASE, CASE.vocab_size)).apply)({"params": params}, drawn["inputs"], shifted)
    assert np.abs(np.asarray(ours) - np.asarray(theirs))[drawn["targets"] > 0].max() < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_t5x_reads_what_we_write(tmp_path, dtype):
    from t5x import checkpoints

    params = random_weights(config(CASE, CASE.vocab_size))
    ours = base.save_t5x(params, tmp_path, 7, dtype=dtype)
    with promotion():
        read = checkpoints.load_t5x_checkpoint(ours)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, dtype)), read["target"], params)
    assert int(read["state"]["step"]) == 7


def written_by_t5x(state: object, folder: Path, dtype: object, orbax: bool = False) -> Path:
    """A checkpoint of T5X's own, with the states of the optimizer in it; in its older layout, or in Orbax's."""
    from t5x import checkpoints, partitioning

    from prompt_tuning import t5x_bridge

    folder.mkdir(exist_ok=True)
    rules = partitioning.standard_logical_axis_rules(additional_rules=t5x_bridge.axis_rules())
    with promotion():
        partitioner = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)
        given = {"train_state": state, "partitioner": partitioner, "save_dtype": jnp.dtype(dtype)}
        if orbax:
            manager = checkpoints.OrbaxCheckpointManagerInterface(directory=str(folder), **given)
            manager.save(state)
            manager.close()
        else:
            checkpoints.Checkpointer(checkpoints_dir=str(folder), **given).save(state)
    states = traverse_util.flatten_dict(state.state_dict()["state"]["param_states"])
    assert sum(np.size(leaf) for leaf in states.values() if leaf is not None) > 0
    return folder


@pytest.mark.parametrize(("dtype", "orbax"), [(jnp.float32, False), (jnp.bfloat16, False), (jnp.float32, True)])
def test_we_read_what_t5x_writes(tmp_path, dtype, orbax):
    with promotion():
        state = state_at(encoder_decoder_model(), 9)
    ours = base.save_t5x(random_weights(config(CASE, CASE.vocab_size)), tmp_path / "ours", 7, dtype=dtype)
    again = base.load_base(written_by_t5x(state, tmp_path / "theirs", dtype, orbax))
    assert again.step == 9 and again.digest == base.load_base(ours).digest
    prompt = export.load(tmp_path / "theirs").vectors
    np.testing.assert_array_equal(prompt, np.asarray(parity_inputs.prompt(CASE), dtype))


@pytest.mark.parametrize(("dtype", "orbax"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_t5xs_scanned_network_and_ours_agree_over_its_own_checkpoint(tmp_path, dtype, orbax):
    import seqio
    from t5x import adafactor, models
    from t5x.examples.scalable_t5 import network

    drawn, vocabulary = parity_inputs.batch(CASE, 0), seqio.PassThroughVocabulary(size=CASE.vocab_size, eos_id=1)
    shifted = np.pad(drawn["targets"][:, :-1], ((0, 0), (1, 0)))
    optimizer = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    with promotion():
        module = network.Transformer(network.T5Config(**sizes_for_t5x(), scan_layers=True))
        state = drawn_state(models.EncoderDecoderModel(module, vocabulary, vocabulary, optimizer))
        stored = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), state.params)
        apply = jax.jit(functools.partial(module.apply, enable_dropout=False))
        theirs = apply({"params": stored}, drawn["inputs"], shifted, drawn["targets"])
    read = base.load_base(written_by_t5x(state, tmp_path, dtype, orbax))
    assert not read.config.shared_relative_bias and read.config.num_encoder_layers == CASE.layers
    ours = jax.jit(T5(read.config).apply)({"params": read.params}, drawn["inputs"], shifted)
    assert np.abs(np.asarray(ours) - np.asarray(theirs))[drawn["targets"] > 0].max() < 1e-5


def test_the_prompt_starts_where_our_own_trainer_starts_it(workplace):
    from prompt_tuning import inits, slots, t5x_bridge
    from prompt_tuning.vocabulary import Vocabulary

    vocabulary, table = str(workplace / "spm.model"), parity_inputs.weight("token_embedder/embedding", (VOCAB, 16))
    start = inits.Start(5, 16, lambda ids: table[ids], Vocabulary(vocabulary), ("good", "bad"))
    ours = slots.start_bank([slots.Slot("toy", seed=3, length=5)], [start])[0]
    init = t5x_bridge.prompt_init(inits.class_labels, str(workplace / "base"), vocabulary, ("good", "bad"), seed=3)
    theirs = jax.jit(lambda key: init(key, (5, 16)))(jax.random.key(0))
    np.testing.assert_array_equal(theirs, ours)
