#!/usr/bin/env python3
"""Times ranking: two labels behind a prompt of 100, as rows and as lines, on a random T5 1.1.

    python scripts/bench_ranking.py --texts boolq sst2 --dtypes float32 bfloat16

What is compiled is kept for the next time, so that the first of three passes, which is not counted, may take long.
"""

import argparse
import functools
import math
import time

import numpy as np
from timed_steps import LENGTHS, PROMPT, SIZES, draw, random_frozen, start, t5_1_1

from prompt_tuning import allocator, device, infer
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model

PASSES = 2


class Spelling:
    """Two labels of two tokens and one."""

    eos_id = 1

    def encode(self, text: str) -> list[int]:
        return {"True": [10, 20], "False": [30]}[text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--texts", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--examples", type=int, default=1024)
    options = parser.parse_args()
    allocator.start_in_huge_pages()
    device.share_cpu()
    device.keep_compiled_programs(None)
    print(f"{'text':>8} {'dtype':>9} {'in':>6} {'examples/s':>11}")
    for dtype in options.dtypes:
        for text in options.texts:
            for name, enough in (("rows", math.inf), ("lines", 0)):
                infer.WORTH_A_LINE = enough
                print(f"{text:>8} {dtype:>9} {name:>6} {examples_per_s(options, text, dtype):11.1f}", flush=True)


def examples_per_s(options: argparse.Namespace, text: str, dtype: str) -> float:
    """Of the quicker pass."""
    config, mesh = t5_1_1(options.size, dtype), device.make_mesh()
    rng = np.random.default_rng(0)
    asked = [infer.Question(rng.integers(2, 32000, n).astype(np.int32), 0) for n in draw(text, options.examples, 5)]
    params = random_frozen(config, mesh, dtype) | device.put_everywhere(start(config, 1)[0].trainable, mesh)
    model, slot = Model(config, 1, PROMPT), Slot(length=PROMPT)
    rank = functools.partial(infer.rank, infer.Answerer(model, [slot], [("True", "False")], Spelling(), mesh), params)
    with device.on(mesh):
        rank(asked)
        seconds = []
        for _ in range(PASSES):
            started = time.perf_counter()
            rank(asked)
            seconds.append(time.perf_counter() - started)
    return len(asked) / min(seconds)


if __name__ == "__main__":
    main()
