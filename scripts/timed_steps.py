"""Times steps of prompt tuning on a random T5: what scripts/bench.py and scripts/bench_device.py have in common.

Text is token ids drawn to the lengths of SST-2, RTE and BoolQ. FLOP/s are those of the tokens and prompts alone,
padding not counted, over the peak of a matrix product timed in the same process. Needs no TensorFlow, SeqIO or network.
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import allocator, configure, device, layout, optim, planning, scan, split
from prompt_tuning.layout import Item
from prompt_tuning.program import needed
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, TrainState, train_step
from prompt_tuning.t5 import parameter_shapes

SIZES = ("tiny", "small", "base", "large", "xl", "xxl")
PROMPT, TARGET = 100, 3
LENGTHS = {"sst2": (2.0, 13.0), "rte": (2.2, 75.0), "boolq": (3.5, 155.0)}  # shape and mean of a gamma, in tokens
LONGEST = 412  # with the prompt, the 512 positions the papers pad to


def t5_1_1(size: str, dtype: str | None = None) -> T5Config:
    """One of SIZES, with frozen weights of `dtype`; None: the type they have on this machine."""
    gin.clear_config()
    gin.parse_config_file(str(configure.gin_folder() / f"models/t5_1_1_{size}.gin"))
    return T5Config(**device.types(dtype or device.frozen_dtype()))


def draw(text: str, count: int, seed: int) -> np.ndarray:
    """Input lengths in tokens, EOS included."""
    shape, mean = LENGTHS[text]
    drawn = np.random.default_rng([seed, len(text)]).gamma(shape, mean / shape, count)
    return np.clip(np.round(drawn), 4, LONGEST).astype(int)


def run_job(
    python: str, script: Path, job: dict[str, Any], config: T5Config, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A script that another Python runs beside this project: told of a T5 in Hugging Face's words, and of its job."""
    sizes = {
        "d_model": config.emb_dim, "num_heads": config.num_heads, "d_kv": config.head_dim, "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers, "num_decoder_layers": config.num_decoder_layers,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job | {"config": sizes}))
        command = [python, str(script), str(file)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def measure(
    config: T5Config,
    text: str,
    batch: int,
    slots: int,
    steps: int,
    rows_at_once: int | None = None,
    scan_layers: bool = False,
    dtype: str | None = None,
) -> dict[str, float]:
    """Mean over `steps` steps, after a first one of each program, of `slots` prompts, each on `batch` examples.

    Frozen weights are stored as `dtype`; None: as what is multiplied.
    """
    mesh = device.make_mesh()
    groups, shape = laid_out(mesh, text, batch, slots, steps, rows_at_once)
    batches = [layout.pack(group, shape, PROMPT) for group in groups]
    state, optimizer = start(config, slots)
    state = device.put_everywhere(state, mesh)
    frozen = random_frozen(config, mesh, dtype)
    model = Model(config, slots, PROMPT, shape.filled)
    if scan_layers:
        model = dataclasses.replace(model, config=dataclasses.replace(config, scan_layers=True))
        frozen = scan.stacked(frozen)
    pure = functools.partial(train_step, model=model, optimizer=optimizer)
    step = jax.jit(pure, donate_argnums=0, compiler_options=device.compiler_options())
    with device.on(mesh):
        started = time.perf_counter()
        of_each_size = {one.rows: device.put_batch(one, mesh) for one in batches}
        programs = {rows: step.lower(state, frozen, one).compile() for rows, one in of_each_size.items()}
        compile_s = time.perf_counter() - started
        allocator.give_back_freed_memory()  # as a run does
        for rows, one in of_each_size.items():
            state, _ = jax.block_until_ready(programs[rows](state, frozen, one))
        memory = device.peak_memory() or 0
        run = lambda state, one: programs[one.rows](state, frozen, device.put_batch(one, mesh))[0]
        state, second, peak = _timed(run, state, batches[1:], config)
    work = [useful_flops(config, group) for group in groups[1:]]
    tokens = [sum(len(i.inputs) for i in group) for group in groups[1:]]
    return {
        "examples_per_s": slots * batch / second, "tokens_per_s": statistics.fmean(tokens) / second,
        "padding": statistics.fmean(shape.padding(one) for one in batches[1:]),
        "gflops": statistics.fmean(work) / second / 1e9, "of_peak": statistics.fmean(work) / second / peak,
        "memory_gib": memory / 2**30, "planned_gib": max(map(needed, programs.values())) / 2**30,
        "compile_s": compile_s, "save_kb": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e3, "seconds": second,
        "peak_gflops": peak / 1e9,
    }  # fmt: skip


def _timed(
    run: Callable[[TrainState, layout.Batch], TrainState], state: TrainState, batches: list[layout.Batch],
    config: T5Config,
) -> tuple[TrainState, float, float]:  # fmt: skip
    """The state after all batches, the mean seconds of each, and the peak in FLOP/s.

    A host that others share is timed step by step; an accelerator works while the host prepares what comes next.
    """
    alone = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))  # else each device would compute the product
    with jax.set_mesh(alone):
        factors = _factors(config)
    at_once = 1 if jax.default_backend() == "cpu" else len(batches)
    seconds, peaks = 0.0, []
    for first in range(0, len(batches), at_once):
        started = time.perf_counter()
        for one in batches[first : first + at_once]:
            state = run(state, one)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - started
        with jax.set_mesh(alone):
            peaks.append(_peak(*factors, config.dtype))
    return state, seconds / len(batches), statistics.median(peaks)


def laid_out(
    mesh: jax.sharding.Mesh, text: str, batch: int, slots: int, steps: int, rows_at_once: int | None
) -> tuple[list[Sequence[Item]], layout.Shape]:
    """Batches for a first step and `steps` more, and the shape they are packed in."""
    groups = [items(text, batch, slots, step) for step in range(steps + 1)]
    longest = max(item.length for group in groups for item in group), TARGET
    devices, line = mesh.shape["data"], device.line(mesh)
    shape = planning.plan(groups, longest, multiple=devices, at_once=rows_at_once, line=line)
    return groups, shape


def useful_flops(config: T5Config, group: Sequence[Item]) -> float:
    """Of a step of prompt tuning: forward, and the gradient of what the weights see."""
    return sum(2 * forward_flops(config, item.length, item.target_length) for item in group)


def forward_flops(config: T5Config, source: int, target: int) -> float:
    """Of one example with `source` encoder positions (prompt and input) and `target` decoder positions.

    A product of [a b] and [b c] counts 2abc. Softmax, norms and activations are not counted. A step that trains
    prompts costs about twice this (forward, and the gradient of what the weights see), one that trains everything
    three times.
    """
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    projections = 4 * width * joined
    mlp = (len(config.mlp_activations) + 1) * width * config.mlp_dim
    encoder = source * (projections + mlp + 2 * source * joined)
    looking = target * (projections / 2 + 2 * source * joined) + source * projections / 2
    decoder = target * (projections + mlp + 2 * target * joined) + looking
    layers = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    return 2.0 * (layers + target * width * config.vocab_size)


def random_frozen(config: T5Config, mesh: jax.sharding.Mesh, dtype: str | None = None) -> split.Params:
    """Random weights, stored as `dtype` or as what is multiplied, on every device.

    Drawn one by one, and through the host: else the most memory in use would be that of the draw.
    """
    draw = jax.jit(_drawn, static_argnums=(1, 2))  # compiled once a shape; all in one program would take minutes
    keys, stored = map(jax.random.key, itertools.count()), dtype or config.multiplied
    put = lambda leaf: device.put_frozen(jax.device_get(draw(next(keys), leaf.shape, stored)), everywhere(mesh))
    return jax.tree.map(put, parameter_shapes(config))


def _drawn(key: Any, shape: tuple[int, ...], stored: Any) -> jax.Array:
    """Matrices that keep the scale of what they multiply, and norms that change nothing."""
    weights = jax.random.normal(key, shape) / shape[0] ** 0.5 if len(shape) > 1 else jnp.ones(shape)
    return weights.astype(stored)


def everywhere(mesh: jax.sharding.Mesh) -> jax.sharding.Sharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def start(config: T5Config, slots: int) -> tuple[TrainState, optim.Optimizer]:
    """A random bank before its first step, and the optimizer."""
    drawn = np.random.default_rng(0).normal(size=(slots, PROMPT, config.emb_dim))
    bank = {"prompt": {"bank": jnp.asarray(drawn, jnp.float32)}}
    optimizer = optim.over_slots(optim.adafactor, [PROMPT] * slots, [0.3] * slots)
    keys = jax.vmap(lambda n: jax.random.key_data(jax.random.key(n)))(jnp.arange(slots))
    step, failures = jnp.zeros((), jnp.int32), jnp.zeros(slots, jnp.int32)
    return TrainState(bank, optimizer.init(bank), step, keys, failures), optimizer


def items(text: str, batch: int, slots: int, step: int) -> Sequence[Item]:
    """A step's examples, `batch` of each slot."""
    rng = np.random.default_rng(step)
    ids = lambda length: rng.integers(2, 32000, length).astype(np.int32)
    return [
        Item(ids(length), [ids(TARGET)], k, n, PROMPT)
        for k in range(slots)
        for n, length in enumerate(draw(text, batch, step * slots + k))
    ]


def _factors(config: T5Config) -> tuple[jax.Array, jax.Array, int]:
    """What `_peak` multiplies, and how often: random numbers, as a GPU multiplies ones faster."""
    a, b, c, times = (4096, 2048, 2048, 1) if jax.default_backend() == "cpu" else (8192, 8192, 8192, 8)
    drawn = lambda n, *shape: jax.random.normal(jax.random.key(n), shape).astype(config.multiplied)
    factors = drawn(0, a, b), drawn(1, b, c)
    _multiplied(*factors, config.dtype).block_until_ready()
    return *factors, times


def _peak(left: jax.Array, right: jax.Array, times: int, dtype: Any) -> float:
    """FLOP/s of a large matrix product, now."""
    started = time.perf_counter()
    jax.block_until_ready([_multiplied(left, right, dtype) for _ in range(times)])
    return 2.0 * times * left.size * right.shape[1] / (time.perf_counter() - started)


@functools.partial(jax.jit, static_argnums=2)
def _multiplied(left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    return jnp.dot(left, right, preferred_element_type=dtype)
