"""A training step spread over devices: the mesh changes where numbers are, not what they are."""

import contextlib
import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_bank, random_items, random_params, stacked, start_state

from prompt_tuning import device, layout, optim, scan
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, train_step

EIGHT = T5Config(
    vocab_size=96, emb_dim=16, num_heads=8, head_dim=2, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1
)
LENGTHS = [4, 7]


def stepped(
    model_parallel: int | None, at_once: int | None = None, scan_layers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and prompts after two steps, on 8 devices or (None) on one."""
    config = dataclasses.replace(EIGHT, scan_layers=scan_layers)
    optimizer = optim.over_slots(optim.adafactor, LENGTHS, [0.3, 0.1])
    state, frozen = start_state(random_bank(LENGTHS), optimizer, [0, 1]), random_params(EIGHT)
    pure = functools.partial(train_step, model=Model(config, 2, 7), optimizer=optimizer)
    devices = 8 // model_parallel if at_once and model_parallel else 1
    shape = layout.Shape(48, 16, (16 * devices,), multiple=devices, at_once=at_once)
    batches = [layout.pack(random_items(10, LENGTHS, seed, EIGHT.vocab_size), shape, 7) for seed in (0, 1)]
    context = contextlib.nullcontext()
    if model_parallel:
        mesh = device.make_mesh(model_parallel)
        state, batches = device.put_everywhere(state, mesh), [device.put_batch(batch, mesh) for batch in batches]
        frozen, context = jax.device_put(frozen, device.frozen_shardings(EIGHT, mesh)), device.on(mesh)
    frozen = stacked(frozen) if scan_layers else frozen
    with context:
        step, losses = jax.jit(pure), []
        for batch in batches:
            state, metrics = step(state, frozen, batch)
            losses.append(metrics["loss"])
    return np.asarray(losses), np.asarray(state.trainable["prompt"]["bank"])


@functools.cache
def on_one_device() -> tuple[np.ndarray, np.ndarray]:
    return stepped(None)


@pytest.mark.parametrize(
    ("model_parallel", "at_once", "scan_layers"),
    [(8, None, False), (4, None, False), (1, None, False), (2, 2, False), (1, 1, False), (4, None, True)],
)
def test_a_step_on_eight_devices_is_that_of_one(model_parallel, at_once, scan_layers):
    losses, prompts = stepped(model_parallel, at_once, scan_layers)
    np.testing.assert_allclose(losses, on_one_device()[0], rtol=1e-5)
    np.testing.assert_allclose(prompts, on_one_device()[1], rtol=1e-4, atol=1e-4)


def test_stacked_layers_stay_where_they_were_shared_out():
    mesh = device.make_mesh(4)
    frozen = jax.device_put(random_params(EIGHT), device.frozen_shardings(EIGHT, mesh))
    one = frozen["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    stack = stacked(frozen)["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert stack.addressable_shards[0].data.shape == (1, *one.addressable_shards[0].data.shape)
    assert one.addressable_shards[0].data.size < one.size


def test_a_model_takes_its_place_once_when_its_layers_are_stacked():
    params = jax.tree.map(jnp.copy, random_params(EIGHT))
    layers = [params[stack]["layers_0"] for stack in ("encoder", "decoder")]
    made = scan.stacked(params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(layers))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(made))


SHARED = """
import jax, numpy as np
from prompt_tuning import device
device.share_cpu()
mesh = device.make_mesh()
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
array = device.put_frozen(np.arange(1 << 16, dtype=np.float32), everywhere)
addresses = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
print(jax.device_count(), len(addresses), device.make_mesh(whole_model=True).size, device.describe(mesh))
assert (np.asarray(array) == np.arange(1 << 16)).all()
"""


@pytest.mark.parametrize(
    ("flags", "devices", "whole"), [("", 2, 1), ("--xla_force_host_platform_device_count=3", 3, 3)]
)
def test_a_cpu_is_two_devices_with_one_copy_of_the_weights_unless_somebody_says_how_many(flags, devices, whole):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("a single core")
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, env=environment, check=True)
    count, copies, whole_mesh, *described = done.stdout.split()
    assert (int(count), int(copies), int(whole_mesh)) == (devices, 1, whole)
    assert " ".join(described).endswith(f"as {devices} devices")
