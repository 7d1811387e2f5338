"""Compiles training steps for accelerators that are not here: what memory a step takes, and what XLA thinks it costs.

    python scripts/compile_for.py v5e:2x4 --sizes xl xxl --model_parallel 8      # after: pip install "jax[tpu]"
    python scripts/compile_for.py v5p:2x2x1 --devices 1 --slots 1 8
    python scripts/compile_for.py h100 --sizes xl xxl --remat                    # after: pip install "jax[cuda12]"

The first argument is a TPU's topology as JAX names it, or h100, or h100:N for N of them. Steps are those of
scripts/bench_device.py: bfloat16, prompts of 100 vectors, BoolQ's lengths.

`estimated` is of a TPU alone: the share of the matrix-product peak that useful FLOP/s have if a step takes as many
cycles as the compiler estimates for what XLA compiles, and schedules for the attention's kernel. It leaves out what
devices wait for one another.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import tpu
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parents[1]))  # an uninstalled checkout will do

import timed_steps

from prompt_tuning import by_row, device, layout, row_kernel
from prompt_tuning.program import needed
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, train_step
from prompt_tuning.t5 import parameter_shapes

DUMP = "--xla_jf_dump_to={} --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true"
BEYOND = 1e12  # cycles: what the compiler writes where it has no estimate
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
}
platform_name: "CUDA" runtime_version { major: 12 minor: 9 } dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", help="v5e:2x4, v5p:2x2x1, v6e:2x2, ..., h100 or h100:N")
    parser.add_argument("--devices", type=int, help="only so many of them")
    parser.add_argument("--model_parallel", type=int, default=1, help="as MODEL_PARALLEL")
    parser.add_argument("--sizes", nargs="+", default=["base", "large", "xl"], choices=timed_steps.SIZES)
    parser.add_argument("--batch", type=int, default=32, help="examples of each slot")
    parser.add_argument("--slots", nargs="+", type=int, default=[1])
    parser.add_argument("--remat", action="store_true", help="as REMAT")
    parser.add_argument("--rows_at_once", type=int, help="as ROWS_AT_ONCE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(globals()[options.device](**json.loads(options.one))))
        return
    library, extra = ("jax_cuda12_plugin", "cuda12") if options.device.startswith("h100") else ("libtpu", "tpu")
    if importlib.util.find_spec(library) is None:
        parser.error(f'compiling for {options.device} takes {library}. Type: pip install "jax[{extra}]"')
    names = ("rows", 12), ("padding", 8), ("GiB", 7), ("of", 4), ("TFLOP", 8), ("estimated", 10), ("compile s", 10)
    print("  size slots", *(f"{name:>{width}}" for name, width in names))
    told = "devices", "model_parallel", "batch", "remat", "rows_at_once"
    for size in options.sizes:
        for slots in options.slots:
            given = {"kind": options.device, "size": size, "slots": slots}
            row = alone("step", given | {name: getattr(options, name) for name in told})
            print(f"{size:>6} {slots:>5} {row if isinstance(row, str) else _cells(row)}", flush=True)


def alone(what: str, given: dict[str, Any], flags: str = "") -> Any:
    """What the function `what` returns in a process of its own, or why it does not; libtpu is told `flags`."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "LIBTPU_INIT_ARGS": flags,
    }  # fmt: skip
    command = [sys.executable, __file__, what, "--one", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    too_much = re.search(r"Used (\S+) of (\S+) hbm|\((\S+)\) exceeds available HBM \((\S+)\)", done.stderr)
    if too_much:
        needs, room = (found for found in too_much.groups() if found)
        return f"does not fit: it needs {needs}, and {room} are there (--remat and --rows_at_once need less)"
    errors = [line for line in done.stderr.splitlines() if re.match(r"\S+(Error|Exception)\b", line)]
    return (errors or ["it failed"])[-1][:200]


def _cells(row: dict[str, Any]) -> str:
    estimate = "" if row["estimate"] is None else f"{row['estimate']:.0%}"
    return (
        f"{row['rows']:>12} {row['padding']:>8.0%} {row['gib']:>7.1f} {row['room_gib']:>4.0f}"
        f" {row['tflop']:>8.1f} {estimate:>10} {row['compile_s']:>10.0f}"
    )


def step(
    kind: str, size: str, slots: int, devices: int | None, model_parallel: int, batch: int, remat: bool,
    rows_at_once: int | None,
) -> dict[str, Any]:  # fmt: skip
    """What is known of a step, of each device, when it has been compiled."""
    mesh = _mesh(kind, devices, model_parallel)
    wide = {"dtype": jnp.dtype(jnp.bfloat16), "factors": None, "remat": remat}
    config = dataclasses.replace(timed_steps.t5_1_1(size), **wide)
    groups, shape = timed_steps.laid_out(mesh, "boolq", batch, slots, 3, rows_at_once)
    fullest = max(groups, key=lambda group: sum(item.length for item in group))
    packed = layout.pack(fullest, shape, timed_steps.PROMPT)
    state, optimizer = timed_steps.start(config, slots)
    model = Model(config, slots, timed_steps.PROMPT, shape.filled)
    pure = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer), donate_argnums=0)
    given, started = _given(state, config, packed, mesh), time.perf_counter()
    with device.on(mesh):
        program = pure.lower(*given).compile()
        seconds, room, estimate = time.perf_counter() - started, _room(mesh), None
        useful = timed_steps.useful_flops(config, fullest) / mesh.size
        if mesh.devices.flat[0].platform == "tpu":
            each = packed.rows // mesh.shape["data"]
            if packed.in_parts:
                each = int((packed.encoder_segments > 0).any((1, 2)).sum()) * shape.at_once // mesh.shape["data"]
            cycles = _cycles(program.as_text()) * (each // (shape.at_once or each))
            cycles += each * _cycles_of_attention(kind, config, model_parallel, shape.row_length)
            estimate = useful / (cycles * _flops_a_cycle())
    return {
        "rows": f"{packed.rows} of {shape.row_length}", "padding": shape.padding(packed),
        "gib": needed(program) / 2**30, "room_gib": room / 2**30, "tflop": useful / 1e12, "estimate": estimate,
        "compile_s": seconds,
    }  # fmt: skip


def _given(state: Any, config: T5Config, packed: layout.Batch, mesh: Mesh) -> tuple[Any, Any, layout.Batch]:
    """What a step is given, without its numbers."""
    placed = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    weight = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, config.dtype, sharding=place)
    frozen = jax.tree.map(weight, parameter_shapes(config), device.frozen_shardings(config, mesh))
    everywhere = timed_steps.everywhere(mesh)
    batch = jax.tree.map(placed, packed, device.batch_shardings(packed, mesh))
    return jax.tree.map(lambda leaf: placed(leaf, everywhere), state), frozen, batch


def _mesh(kind: str, devices: int | None, model_parallel: int) -> Mesh:
    name, _, count = kind.partition(":")
    if name != "h100":
        found = topologies.get_topology_desc(kind, "tpu").devices
    else:
        jax.devices()  # makes CUDA known, whose devices it does not find
        found = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{count or 1}").devices
    found = found[:devices]
    if len(found) % model_parallel:
        raise ValueError(f"--model_parallel={model_parallel} does not divide the {len(found)} devices")
    return Mesh(np.asarray(found).reshape(-1, model_parallel), ("data", "model"))


def _room(mesh: Mesh) -> int:
    """Bytes of memory of a device."""
    if mesh.devices.flat[0].platform == "gpu":
        return int(re.search(r"device_memory_size: (\d+)", H100)[1])
    return tpu.get_tpu_info().hbm_capacity_bytes * tpu.get_tpu_info().num_cores


def _flops_a_cycle() -> float:
    """Of a TPU's matrix units."""
    info = tpu.get_tpu_info()
    return 2.0 * info.mxu_column_size**2 * info.num_mxus * info.num_cores


def _cycles(program: str) -> int:
    """Of what XLA compiled, each loop gone through once."""
    estimates = map(int, re.findall(r'"estimated_cycles":"(\d+)"', program))
    return sum(cycles for cycles in estimates if cycles < BEYOND)


def _cycles_of_attention(kind: str, config: T5Config, model_parallel: int, length: int) -> float:
    """Of one row in all layers, by the kernel; 0 where XLA does it."""
    heads = config.num_heads // model_parallel
    if not by_row.fits(length, config.num_heads, config.head_dim, config.dtype):
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        given = {"kind": kind, "length": length, "heads": heads, "head_dim": config.head_dim, "folder": folder}
        cycles = alone("kernel", given, DUMP.format(folder))
    if isinstance(cycles, str):
        raise RuntimeError(cycles)
    forward, backward = cycles
    return config.num_encoder_layers * (forward * (1 + config.remat) + backward) / tpu.get_tpu_info().num_cores


def kernel(kind: str, length: int, heads: int, head_dim: int, folder: str) -> list[int]:
    """Cycles that are scheduled for a row's attention, forward and backward; the compiler writes into `folder`."""
    mesh = _mesh(kind, 1, 1)
    of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=timed_steps.everywhere(mesh))
    row = of(jnp.bfloat16, 1, length, heads * head_dim)
    others = of(jnp.int32, 1, length), of(jnp.float32, heads, length, length), of(jnp.float32, 1, heads, 1, length)

    def both(query: Any, keys: Any, values: Any, change: Any, *others: Any) -> Any:
        attend = lambda *heads: row_kernel.attend(head_dim, False, *heads, *others)
        seen, back = jax.vjp(attend, query, keys, values)
        return seen, back(change)

    jax.jit(both).lower(row, row, row, row, *others).compile()
    grid = heads // row_kernel.heads_at_once(heads, head_dim)
    texts = [path.read_text() for path in Path(folder).glob("*analysis_final_bundles.txt") if "-TLP-" not in path.name]
    cycles = [int(re.search(r"total scheduled bundles:\s+(\d+)", text)[1]) for text in texts if "tpu_custom" in text]
    return [grid * found for found in sorted(cycles)]  # backward takes longer


if __name__ == "__main__":
    main()
