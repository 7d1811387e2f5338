"""Attention example by example is attention over masked rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, random_bank, random_items, random_params, start_state

from prompt_tuning import by_example, layers, layout, optim
from prompt_tuning.step import Model, train_step

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


def test_places_are_those_of_the_examples_the_short_ones_first():
    places = by_example.find(segments(), N)
    found = {(int(s), int(n)) for s, n in zip(places.starts, places.lengths, strict=True) if n}
    assert found == {(0, 64), (64, 20), (84, 44), (128, 1), (129, 2), (131, 3), (134, 30)}
    assert places.widths == (16, 32, 48, 64)
    assert places.bounds.tolist() == [0, 3, 5, 6, 7]
    for w, width in enumerate(places.widths):
        for length in places.lengths[places.bounds[w] : places.bounds[w + 1]]:
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
        seen = jnp.swapaxes(layers.attend(*heads, mask, relative(table)[None], left), 1, 2)
        return (jnp.where(real, seen, 0) * change).sum(), jnp.where(real, seen, 0)

    def one_by_one(query, keys, values, table):
        line = lambda y: None if y is None else y.reshape(R * S, *y.shape[2:])
        places = by_example.find(held, N)
        seen = by_example.attend(line(query), line(keys), line(values), places, relative(table), line(keep))
        return (seen * line(change)).sum(), seen.reshape(R, S, H, A)

    inputs = (query, keys, values, table)
    differentiate = lambda f: jax.jit(jax.grad(f, argnums=(0, 1, 2, 3), has_aux=True))(*inputs)
    (expected, seen), (found, others) = differentiate(in_rows), differentiate(one_by_one)
    np.testing.assert_allclose(others, seen, rtol=1e-5, atol=1e-5)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * float(jnp.abs(two).max()))


@pytest.mark.parametrize("at_once", [None, 2], ids=["whole", "in parts"])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["a bias a layer", "shared bias"])
def test_a_step_with_dropout_is_that_of_masked_rows(monkeypatch, at_once, remat, shared):
    monkeypatch.setattr(by_example, "LONG", 1)
    lengths = [4, 7]
    optimizer = optim.over_slots(optim.adafactor, lengths, [0.3, 0.1])
    batch = layout.pack(random_items(4, lengths), layout.Shape(48, 16, (8,), at_once=at_once), 7)
    plain = dataclasses.replace(TINY, shared_relative_bias=shared, remat=remat)
    found = []
    for each in (False, True):
        model = Model(dataclasses.replace(plain, by_example=each), 2, 7)
        state = start_state(random_bank(lengths), optimizer, [0, 1])
        step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, dropout_rate=0.1))
        state, metrics = step(state, random_params(plain), batch)
        found.append((metrics["loss"], metrics["gradient_norm"], state.trainable["prompt"]["bank"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
