"""A product of bfloat16 factors is that of the rounded factors, added up in float32; so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.product import product


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), np.float64)


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("rows", [(1,), (3,), (2, 40)])
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_factors_are_rounded_and_sums_are_not(rows, stored):
    x, kernel, change = drawn(*rows, 48), drawn(48, 33, seed=1).astype(stored), drawn(*rows, 33, seed=2)
    made, back = jax.vjp(lambda x, kernel: product(x, kernel, jnp.bfloat16, jnp.float32), x, kernel)
    by_x, by_kernel = back(change)
    assert (made.dtype, by_x.dtype, by_kernel.dtype) == (jnp.float32, jnp.float32, stored)
    np.testing.assert_allclose(made, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_x, rounded(change) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    flat = lambda a: rounded(a).reshape(-1, a.shape[-1])
    tolerance = 1e-5 if stored == jnp.float32 else 1e-2
    np.testing.assert_allclose(by_kernel.astype(jnp.float32), flat(x).T @ flat(change), rtol=tolerance, atol=tolerance)


def test_a_kernel_that_is_stored_narrower_is_multiplied_as_it_is():
    x, kernel, change = drawn(2, 5, 48), drawn(48, 33, seed=1).astype(jnp.bfloat16), drawn(2, 5, 33, seed=2)
    made, back = jax.vjp(lambda x: product(x, kernel, jnp.float32, jnp.float32), x)
    np.testing.assert_allclose(made, np.asarray(x, np.float64) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    by_x = np.asarray(change, np.float64) @ rounded(kernel).T
    np.testing.assert_allclose(back(change)[0], by_x, rtol=1e-5, atol=1e-5)


def test_a_narrow_kernel_is_widened_inside_of_a_loop():
    kernel = drawn(48, 48).astype(jnp.bfloat16)
    looped = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: product(x, kernel, jnp.float32, jnp.float32), x)
    compiled = jax.jit(jax.grad(lambda x: looped(x).sum())).lower(drawn(5, 48)).compile().as_text()
    entry = compiled[compiled.index("ENTRY") :]
    assert "f32[48,48]" not in entry and "f32[48,48]" in compiled


def test_in_float32_it_is_the_plain_product():
    x, kernel = drawn(5, 7), drawn(7, 3, seed=1)
    ours = lambda x, kernel: jnp.sin(product(x, kernel, jnp.float32, jnp.float32)).sum()
    plain = lambda x, kernel: jnp.sin(x @ kernel).sum()
    for one, two in zip(jax.grad(ours, (0, 1))(x, kernel), jax.grad(plain, (0, 1))(x, kernel), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_nothing_is_kept_for_the_gradient_of_a_frozen_kernel():
    x, kernel = drawn(5, 7), drawn(7, 3, seed=1)
    _, back = jax.vjp(lambda x: product(x, kernel, jnp.float32, jnp.float32), x)
    assert x.shape not in {leaf.shape for leaf in jax.tree.leaves(back)}
