"""How fast prompts are trained on an accelerator, from base to the largest T5 1.1 that fits.

    python scripts/bench_device.py                                # base, large and XL; 1 and 8 slots of 32 examples
    python scripts/bench_device.py --sizes xxl --slots 1 --remat --json device.json

Frozen weights are bfloat16 and random, the prompts are of 100 vectors, text is drawn to BoolQ's lengths. Each row is a
process of its own, so that one that does not fit says so and the next goes on. Needs jax, flax, optax, gin-config,
jaxtyping, rich, safetensors, sentencepiece, tensorstore and msgpack, but no TensorFlow, SeqIO or network.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # an uninstalled checkout will do

from timed_steps import LENGTHS, SIZES, measure, t5_1_1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["base", "large", "xl"], choices=SIZES)
    parser.add_argument("--text", default="boolq", choices=LENGTHS)
    parser.add_argument("--batch", type=int, default=32, help="examples of each slot")
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--remat", action="store_true", help="as REMAT")
    parser.add_argument("--rows_at_once", type=int, help="as ROWS_AT_ONCE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows here too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        size, remat, given = json.loads(options.one)
        print(json.dumps(measure(dataclasses.replace(t5_1_1(size), remat=remat), **given)))
        return
    names = ("examples/s", 10), ("tokens/s", 10), ("padding", 8), ("TFLOP/s", 8), ("of peak", 8), ("GiB", 6)
    print("  size slots", *(f"{name:>{width}}" for name, width in names))
    rows = []
    for size in options.sizes:
        for slots in options.slots:
            given = {"text": options.text, "batch": options.batch, "slots": slots, "steps": options.steps}
            row = _row(size, options.remat, given | {"rows_at_once": options.rows_at_once})
            rows.append({"size": size, "remat": options.remat} | given | row)
            print(f"{size:>6} {slots:>5} {_cells(row)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _row(size: str, remat: bool, given: dict) -> dict:
    one = json.dumps([size, remat, given])
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # so that the most in use is what was needed
    done = subprocess.run([sys.executable, __file__, "--one", one], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or ["it failed"])[-1][:100]}
    return json.loads(done.stdout.splitlines()[-1])


def _cells(row: dict) -> str:
    if "skipped" in row:
        return row["skipped"]
    return (
        f"{row['examples_per_s']:>10.1f} {row['tokens_per_s']:>10,.0f} {row['padding']:>8.0%}"
        f" {row['gflops'] / 1e3:>8.2f} {row['of_peak']:>8.0%} {row['memory_gib']:>6.1f}"
    )


if __name__ == "__main__":
    main()
