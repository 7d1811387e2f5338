"""How long a search among many prompts takes: fills a library with random ones (3 GB at the defaults), searches it.

taskset -c 0 python scripts/bench_library.py --folder /tmp/library

Shown are medians of five, of the clock and of the processor (which other programs do not lengthen): opening the
library, a search in an open one, and the whole command as a person types it, Python's start included. The folder is
kept, and used again when it holds enough prompts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prompt_tuning import prompt_file
from prompt_tuning.library import Library

REPEATS = 5


def fill(folder: Path, prompts: int, length: int, width: int) -> None:
    """Random prompts of a common direction and the norms of real ones, each with a card."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=width)
    for n in range(prompts):
        path = folder / f"p{n:05d}.safetensors"
        if not path.is_file():
            vectors = (70 * (shared + 2 * rng.standard_normal((length, width)))).astype(np.float32)
            card = prompt_file.Card(
                name=path.stem, task=f"task{n}", score=50.0, step=10_000, base="t5", base_digest="0"
            )
            prompt_file.save_safetensors(path, prompt_file.Prompt(vectors, card))
        if n % 1000 == 999:
            print(f"{n + 1:,} prompts written", flush=True)


def seconds(work: Callable[[], object]) -> str:
    """The medians of five, children included."""
    clock, processor = [], []
    for _ in range(REPEATS):
        start, used = time.perf_counter(), sum(os.times()[:4])
        work()
        clock.append(time.perf_counter() - start)
        processor.append(sum(os.times()[:4]) - used)
    return f"{statistics.median(clock):6.2f} s   processor {statistics.median(processor):5.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    fill(options.folder, options.prompts, options.length, options.width)
    start = time.perf_counter()
    library = Library(options.folder)
    print(f"opened in {time.perf_counter() - start:.2f} s (indexing, where the index was not there yet)")
    wanted = str(options.folder / "p00000.safetensors")
    found, _ = library.search(wanted)
    assert found[0].entry.name == "p00000"
    print(f"{len(found):,} prompts of {options.length} x {options.width}")
    print(f"reopened  {seconds(lambda: Library(options.folder))}")
    print(f"searched  {seconds(lambda: library.search(wanted))}")
    command = [sys.executable, "-m", "prompt_tuning.cli", "library", "search", str(options.folder), wanted]
    print(f"command   {seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))}")


if __name__ == "__main__":
    main()
