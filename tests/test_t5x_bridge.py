"""Under T5X itself, this project's network, prompt, inits and checkpoints do what they do here.

Needs T5X on the path; docs/from_t5x.md says how to put it there. T5X's own programs run in processes of their own.
"""

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

from prompt_tuning import base
from prompt_tuning.t5 import T5, T5Config, parameter_shapes

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
vocabulary = seqio.SentencePieceVocabulary({vocabulary!r}, 100)
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


def encoder_decoder_model(module: object) -> object:
    import seqio
    from t5x import adafactor, models

    from prompt_tuning import t5x_bridge

    vocabulary = seqio.PassThroughVocabulary(size=CASE.vocab_size, eos_id=1)
    return models.EncoderDecoderModel(
        module, vocabulary, vocabulary, adafactor.Adafactor(logical_factor_rules=t5x_bridge.factor_rules())
    )


def test_t5xs_own_beam_search_over_our_cache_gives_the_recorded_answers():
    from prompt_tuning import t5x_bridge

    golden = np.load(GOLDEN / "t5x_short.npz")
    params = random_weights(config(CASE, CASE.vocab_size))
    params["encoder"]["prompt"] = {"prompt": {"prompt": parity_inputs.prompt(CASE)}}
    params = jax.tree.map(jnp.asarray, params)
    drawn = parity_inputs.batch(CASE, 0)
    targets = np.zeros((CASE.batch, parity_inputs.DECODE_LENGTH), np.int32)
    batch = {"encoder_input_tokens": drawn["inputs"], "decoder_input_tokens": targets}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = encoder_decoder_model(
            t5x_bridge.PromptedT5(config(CASE, CASE.vocab_size), CASE.prompt_length, nn.initializers.zeros)
        )
        decode = functools.partial(model.predict_batch_with_aux, return_all_decodes=True, num_decodes=4)
        beams, aux = decode(params, batch, decoder_params={"alpha": 0.6})
    np.testing.assert_array_equal(beams, golden["beams"])
    np.testing.assert_allclose(aux["scores"], golden["beam_scores"], rtol=1e-5)


def test_t5xs_minimal_network_and_ours_agree_side_by_side():
    from t5x.examples.t5 import network

    drawn, sizes = parity_inputs.batch(CASE, 0), vars(config(CASE, CASE.vocab_size))
    params = jax.tree.map(jnp.asarray, random_weights(config(CASE, CASE.vocab_size)))
    shifted = np.pad(drawn["targets"][:, :-1], ((0, 0), (1, 0)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = network.Transformer(network.T5Config(**sizes, dropout_rate=0.0)).apply(
            {"params": params}, drawn["inputs"], shifted, drawn["targets"], enable_dropout=False
        )
    ours = T5(config(CASE, CASE.vocab_size)).apply(
        {"params": params}, jnp.asarray(drawn["inputs"]), jnp.asarray(shifted)
    )
    assert np.abs(np.asarray(ours) - np.asarray(theirs))[drawn["targets"] > 0].max() < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_t5x_reads_what_we_write_and_we_read_what_t5x_writes(tmp_path, dtype):
    from t5x import checkpoints, partitioning, train_state

    from prompt_tuning import t5x_bridge

    params = random_weights(config(CASE, CASE.vocab_size))
    ours = base.save_t5x(params, tmp_path / "ours", 7, dtype=dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        read = checkpoints.load_t5x_checkpoint(ours)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, dtype)), read["target"], params)
        assert int(read["state"]["step"]) == 7
        module = t5x_bridge.PromptedT5(config(CASE, CASE.vocab_size), CASE.prompt_length, nn.initializers.zeros)
        model = encoder_decoder_model(module)
        tokens = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), (2, 8))
        variables = model.get_initial_variables(jax.random.key(0), tokens)
        state = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
        prompted = {**params, "encoder": {**params["encoder"], "prompt": state.params["encoder"]["prompt"]}}
        state = state.replace_params(jax.tree.map(jnp.asarray, prompted)).replace_step(jnp.asarray(9, jnp.int32))
        partitioner = partitioning.PjitPartitioner(
            num_partitions=1,
            logical_axis_rules=partitioning.standard_logical_axis_rules(additional_rules=t5x_bridge.axis_rules()),
        )
        writer = checkpoints.Checkpointer(state, partitioner, str(tmp_path / "theirs"), save_dtype=jnp.dtype(dtype))
        writer.save(state)
    again = base.load_base(tmp_path / "theirs")
    assert again.step == 9 and again.digest == base.load_base(ours).digest


def test_the_prompt_starts_where_our_own_trainer_starts_it(workplace):
    from prompt_tuning import inits, slots, t5x_bridge
    from prompt_tuning.vocabulary import Vocabulary

    vocabulary, table = str(workplace / "spm.model"), parity_inputs.weight("token_embedder/embedding", (VOCAB, 16))
    start = inits.Start(5, 16, lambda ids: table[ids], Vocabulary(vocabulary), ("good", "bad"))
    ours = slots.start_bank([slots.Slot("toy", seed=3, length=5)], [start])[0]
    init = t5x_bridge.prompt_init(inits.class_labels, str(workplace / "base"), vocabulary, ("good", "bad"), seed=3)
    theirs = jax.jit(lambda key: init(key, (5, 16)))(jax.random.key(0))
    np.testing.assert_array_equal(theirs, ours)
