"""Attention row by row, as the kernels for a TPU and for a GPU compute it, is attention over masked rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, random_bank, random_items, random_params, stacked, start_state
from flax import linen as nn

from prompt_tuning import attention, by_row, device, layout, optim, tile_kernel
from prompt_tuning.step import Model, train_step


def drawn(rows, length, heads, head_dim):
    """Query, keys, values, a change, a bias, dropout and the segments of rows; the last of them is padding."""
    rng = np.random.default_rng([length, heads])
    query, keys, values, change = (
        jnp.asarray(rng.normal(size=(rows, length, heads, head_dim)), jnp.float32) for _ in range(4)
    )
    bias = jnp.asarray(rng.normal(size=(1, heads, length, length)), jnp.float32)
    keep = jnp.asarray(rng.random((rows, heads, 1, length)) > 0.3, jnp.float32) / 0.7
    segments = np.sort(rng.integers(0, 5, (rows, length)), axis=1)[:, ::-1].astype(np.int32)
    segments[-1] = 0
    return query, keys, values, change, bias, keep, jnp.asarray(segments)


def masked(query, keys, values, segments, bias, keep):
    mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    heads = (jnp.swapaxes(y, 1, 2) for y in (query, keys, values))
    return jnp.swapaxes(attention.attend(*heads, mask, bias, keep), 1, 2)


def by_kernel(query, keys, values, segments, bias, keep):
    return by_row.attend(query, keys, values, by_row.Rows(segments), bias, keep)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(by_row, "by_kernel", functools.partial(by_row.by_kernel, interpret=True))


def seen_and_passed_back(attend, case, dropped=True):
    query, keys, values, change, bias, keep, segments = case

    def total(query, keys, values, bias):
        seen = attend(query, keys, values, segments, bias, keep if dropped else None)
        return (seen * change).sum(), seen

    return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(query, keys, values, bias)


def assert_alike(found, expected):
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * float(jnp.abs(two).max()))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "head_dim"),
    [
        pytest.param(64, 4, 64, id="two heads together"),
        pytest.param(48, 3, 64, id="an odd number of heads"),
        pytest.param(40, 2, 8, id="narrow heads"),
        pytest.param(32, 2, 128, id="wide heads"),
        pytest.param(600, 2, 64, id="queries in three pieces"),
    ],
)
def test_it_sees_and_passes_back_what_masked_rows_do(interpreted, length, heads, head_dim, dropped):
    case = drawn(3, length, heads, head_dim)
    assert_alike(seen_and_passed_back(by_kernel, case, dropped), seen_and_passed_back(masked, case, dropped))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "head_dim"),
    [
        pytest.param(64, 2, 64, id="one tile"),
        pytest.param(192, 3, 16, id="three tiles"),
        pytest.param(80, 2, 32, id="a row that tiles do not divide"),
    ],
)
def test_a_gpu_sees_tile_by_tile_what_masked_rows_do(monkeypatch, length, heads, head_dim, dropped):
    monkeypatch.setattr(by_row, "by_kernel", functools.partial(by_row.by_tiles, interpret=True))
    *inputs, change, bias, keep, segments = drawn(3, length, heads, head_dim)
    stands = (segments > 0)[:, :, None, None].astype(jnp.float32)
    case = *inputs, change * stands, bias, keep, segments  # nothing comes back to padding
    found, expected = (seen_and_passed_back(attend, case, dropped) for attend in (by_kernel, masked))
    assert bool(jnp.isfinite(found[1]).all())
    assert_alike((found[0], found[1] * stands), (expected[0], expected[1] * stands))


def test_tiles_of_other_examples_are_left_out():
    segments = jnp.asarray([[1] * 100 + [2] * 28 + [3] * 64 + [0] * 64, [0] * 256])
    reach = tile_kernel._reach(segments, tile_kernel.Tiles(64, 32, 4, 2))
    np.testing.assert_array_equal(reach["first"], [[0, 0, 4, 8], [8, 8, 8, 8]])
    np.testing.assert_array_equal(reach["past"], [[4, 4, 6, 0], [0, 0, 0, 0]])


def test_cudnn_is_asked_for_what_masked_rows_see(monkeypatch):
    """cuDNN itself needs a GPU: here JAX's own implementation of the same function answers."""
    monkeypatch.setattr(by_row, "by_kernel", by_row.by_xla)
    case = drawn(3, 48, 4, 16)
    assert_alike(seen_and_passed_back(by_kernel, case), seen_and_passed_back(masked, case))


@pytest.mark.parametrize("model_parallel", [1, 2, 8])
def test_rows_and_heads_are_shared_out_over_devices(interpreted, model_parallel):
    case = drawn(8, 32, 8, 16)
    expected = seen_and_passed_back(masked, case)
    with device.on(device.make_mesh(model_parallel)):
        assert_alike(seen_and_passed_back(by_kernel, case), expected)


@pytest.mark.parametrize("around", [lambda f: f, jax.checkpoint, jax.jit], ids=["alone", "remat", "compiled"])
def test_a_frozen_bias_has_no_gradient_computed(around):
    query, keys, values, _, bias, keep, segments = drawn(2, 32, 2, 64)
    total = around(lambda query, bias: by_kernel(query, keys, values, segments, bias, keep).sum())
    program = lambda argnums: str(jax.make_jaxpr(jax.grad(total, argnums=argnums))(query, bias))
    calls = lambda program: [line for line in program.splitlines() if "= pallas_call" in line]
    most = lambda program: max(len(line.partition("=")[0].split()) for line in calls(program))
    assert most(program(0)) == 3
    assert most(program((0, 1))) == 4


@pytest.mark.parametrize("around", [lambda f: f, jax.checkpoint, jax.jit], ids=["alone", "remat", "compiled"])
def test_nor_has_it_on_a_gpu(around):
    query, keys, values, _, bias, keep, segments = drawn(2, 64, 2, 64)
    total = around(lambda query, bias: by_row.by_tiles(query, keys, values, segments, bias, keep, True).sum())
    program = lambda argnums: str(jax.make_jaxpr(jax.grad(total, argnums=argnums))(query, bias))
    assert "name=by_bias" not in program(0)
    assert "name=by_bias" in program((0, 1))


@pytest.mark.parametrize("kernel", [by_row.by_kernel, by_row.by_tiles], ids=["tpu", "gpu"])
@pytest.mark.parametrize(
    ("devices", "at_once", "scan_layers", "remat", "shared"),
    [
        pytest.param((1, 1), None, False, False, True, id="all rows"),
        pytest.param((2, 2), None, False, True, True, id="over data and model, remat"),
        pytest.param((2, 1), 4, False, False, False, id="in parts, a bias a layer"),
        pytest.param((1, 1), None, True, False, True, id="scanned"),
    ],
)
def test_a_step_by_the_kernel_is_that_of_masked_rows(monkeypatch, devices, at_once, scan_layers, remat, shared, kernel):
    lengths = [4, 7]
    plain = dataclasses.replace(TINY, shared_relative_bias=shared, remat=remat)
    optimizer = optim.over_slots(optim.adafactor, lengths, [0.3, 0.1])
    frozen = stacked(random_params(plain)) if scan_layers else random_params(plain)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[: np.prod(devices)]).reshape(devices), ("data", "model"))
    shape = layout.Shape(48, 16, (16,), multiple=mesh.shape["data"], at_once=at_once)
    batch = layout.pack(random_items(10, lengths), shape, 7)
    found = []
    monkeypatch.setattr(by_row, "by_kernel", functools.partial(kernel, interpret=True))
    for used in (False, True):
        monkeypatch.setattr(by_row, "fits", lambda *_, used=used: used)
        model = Model(dataclasses.replace(plain, scan_layers=scan_layers), 2, 7)
        state = device.put_everywhere(start_state(random_bank(lengths), optimizer, [0, 1]), mesh)
        pure = functools.partial(train_step, model=model, optimizer=optimizer)
        with device.on(mesh):
            step = jax.jit(pure)
            assert ("pallas" in str(jax.make_jaxpr(pure)(state, frozen, batch))) == used
            state, metrics = step(state, device.put_everywhere(frozen, mesh), device.put_batch(batch, mesh))
        found.append((metrics["loss"], metrics["gradient_norm"], state.trainable))
    assert_alike(found[1], found[0])


def on(kind, model_parallel=1):
    """As if what is traced were for such devices."""
    told = jax.sharding.AbstractDevice(kind, 1, "tpu" if "TPU" in kind else "gpu")
    mesh = jax.sharding.AbstractMesh((1, model_parallel), ("data", "model"), abstract_device=told)
    return jax.sharding.use_abstract_mesh(mesh)


def test_it_is_for_a_tpu_with_room_for_the_row():
    assert not by_row.fits(512, 12, 64, jnp.bfloat16)
    with device.on(device.make_mesh()):
        assert not by_row.fits(512, 12, 64, jnp.bfloat16)
    with nn.logical_axis_rules(device.RULES):
        for kind, longest in (("TPU v4", 768), ("TPU v5 lite", 2048), ("TPU v5p", 1024), ("TPU v6 lite", 2048)):
            with on(kind):
                assert by_row.fits(longest, 12, 64, jnp.bfloat16), kind
                assert not by_row.fits(8192, 12, 64, jnp.bfloat16), kind
                assert not by_row.fits(1, 12, 64, jnp.bfloat16), "a model is drawn with inputs of one token"
        with on("TPU v3"):
            assert not by_row.fits(128, 12, 64, jnp.bfloat16)
        with on("TPU v5 lite", model_parallel=8):
            assert by_row.fits(512, 16, 64, jnp.bfloat16)
            assert not by_row.fits(512, 12, 64, jnp.bfloat16), "12 heads are not shared out over 8 devices"


def test_it_is_for_an_nvidia_gpu_and_narrow_numbers():
    with nn.logical_axis_rules(device.RULES), on("NVIDIA H100 80GB HBM3"):
        assert by_row.fits(512, 12, 64, jnp.bfloat16)
        assert not by_row.fits(512, 12, 64, jnp.float32)
        assert not by_row.fits(512, 2, 256, jnp.bfloat16)
    with nn.logical_axis_rules(device.RULES), on("AMD Instinct MI300X"):
        assert not by_row.fits(512, 12, 64, jnp.bfloat16)


def exported(attend, length, kind, *unchecked):
    """The program of forward and backward, bias and all, as a device of this kind is given it."""
    query, keys, values, change, bias, keep, segments = drawn(2, length, 4, 64)
    narrow = [y.astype(jnp.bfloat16) for y in (query, keys, values, change)]

    def passed_back(query, keys, values, change, bias):
        seen, back = jax.vjp(lambda *inputs: attend(*inputs[:3], segments, inputs[3], keep), query, keys, values, bias)
        return seen, back(change)

    platform = "tpu" if "TPU" in kind else "cuda"
    program = jax.export.export(jax.jit(passed_back), platforms=[platform], disabled_checks=unchecked)
    with on(kind):
        return program(*narrow, bias).mlir_module()


def test_a_tpu_is_given_the_kernel():
    assert exported(by_kernel, 256, "TPU v5 lite").count("tpu_custom_call") >= 2


def test_a_gpu_is_given_the_kernel():
    unchecked = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")  # nobody keeps what is exported
    given = exported(by_row.by_tiles, 128, "NVIDIA H100 80GB HBM3", unchecked)
    assert given.count("@__gpu$xla.gpu.triton") == 4


def halved(*args):
    return by_row.by_xla(*args) * 0.5


def test_what_a_gpu_has_is_asked_before_it_is_used():
    asked = []

    @jax.jit
    def traced(x):
        asked.append(by_row.answers(by_row.by_xla, 16, "float32"))
        for kernel in (by_row.by_tiles, by_row.by_cudnn):
            with pytest.warns(UserWarning, match=f"{kernel.__name__}: this kernel for attention is not used, "):
                asked.append(by_row.answers(kernel, 16, "bfloat16"))
        return x + 1

    with device.on(device.make_mesh()):
        assert traced(jnp.zeros(())) == 1
    assert asked == [True, False, False], "there is no GPU here"


def test_the_first_kernel_that_answers_rightly_is_used(monkeypatch):
    monkeypatch.setattr(by_row, "by_tiles", halved)
    monkeypatch.setattr(by_row, "by_cudnn", by_row.by_xla)
    assert by_row.of_gpu(24, "float32") is halved, "a GPU that is not here is not asked"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.warns(UserWarning, match="halved: .* it answers otherwise than XLA"):
        assert by_row.of_gpu(24, "float32") is by_row.by_xla
