"""How fast a prompt is trained, as a table and as JSON; beside it PEFT on the same lengths, where it can be imported.

    python scripts/bench.py                                  # small and base, three kinds of text, batches of 16 and 32
    python scripts/bench.py --sizes small --texts boolq --batches 16 --peft OTHER/bin/python
    python scripts/bench.py --sizes small --texts sst2 --batches 16 --slots 1 4 8 24

Each row is a process of its own, which draws a random T5 1.1 (speed does not depend on its weights), compiles, and
times steps of prompt tuning with a prompt of 100 and dropout 0.1. Text is token ids drawn to the lengths of SST-2, RTE
and BoolQ, the same for every row. Rows follow one another in turns: compare ratios of one run, machines are noisy.
FLOP/s are those of the tokens and prompts alone, padding not counted; the peak is a matrix product timed in the same
process. PEFT needs torch, transformers and peft in the interpreter given by --peft.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

PROMPT, TARGET = 100, 3
LENGTHS = {"sst2": (2.0, 13.0), "rte": (2.2, 75.0), "boolq": (3.5, 155.0)}  # shape and mean of a gamma, in tokens
LONGEST = 412  # with the prompt, the 512 positions the papers pad to
PEAK = 4096, 2048, 2048
COLUMNS = {
    "examples_per_s": "examples/s", "tokens_per_s": "text tokens/s", "padding": "padding", "gflops": "GFLOP/s",
    "of_peak": "of peak", "memory_gib": "GiB", "compile_s": "compile s", "save_kb": "kB a save",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"])
    parser.add_argument("--texts", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--slots", nargs="+", type=int, default=[1], help="prompts trained at once, each on its batch")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peft", metavar="PYTHON", default=sys.executable, help="an interpreter that has PEFT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows here too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    table = Table("what", "size", "text", "batch", "slots", *COLUMNS.values(), box=None, header_style="bold")
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for text in options.texts:
            for batch in options.batches:
                for slots in options.slots:
                    one = {"size": size, "text": text, "batch": batch, "slots": slots, "steps": options.steps}
                    rows.append(_ours(one | {"microbatches": options.microbatches}))
                for padded in (False, True):
                    rows.append(
                        _peft(
                            options.peft, {"size": size, "text": text, "batch": batch, "padded": padded}, options.steps
                        )
                    )
    for row in rows:
        cells = [_cell(name, row.get(name)) for name in COLUMNS] if "skipped" not in row else [row["skipped"]]
        table.add_row(row["what"], row["size"], row["text"], str(row["batch"]), str(row.get("slots", 1)), *cells)
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if name in ("padding", "of_peak") else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _ours(one: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(one)], capture_output=True, text=True)
    shown = {"what": "this project"} | one
    if done.returncode:
        return shown | {"skipped": (done.stderr.strip().splitlines() or ["it failed"])[-1][:80]}
    return shown | json.loads(done.stdout.splitlines()[-1])


def _peft(python: str, one: dict[str, Any], steps: int) -> dict[str, Any]:
    shown = {"what": "PEFT, padded to 512" if one["padded"] else "PEFT"} | one
    config = sizes(one["size"])
    script = Path(__file__).with_name("bench_peft.py")
    with tempfile.TemporaryDirectory() as folder:
        lengths = Path(folder) / "lengths.json"
        drawn = [draw(one["text"], one["batch"], step).tolist() for step in range(steps)]
        job = {"lengths": drawn, "vocab": 32128, "prompt": PROMPT, "target": TARGET, "padded": one["padded"]}
        lengths.write_text(json.dumps(job | {"config": config}))
        done = subprocess.run([python, str(script), str(lengths)], capture_output=True, text=True)
    if done.returncode:
        return shown | {"skipped": (done.stderr.strip().splitlines() or ["it failed"])[-1][:80]}
    found = json.loads(done.stdout.splitlines()[-1])
    tokens = float(np.mean([sum(each) for each in drawn]))
    found |= {"examples_per_s": one["batch"] / found["seconds"], "tokens_per_s": tokens / found["seconds"]}
    return shown | found


def sizes(size: str) -> dict[str, int]:
    """T5 1.1's, by its gin file."""
    import prompt_tuning.train  # noqa: F401 - registers what gin files name
    from prompt_tuning import configure
    from prompt_tuning.t5 import T5Config

    configure.parse([f"models/t5_1_1_{size}.gin"])
    config = T5Config()
    return {
        "d_model": config.emb_dim, "num_heads": config.num_heads, "d_kv": config.head_dim, "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers, "num_decoder_layers": config.num_decoder_layers,
    }  # fmt: skip


def draw(text: str, count: int, seed: int) -> np.ndarray:
    """Input lengths in tokens, EOS included."""
    shape, mean = LENGTHS[text]
    drawn = np.random.default_rng([seed, len(text)]).gamma(shape, mean / shape, count)
    return np.clip(np.round(drawn), 4, LONGEST).astype(int)


def measure(size: str, text: str, batch: int, slots: int, steps: int, microbatches: int) -> dict[str, float]:
    """One row; everything is imported here, so that the table's own process stays small."""
    import jax
    import jax.numpy as jnp

    sizes(size)
    from prompt_tuning import cost, device, layout, optim
    from prompt_tuning.base import random_base
    from prompt_tuning.step import Model, TrainState, train_step
    from prompt_tuning.t5 import T5Config

    config = T5Config()
    groups = [_items(text, batch, slots, step) for step in range(steps + 1)]
    longest = max(item.length for group in groups for item in group), TARGET
    shape = layout.plan(groups, longest, True, microbatches)
    batches = [layout.pack(group, shape, PROMPT) for group in groups]
    bank = {
        "prompt": {
            "bank": jnp.asarray(np.random.default_rng(0).normal(size=(slots, PROMPT, config.emb_dim)), jnp.float32)
        }
    }
    optimizer = optim.over_slots(optim.adafactor, [PROMPT] * slots, [0.3] * slots)
    keys = jax.vmap(lambda n: jax.random.key_data(jax.random.key(n)))(jnp.arange(slots))
    state = TrainState(bank, optimizer.init(bank), jnp.zeros((), jnp.int32), keys, jnp.zeros(slots, jnp.int32))
    frozen = random_base(config, 0).params
    model = Model(config, slots, PROMPT)
    pure = functools.partial(train_step, model=model, optimizer=optimizer, microbatches=microbatches)
    started = time.perf_counter()
    compiled = jax.jit(pure, donate_argnums=0, compiler_options=device.compiler_options())
    state, _ = jax.block_until_ready(compiled(state, frozen, batches[0]))
    compile_s = time.perf_counter() - started
    seconds, peaks = [], []
    for one in batches[1:]:
        started = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, frozen, one))
        seconds.append(time.perf_counter() - started)
        peaks.append(_peak(jax, jnp))
    work = [sum(2 * cost.forward_flops(config, i.length, i.target_length) for i in group) for group in groups[1:]]
    tokens = [sum(len(i.inputs) for i in group) for group in groups[1:]]
    second, peak = statistics.fmean(seconds), statistics.median(peaks)
    return {
        "examples_per_s": slots * batch / second, "tokens_per_s": statistics.fmean(tokens) / second,
        "padding": statistics.fmean(one.padding for one in batches[1:]),
        "gflops": statistics.fmean(work) / second / 1e9, "of_peak": statistics.fmean(work) / second / peak,
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "compile_s": compile_s,
        "save_kb": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e3, "seconds": second,
        "peak_gflops": peak / 1e9,
    }  # fmt: skip


def _items(text: str, batch: int, slots: int, step: int) -> Sequence[Any]:
    from prompt_tuning.layout import Item

    rng = np.random.default_rng(step)
    ids = lambda length: rng.integers(2, 32000, length).astype(np.int32)
    return [
        Item(ids(length), [ids(TARGET)], k, n, PROMPT)
        for k in range(slots)
        for n, length in enumerate(draw(text, batch, step * slots + k))
    ]


def _peak(jax: Any, jnp: Any) -> float:
    """FLOP/s of a large matrix product, now."""
    left, right, product = jnp.ones(PEAK[:2]), jnp.ones(PEAK[1:]), jax.jit(jnp.dot)
    product(left, right).block_until_ready()
    started = time.perf_counter()
    product(left, right).block_until_ready()
    return 2 * float(np.prod([float(n) for n in PEAK])) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
