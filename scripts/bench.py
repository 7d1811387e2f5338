"""How fast a prompt is trained, as a table and as JSON; beside it PEFT and T5X on the same lengths.

    python scripts/bench.py                                  # small and base, three kinds of text, batches of 16 and 32
    python scripts/bench.py --sizes small --texts boolq --batches 16 --peft OTHER/bin/python
    python scripts/bench.py --sizes small --texts sst2 --batches 16 --slots 1 4 8 24

Each row is a process of its own, which draws a random T5 1.1 (speed does not depend on its weights), compiles, and
times steps of prompt tuning with a prompt of 100 and dropout 0.1. Text is token ids drawn to the lengths of SST-2, RTE
and BoolQ, the same for every row. Rows follow one another in turns: compare ratios of one run, machines are noisy.
FLOP/s are those of the tokens and prompts alone, padding not counted; the peak is a matrix product timed in the same
process. With --dtype bfloat16 every row multiplies bfloat16: PEFT's frozen model is cast, T5X computes in that type.
PEFT needs torch, transformers and peft in the interpreter given by --peft. The one given by --t5x has to find T5X and
the authors' code (docs/from_t5x.md), with the variable T5X_PATH as its PYTHONPATH. What is missing is left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from timed_steps import LENGTHS, PROMPT, SIZES, TARGET, draw, measure, run_job, t5_1_1

from prompt_tuning import allocator, device

PADDED = 512  # positions, the prompt counted
COLUMNS = {
    "examples_per_s": "examples/s", "tokens_per_s": "text tokens/s", "padding": "padding", "gflops": "GFLOP/s",
    "of_peak": "of peak", "memory_gib": "GiB", "planned_gib": "planned",
    "compile_s": "compile s", "save_kb": "kB a save",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=SIZES)
    parser.add_argument("--texts", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--slots", nargs="+", type=int, default=[1], help="prompts trained at once, each on its batch")
    parser.add_argument("--rows_at_once", type=int, help="as ROWS_AT_ONCE")
    parser.add_argument("--scan_layers", action="store_true", help="as SCAN_LAYERS")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="as FROZEN_DTYPE; PEFT's and T5X's type too")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peft", metavar="PYTHON", default=sys.executable, help="an interpreter that has PEFT")
    parser.add_argument("--t5x", metavar="PYTHON", default=sys.executable, help="an interpreter that has T5X")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows here too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        allocator.start_in_huge_pages()
        device.share_cpu()
        one = json.loads(options.one)
        print(json.dumps(measure(t5_1_1(one.pop("size"), one["dtype"]), **one)))
        return
    for python in (options.peft, options.t5x):
        if not shutil.which(python):
            parser.error(f"{python} is no program; --peft and --t5x take Python interpreters")
    table = Table("what", "size", "text", "batch", "slots", *COLUMNS.values(), box=None, header_style="bold")
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for text in options.texts:
            for batch in options.batches:
                for slots in options.slots:
                    one = {"size": size, "text": text, "batch": batch, "slots": slots, "steps": options.steps}
                    settings = {name: getattr(options, name) for name in ("rows_at_once", "scan_layers", "dtype")}
                    rows.append(_ours(one | settings))
                one = {"size": size, "text": text, "batch": batch, "dtype": options.dtype or "float32"}
                rows.append(_beside("PEFT", options.peft, one, options.steps))
                rows.append(_beside(f"PEFT, padded to {PADDED}", options.peft, one, options.steps, PADDED))
                rows.append(_beside("T5X, the authors'", options.t5x, one, options.steps, PADDED))
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


def _beside(what: str, python: str, one: dict[str, Any], steps: int, length: int | None = None) -> dict[str, Any]:
    """A row of another library, in its own interpreter; each input is padded to `length`, or to the batch's longest."""
    shown = {"what": what} | one
    config = t5_1_1(one["size"])
    script = Path(__file__).with_name("bench_t5x.py" if what.startswith("T5X") else "bench_peft.py")
    path = {"PYTHONPATH": os.environ["T5X_PATH"]} if "T5X_PATH" in os.environ and what.startswith("T5X") else {}
    drawn = [draw(one["text"], one["batch"], step).tolist() for step in range(steps)]
    job = {"lengths": drawn, "vocab": config.vocab_size, "prompt": PROMPT, "target": TARGET, "length": length}
    job["dtype"] = one["dtype"]
    done = run_job(python, script, job, config, path)
    if done.returncode:
        return shown | {"skipped": (done.stderr.strip().splitlines() or ["it failed"])[-1][:80]}
    found = json.loads(done.stdout.splitlines()[-1])
    tokens = float(np.mean([sum(each) for each in drawn]))
    found |= {"examples_per_s": one["batch"] / found["seconds"], "tokens_per_s": tokens / found["seconds"]}
    return shown | found


if __name__ == "__main__":
    main()
