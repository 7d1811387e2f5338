"""Attention example by example is attention over masked rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, random_bank, random_items, random_params, stacked, start_state

from prompt_tuning import attention, by_example, device, layout, optim
from prompt_tuning.layout import Filled
from prompt_tuning.step import Model, slot_losses, train_step

# Rows of 64: one example alone, one up to the very end, short ones, none at all
ROWS = [[64], [20, 44], [1, 2, 3, 30], []]
R, S, H, A, N = 4, 64, 2, 8, 9  # two of the N examples are not there


def segments():
    found, next_one = np.zeros((R, S), np.int32), iter(range(1, N))
    for r, row in enumerate(ROWS):
        at = 0
        for length in row:
            found[r, at : at + length] = next(next_one)
            at += length
    return jnp.asarray(found)


def relative(drawn):
    """`[H S S]` that depends on distances alone, of `[H 2S-1]`."""
    distance = np.arange(S)[None, :] - np.arange(S)[:, None]
    return drawn[:, distance + S - 1]


def places_of(held):
    return by_example.find(by_example.stretches(held, N), (16, 32, 48, 64))


def test_places_are_those_of_the_examples_the_short_ones_first():
    places = places_of(segments())
    found = {(int(s), int(n)) for s, n in zip(places.keys.starts, places.keys.lengths, strict=True) if n}
    assert found == {(0, 64), (64, 20), (84, 44), (128, 1), (129, 2), (131, 3), (134, 30)}
    assert places.bounds.tolist() == [0, 3, 5, 6, 7]
    for w, width in enumerate(places.widths):
        for length in places.keys.lengths[places.bounds[w] : places.bounds[w + 1]]:
            assert width - 16 < length <= width


@pytest.mark.parametrize("dropped", [False, True])
def test_it_sees_and_passes_back_what_masked_rows_do(dropped):
    rng = np.random.default_rng(0)
    query, keys, values, change = (jnp.asarray(rng.normal(size=(R, S, H, A)), jnp.float32) for _ in range(4))
    table = jnp.asarray(rng.normal(size=(H, 2 * S - 1)), jnp.float32)
    keep = jnp.asarray(rng.random((R, S, H)) > 0.3, jnp.float32) / 0.7 if dropped else None
    held = segments()
    real = (held > 0)[..., None, None]

    def in_rows(query, keys, values, table):
        mask = (held[:, :, None] == held[:, None, :])[:, None]
        left = None if keep is None else jnp.swapaxes(keep, 1, 2)[:, :, None]
        heads = (jnp.swapaxes(y, 1, 2) for y in (query, keys, values))
        seen = jnp.swapaxes(attention.attend(*heads, mask, relative(table)[None], left), 1, 2)
        return (jnp.where(real, seen, 0) * change).sum(), jnp.where(real, seen, 0)

    def one_by_one(query, keys, values, table):
        line = lambda y: None if y is None else y.reshape(R * S, *y.shape[2:])
        seen = by_example.attend(line(query), line(keys), line(values), places_of(held), relative(table), line(keep))
        return (seen * line(change)).sum(), seen.reshape(R, S, H, A)

    inputs = (query, keys, values, table)
    differentiate = lambda f: jax.jit(jax.grad(f, argnums=(0, 1, 2, 3), has_aux=True))(*inputs)
    (expected, seen), (found, others) = differentiate(in_rows), differentiate(one_by_one)
    np.testing.assert_allclose(others, seen, rtol=1e-5, atol=1e-5)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * float(jnp.abs(two).max()))


@pytest.mark.parametrize("only_keys", [False, True], ids=["values", "keys are seen"])
@pytest.mark.parametrize("shared", [False, True], ids=["keys of each head", "keys of all heads"])
def test_a_few_queries_elsewhere_see_and_pass_back_what_masked_rows_do(shared, only_keys):
    """Targets look at their own example; of the 9 examples that could be, 2 are not there."""
    rng = np.random.default_rng(0)
    held = segments()
    asking, lengths = np.zeros((1, 32), np.int32), [3, 1, 4, 4, 2, 1, 4]
    asking[0, : sum(lengths)] = np.repeat(np.arange(1, 8), lengths)
    keys, values = (jnp.asarray(rng.normal(size=(R * S, *(() if shared else (H,)), A)), jnp.float32) for _ in range(2))
    query, change = (jnp.asarray(rng.normal(size=(32, H, A)), jnp.float32) for _ in range(2))
    keep = jnp.asarray(rng.random((R * S, H)) > 0.3, jnp.float32) / 0.7
    places = by_example.find(by_example.stretches(held, N), (32, 64), by_example.stretches(jnp.asarray(asking), N), 4)

    def masked(query, keys, values):
        every = lambda y: jnp.broadcast_to(y[:, None], (R * S, H, A)) if shared else y
        mask = (asking[0][:, None] == held.reshape(-1)[None])[None, None]
        heads = (jnp.swapaxes(y, 0, 1)[None] for y in (query, every(keys), every(values)))
        seen = jnp.swapaxes(attention.attend(*heads, jnp.asarray(mask), None, keep.T[None, :, None])[0], 0, 1)
        seen = jnp.where((asking[0] > 0)[:, None, None], seen, 0)
        return (seen * change).sum(), seen

    def one_by_one(query, keys, values):
        seen = by_example.attend(query, keys, values, places, None, keep)
        return (seen * change).sum(), seen

    if only_keys:
        of_values, of_pair = masked, one_by_one
        masked = lambda query, keys, _: of_values(query, keys, keys)
        one_by_one = lambda query, keys, _: of_pair(query, keys, None)
    differentiate = lambda f: jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(query, keys, values)
    (expected, seen), (found, others) = differentiate(masked), differentiate(one_by_one)
    np.testing.assert_allclose(others, seen, rtol=1e-5, atol=1e-5)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * float(jnp.abs(two).max()))


@pytest.mark.parametrize(
    ("at_once", "devices", "scan_layers", "remat", "shared", "targets"),
    [
        pytest.param(1, 1, False, False, True, 5, id="lines"),
        pytest.param(2, 1, False, False, True, 1, id="two rows at once, short targets"),
        pytest.param(1, 2, False, False, False, 1, id="two devices, a bias a layer"),
        pytest.param(2, 1, False, True, True, 5, id="remat"),
        pytest.param(1, 2, True, False, True, 1, id="two devices, scanned"),
    ],
)
def test_a_step_of_what_is_filled_is_that_of_masked_rows(at_once, devices, scan_layers, remat, shared, targets):
    """With dropout; also where few targets look at the encoder's output itself, and where more look at its keys."""
    lengths = [4, 7]
    plain = dataclasses.replace(TINY, shared_relative_bias=shared, remat=remat)
    items = [dataclasses.replace(item, targets=[item.targets[0][:targets]]) for item in random_items(9, lengths)]
    optimizer = optim.over_slots(optim.adafactor, lengths, [0.3, 0.1])
    filled = Filled((10, 16, 32), targets, block=16)
    parts = layout.Shape(64, 24, (8 * devices,), None, devices, at_once, part_examples=9)
    found = []
    for shape, filled_only in ((layout.Shape(48, 16, (16,)), None), (parts, filled)):
        config = dataclasses.replace(plain, scan_layers=scan_layers)
        frozen = stacked(random_params(plain)) if scan_layers else random_params(plain)
        pure = functools.partial(train_step, model=Model(config, 2, 7, filled_only), optimizer=optimizer)
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]).reshape(-1, 1), ("data", "model"))
        state = device.put_everywhere(start_state(random_bank(lengths), optimizer, [0, 1]), mesh)
        frozen = device.put_everywhere(frozen, mesh)
        with device.on(mesh):
            state, metrics = jax.jit(pure)(state, frozen, device.put_batch(layout.pack(items, shape, 7), mesh))
        found.append((metrics["loss"], metrics["gradient_norm"], state.trainable["prompt"]["bank"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [5, 1])
@pytest.mark.parametrize("filled", [Filled((10, 16, 32), 5, block=16), None], ids=["lines", "rows"])
def test_products_of_bfloat16_change_a_gradient_as_little_as_their_rounding_does(filled, targets):
    lengths, bank = [4, 7], random_bank([4, 7])
    items = [dataclasses.replace(item, targets=[item.targets[0][:targets]]) for item in random_items(9, lengths)]
    batch = layout.pack(items, layout.Shape(64, 24, (8,)), 7)
    filled = filled and dataclasses.replace(filled, target=targets)

    def gradient(factors, filled):
        stored = jax.tree.map(lambda leaf: leaf.astype(factors or jnp.float32), random_params(TINY))
        model = Model(dataclasses.replace(TINY, factors=factors), 2, 7, filled)

        def loss(bank):
            params = stored | {"prompt": {"bank": bank}}
            return slot_losses(params, batch, model=model, z_loss=1e-4)[0].sum()

        return jax.jit(jax.value_and_grad(loss))(jnp.asarray(bank))

    (exact, plain), (near, rounded) = gradient(None, None), gradient(jnp.bfloat16, filled)
    assert near.dtype == rounded.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, rtol=1e-2)
    assert jnp.linalg.norm(rounded - plain) < 0.03 * jnp.linalg.norm(plain)
