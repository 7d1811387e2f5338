"""Our network, trainer and decoding give the numbers of T5X with the authors' prompt modules.

Recorded by scripts/record_t5x.py; float32, dropout off, the same weights, prompt and order of data.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden import parity_inputs
from golden.parity_inputs import CASES, STEPS, Case

from prompt_tuning import decode, layout, optim
from prompt_tuning.step import Model, TrainState, slot_losses, train_step
from prompt_tuning.t5 import T5Config, parameter_shapes

GOLDEN = Path(__file__).parent / "golden"


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
def test_logits_loss_and_prompt_gradient_are_those_of_t5xs_networks(name, network):
    case, golden = CASES[name], np.load(GOLDEN / f"t5x_{name}.npz")
    ours, valid = forward(case), parity_inputs.batch(case, 0)["targets"] > 0
    assert np.abs(ours["logits"] - golden[f"{network}logits"])[valid].max() < 1e-5
    assert abs(float(ours["loss"]) - float(golden[f"{network}loss"])) < 1e-5 * float(ours["loss"])
    assert np.abs(ours["gradient"] - golden[f"{network}gradient"]).max() < 1e-5


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("origin", [0, 1_100_000])
@pytest.mark.parametrize("name", CASES)
def test_twenty_training_steps_are_those_of_t5x_with_the_authors_modules(name, origin, packing):
    case, golden = CASES[name], np.load(GOLDEN / f"t5x_{name}.npz")
    make = lambda rate: optim.adafactor(rate, step_origin=origin, weight_decay_rate=case.weight_decay)
    optimizer = optim.over_slots(make, [case.prompt_length], [case.learning_rate])
    trainable = {"prompt": {"bank": jnp.asarray(parity_inputs.prompt(case))[None]}}
    rng = jax.random.key_data(jax.random.key(0))[None]
    state, params = TrainState(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32), rng), frozen(case)
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
    relative = np.abs(np.asarray(losses) / golden[f"losses_{origin}"] - 1).max()
    assert relative < 1e-4
    assert np.abs(prompts[0] - golden[f"first_{origin}"]).max() < 1e-4
    assert np.abs(prompts[-1] - golden[f"last_{origin}"]).max() < 1e-4


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_greedy_and_beam_answers_are_those_of_t5x(name, packing):
    case, golden = CASES[name], np.load(GOLDEN / f"t5x_{name}.npz")
    params = frozen(case) | {"prompt": {"bank": jnp.asarray(parity_inputs.prompt(case))[None]}}
    batch, model = packed(case, 0, packing), Model(config(case), 1, case.prompt_length)
    settings = {"model": model, "max_length": parity_inputs.DECODE_LENGTH}
    greedy = jax.jit(functools.partial(decode.greedy, **settings))(params, batch)
    beams = jax.jit(functools.partial(decode.beam_search, **settings, beams=4, alpha=0.6, outputs=4))(params, batch)
    np.testing.assert_array_equal(greedy.tokens[:, 0], golden["greedy"])
    np.testing.assert_array_equal(beams.tokens, golden["beams"][:, ::-1])  # T5X puts the best last
    scores, finished = beams.scores / decode.brevity(beams.lengths, 0.6), np.asarray(beams.lengths) > 0
    np.testing.assert_allclose(scores[finished], golden["beam_scores"][:, ::-1][finished], rtol=1e-5)
