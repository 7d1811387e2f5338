"""A training step spread over devices: the mesh changes where numbers are, not what they are."""

import contextlib
import functools

import jax
import numpy as np
import pytest
from conftest import random_bank, random_items, random_params, start_state

from prompt_tuning import device, layout, optim
from prompt_tuning.step import Model, train_step
from prompt_tuning.t5 import T5Config

EIGHT = T5Config(
    vocab_size=96, emb_dim=16, num_heads=8, head_dim=2, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1
)
LENGTHS = [4, 7]


def stepped(model_parallel: int | None, at_once: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Losses and prompts after two steps, on 8 devices or (None) on one."""
    optimizer = optim.over_slots(optim.adafactor, LENGTHS, [0.3, 0.1])
    state, frozen = start_state(random_bank(LENGTHS), optimizer, [0, 1]), random_params(EIGHT)
    pure = functools.partial(train_step, model=Model(EIGHT, 2, 7), optimizer=optimizer)
    shape = layout.Shape(48, 16, (16,), at_once=at_once)
    batches = [layout.pack(random_items(10, LENGTHS, seed, EIGHT.vocab_size), shape, 7) for seed in (0, 1)]
    context = contextlib.nullcontext()
    if model_parallel:
        mesh = device.make_mesh(model_parallel)
        state, batches = device.put_everywhere(state, mesh), [device.put_batch(batch, mesh) for batch in batches]
        frozen, context = jax.device_put(frozen, device.frozen_shardings(EIGHT, mesh)), device.on(mesh)
    with context:
        step, losses = jax.jit(pure), []
        for batch in batches:
            state, metrics = step(state, frozen, batch)
            losses.append(metrics["loss"])
    return np.asarray(losses), np.asarray(state.trainable["prompt"]["bank"])


@functools.cache
def on_one_device() -> tuple[np.ndarray, np.ndarray]:
    return stepped(None)


@pytest.mark.parametrize(("model_parallel", "at_once"), [(8, None), (4, None), (1, None), (2, 8)])
def test_a_step_on_eight_devices_is_that_of_one(model_parallel, at_once):
    losses, prompts = stepped(model_parallel, at_once)
    np.testing.assert_allclose(losses, on_one_device()[0], rtol=1e-5)
    np.testing.assert_allclose(prompts, on_one_device()[1], rtol=1e-4, atol=1e-4)
