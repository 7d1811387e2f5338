#!/usr/bin/env python3
"""Times free decoding behind a prompt of 100 on a random T5 1.1, and PEFT's `generate` beside it.

    python scripts/bench_writing.py --texts boolq sst2 --beams 1 4 --peft ONE/bin/python

Every answer has as many tokens as may be written: random weights hardly ever end one, and PEFT is told not to. Batches
of 64, PEFT's padded to the longest of each, in the order in which examples were drawn. What is compiled is kept for the
next time, so that the first of two passes, which is not counted, may take long.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import numpy as np
from timed_steps import LENGTHS, PROMPT, SIZES, draw, random_frozen, run_job, start, t5_1_1

from prompt_tuning import allocator, decode, device, infer
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model

BATCH = 64


class Spelling:
    """A vocabulary that spells nothing."""

    eos_id = 1

    def decode(self, ids: list[int]) -> str:
        return str(len(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--texts", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4], help="1: greedy")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--peft", help="a Python that has torch, transformers and peft")
    options = parser.parse_args()
    allocator.start_in_huge_pages()
    device.share_cpu()
    device.keep_compiled_programs(None)
    print(f"{'text':>8} {'beams':>5} {'':>12} {'examples/s':>11} {'tokens/s':>9}")
    for text in options.texts:
        for beams in options.beams:
            asked = draw(text, options.examples, 5).tolist()
            show = functools.partial(_row, text, beams, options)
            show("this project", ours(options, asked, beams))
            if options.peft:
                show("PEFT", theirs(options, asked, beams))


def _row(text: str, beams: int, options: argparse.Namespace, who: str, seconds: float) -> None:
    examples_per_s = options.examples / seconds
    print(f"{text:>8} {beams:5} {who:>12} {examples_per_s:11.2f} {examples_per_s * options.tokens:9.0f}", flush=True)


def ours(options: argparse.Namespace, lengths: list[int], beams: int) -> float:
    """Seconds for all examples."""
    config, mesh, rng = t5_1_1(options.size, options.dtype), device.make_mesh(), np.random.default_rng(0)
    asked = [infer.Question(rng.integers(2, 32000, n).astype(np.int32), 0) for n in lengths]
    params = random_frozen(config, mesh, options.dtype) | device.put_everywhere(start(config, 1)[0].trainable, mesh)
    model, slot = Model(config, 1, PROMPT), Slot(length=PROMPT)
    answerer = infer.Answerer(model, [slot], [()], Spelling(), mesh, BATCH, options.tokens)
    decoder = decode.greedy if beams == 1 else functools.partial(decode.beam_search, beams=beams)
    with device.on(mesh):
        for _ in range(2):
            started = time.perf_counter()
            infer.write(answerer, params, asked, decoder)
    return time.perf_counter() - started


def theirs(options: argparse.Namespace, lengths: list[int], beams: int) -> float:
    """Seconds for all examples."""
    config = t5_1_1(options.size)
    groups = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    job = {"lengths": groups, "vocab": config.vocab_size, "prompt": PROMPT, "length": None, "dtype": options.dtype}
    job |= {"written": options.tokens, "beams": beams}
    done = run_job(options.peft, Path(__file__).with_name("bench_peft.py"), job, config, {})
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])["seconds"] * len(groups)


if __name__ == "__main__":
    main()
