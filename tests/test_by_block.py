"""What is computed block by block is what is computed of whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import by_block

R, S, D = 2, 32, 6


def segments():
    """Blocks of 8: the first two of one row are filled, of the other all but the second."""
    held = np.zeros((R, S), np.int32)
    held[0, :11], held[1, :8], held[1, 16:] = 1, 2, 3
    return jnp.asarray(held)


def steps():
    widen = lambda held, marks, x, y: jnp.dot(jnp.sin(x) * marks[..., None].astype(jnp.float32) + y, held["wide"])
    narrow = lambda held, marks, x, y, wide: x + jnp.dot(jnp.tanh(wide), held["narrow"])
    return widen, narrow


def whole(held, marks, x, y):
    widen, narrow = steps()
    return narrow(held, marks, x, y, widen(held, marks, x, y))


def drawn():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"wide": normal(D, 10), "narrow": normal(10, D)}, normal(R, S, D), normal(R, S, D)


def test_blocks_are_found_in_order_the_filled_ones_first():
    blocks = by_block.find(segments(), 8)
    assert blocks.filled == 5
    assert blocks.order.tolist() == [0, 1, 4, 6, 7, 2, 3, 5]


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["plain", "compiled"])
def test_values_and_gradients_are_those_of_whole_rows_and_zero_in_empty_blocks(jit):
    held, x, y = drawn()
    blocks = by_block.find(segments(), 8)
    computed = jnp.repeat((segments().reshape(-1, 8) > 0).any(1), 8).reshape(R, S, 1)

    def in_blocks(x, y):
        made = by_block.each(steps(), blocks, held, segments(), x, y)
        return (made * y).sum(), made

    def in_rows(x, y):
        made = jnp.where(computed, whole(held, segments(), x, y), 0)
        return (made * y).sum(), made

    (found, made) = jit(jax.grad(in_blocks, argnums=(0, 1), has_aux=True))(x, y)
    (expected, rows) = jit(jax.grad(in_rows, argnums=(0, 1), has_aux=True))(x, y)
    np.testing.assert_allclose(made, rows, rtol=1e-5, atol=1e-6)
    assert not made[~computed[..., 0]].any()
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_the_weights_is_refused_rather_than_zero():
    held, x, y = drawn()
    loss = lambda held: by_block.each(steps(), by_block.find(segments(), 8), held, segments(), x, y).sum()
    with pytest.raises(TypeError, match="frozen weights"):
        jax.grad(loss)(held)


def test_what_is_kept_as_bfloat16_is_written_as_it_is():
    _, x, y = drawn()
    blocks, computed = by_block.find(segments(), 8), jnp.repeat((segments().reshape(-1, 8) > 0).any(1), 8)
    computed = computed.reshape(R, S, 1).astype(jnp.float32)
    halved = lambda held, marks, x, y: (x + y).astype(jnp.bfloat16)
    doubled = lambda held, marks, x, y, half: 2 * half.astype(jnp.float32)
    twice = lambda x, y: by_block.each((halved, doubled), blocks, None, segments(), x, y)
    made, back = jax.vjp(twice, x, y)
    expected = 2 * (x + y).astype(jnp.bfloat16).astype(jnp.float32) * computed
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(back(jnp.ones_like(made))[0], 2.0 * jnp.ones_like(x) * computed)
    assert by_block.each((halved,), blocks, None, segments(), x, y).dtype == jnp.bfloat16
