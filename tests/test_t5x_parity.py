"""Our network, trainer and decoding give the numbers of T5X with the authors' prompt modules.

scripts/record_t5x.py recorded them, and runs again beside these tests where T5X and the authors' code stand; float32,
dropout off, the same weights, prompt and order of data.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden import parity_inputs
from golden.parity_inputs import CASES, STEPS, Case

from prompt_tuning import decode, inits, layout, optim
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, TrainState, slot_losses, train_step
from prompt_tuning.t5 import parameter_shapes

GOLDEN = Path(__file__).parent / "golden"
SCRIPT = Path(__file__).parents[1] / "scripts" / "record_t5x.py"
REFERENCE = os.environ.get("PROMPT_TUNING_REFERENCE", "")  # a clone of google-research/prompt-tuning
HOW = "docs/from_t5x.md, 'How it is known to be the same', says how to enable it"

Numbers = Callable[[str], dict[str, np.ndarray]]  # what T5X gave, by the case's name


def need_reference() -> None:
    absent = [name for name in ("t5x", "flaxformer", "t5", "aqt", "chex") if importlib.util.find_spec(name) is None]
    absent += [] if Path(REFERENCE, "prompt_tuning", "prompts.py").is_file() else ["PROMPT_TUNING_REFERENCE"]
    if absent:
        pytest.skip(f"{', '.join(absent)} not to be found; {HOW}")


@pytest.fixture(scope="module", params=["recorded", pytest.param("live", marks=pytest.mark.t5x)])
def theirs(request, tmp_path_factory) -> Numbers:
    """What T5X computes, from the fixtures or now, in a process where `prompt_tuning` is the authors' package."""
    folder = GOLDEN
    if request.param == "live":
        need_reference()
        folder = tmp_path_factory.mktemp("live")
        env = os.environ | {"PYTHONPATH": os.pathsep.join([REFERENCE, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, str(SCRIPT), str(folder)]
        done = subprocess.run(command, env=env | {"XLA_FLAGS": ""}, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-1000:]
    return lambda name: dict(np.load(folder / f"t5x_{name}.npz"))


def config(case: Case) -> T5Config:
    layers = {"num_encoder_layers": case.layers, "num_decoder_layers": case.layers}
    return T5Config(case.vocab_size, case.emb_dim, case.num_heads, case.head_dim, case.mlp_dim, **layers)


def frozen(case: Case) -> dict:
    shapes = {k: v.shape for k, v in traverse_util.flatten_dict(parameter_shapes(config(case)), sep="/").items()}
    flat = {name: jnp.asarray(array) for name, array in parity_inputs.weights(shapes).items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def trimmed(rows: np.ndarray) -> list[np.ndarray]:
    return [row[row > 0] for row in rows]


def packed(case: Case, number: int, packing: bool) -> layout.Batch:
    """Batch `number`, padded as the reference does, or several examples a row."""
    drawn = parity_inputs.batch(case, number)
    examples = zip(trimmed(drawn["inputs"]), trimmed(drawn["targets"]), strict=True)
    items = [
        layout.Item(tokens, [target], number=n, prompt_length=case.prompt_length)
        for n, (tokens, target) in enumerate(examples)
    ]
    longest, wide = case.prompt_length + case.input_length, 2 if packing else 1
    shape = layout.Shape(wide * longest, wide * case.target_length, (case.batch // wide + 1,), None if packing else 1)
    return layout.pack(items, shape, case.prompt_length)


@functools.cache
def forward(case: Case) -> dict[str, np.ndarray]:
    """Loss, logits of each example's targets [B L V], and prompt gradient."""
    model, params, batch = Model(config(case), 1, case.prompt_length), frozen(case), packed(case, 0, packing=False)

    @jax.jit
    def loss(bank):
        tree = params | {"prompt": {"bank": bank}}
        return slot_losses(tree, batch, model=model, z_loss=0.0)[0].sum(), model.logits(tree, batch)

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(parity_inputs.prompt(case))[None])
    rows = batch.decoder_examples.max(1) - 1  # the longest example stands first
    by_example = np.zeros((case.batch, *logits.shape[1:]), np.float32)
    by_example[rows[rows >= 0]] = np.asarray(logits)[rows >= 0]
    return {"loss": value, "logits": by_example, "gradient": np.asarray(gradient[0][case.kept])}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("network", ["", "minimal_"], ids=["flaxformer", "minimal"])
def test_logits_loss_and_prompt_gradient_are_those_of_t5xs_networks(theirs, name, network):
    case, golden = CASES[name], theirs(name)
    ours, valid = forward(case), parity_inputs.batch(case, 0)["targets"] > 0
    assert np.abs(ours["logits"] - golden[f"{network}logits"])[valid].max() < 1e-5
    assert abs(float(ours["loss"]) - float(golden[f"{network}loss"])) < 1e-5 * float(ours["loss"])
    assert np.abs(ours["gradient"] - golden[f"{network}gradient"]).max() < 1e-5


@functools.cache
def trained(case: Case, origin: int, packing: bool) -> dict[str, np.ndarray]:
    """Losses of 20 steps, and the prompt after the first and the last."""
    make = lambda rate: optim.adafactor(rate, step_origin=origin, weight_decay_rate=case.weight_decay)
    optimizer = optim.over_slots(make, [case.prompt_length], [case.learning_rate])
    trainable = {"prompt": {"bank": jnp.asarray(parity_inputs.prompt(case))[None]}}
    rng, failures = jax.random.key_data(jax.random.key(0))[None], jnp.zeros(1, jnp.int32)
    opt_state, params = optimizer.init(trainable), frozen(case)
    state = TrainState(trainable, opt_state, jnp.zeros((), jnp.int32), rng, failures)
    model = Model(config(case), 1, case.prompt_length)

    @jax.jit
    def step(state, batch):
        loss = slot_losses(params | state.trainable, batch, model=model, z_loss=case.z_loss)[0][0]
        kwargs = {"model": model, "optimizer": optimizer, "dropout_rate": 0.0, "z_loss": case.z_loss}
        return train_step(state, params, batch, **kwargs)[0], loss

    losses, prompts = [], []
    for number in range(STEPS):
        state, loss = step(state, packed(case, number, packing))
        losses.append(float(loss))
        prompts.append(np.asarray(state.trainable["prompt"]["bank"][0])[case.kept])
    return {"losses": np.asarray(losses), "first": prompts[0], "last": prompts[-1]}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("origin", [0, 1_100_000])
@pytest.mark.parametrize("name", CASES)
def test_twenty_training_steps_are_those_of_t5x_with_the_authors_modules(theirs, name, origin, packing):
    ours, golden = trained(CASES[name], origin, packing), theirs(name)
    assert np.abs(ours["losses"] / golden[f"losses_{origin}"] - 1).max() < 1e-4
    assert np.abs(ours["first"] - golden[f"first_{origin}"]).max() < 1e-4
    assert np.abs(ours["last"] - golden[f"last_{origin}"]).max() < 1e-4


@functools.cache
def decoded(case: Case, packing: bool) -> tuple[decode.Decoded, decode.Decoded]:
    """Greedy answers, and those of a search with four beams."""
    params = frozen(case) | {"prompt": {"bank": jnp.asarray(parity_inputs.prompt(case))[None]}}
    batch, model = packed(case, 0, packing), Model(config(case), 1, case.prompt_length)
    read = functools.partial(decode.read, model=model, length=batch.encoder_tokens.shape[1])
    sources = jax.jit(read)(params, batch, batch.example_numbers)
    settings = {"model": model, "max_length": parity_inputs.DECODE_LENGTH}
    greedy = jax.jit(functools.partial(decode.greedy, **settings))(params, sources)
    return greedy, jax.jit(functools.partial(decode.beam_search, **settings, beams=4, alpha=0.6, outputs=4))(
        params, sources
    )


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_greedy_and_beam_answers_are_those_of_t5x(theirs, name, packing):
    (greedy, beams), golden = decoded(CASES[name], packing), theirs(name)
    np.testing.assert_array_equal(greedy.tokens[:, 0], golden["greedy"])
    np.testing.assert_array_equal(beams.tokens, golden["beams"][:, ::-1])  # T5X puts the best last
    scores, finished = beams.scores / decode.brevity(beams.lengths, 0.6), np.asarray(beams.lengths) > 0
    np.testing.assert_allclose(scores[finished], golden["beam_scores"][:, ::-1][finished], rtol=1e-5)


@pytest.mark.t5x
@pytest.mark.parametrize("task, norm", [("sst2", 1384.8), ("mrpc", 867.7), ("rte", 903.3)])
def test_the_prompts_that_the_authors_released_load_by_prompt_file(task, norm):
    need_reference()
    path = Path(REFERENCE, "prompt_tuning", "pretrained_prompts", "t5_1_1_lm100k_base", f"{task}.npy")
    prompt = inits.from_file(inits.Start(100, 768, embed=lambda ids: None), str(path), rng=jax.random.key(0))
    assert prompt.dtype == np.float32 and prompt.shape == (100, 768)
    assert np.linalg.norm(prompt, axis=1).mean() == pytest.approx(norm, abs=0.1)
