"""Reads spoiled files of every kind that a person may give, and says how each parser took it.

    python scripts/fuzz_files.py --inputs 100000 [--parser npy] [--seconds 600] [--keep FOLDER]

Where atheris is installed (pip install atheris) inputs are led by coverage of this package, else drawn at random; both
change valid files with and without understanding of their formats. Ends with 1 if anything but UserError was raised, a
process died, or one ran out of its 3 GiB of memory or its 10 minutes for an input; FOLDER then gets the inputs.
"""

import argparse
import collections
import functools
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]
try:
    import atheris
except ImportError:
    atheris = None
if atheris:
    with atheris.instrument_imports(include=["prompt_tuning"]):
        import hostile
else:
    import hostile
from prompt_tuning import t5  # noqa: E402 - what is led by coverage is imported first

MEMORY = 3 << 30
SECONDS = 600  # for one input
IN_MEMORY = "/dev/shm"  # noqa: S108 - where a folder of its own is made
FAULTS = 3  # the exit code of a process that found some
LONGEST = 150_000  # bytes of an input


class Tried:
    """What became of the inputs of one parser."""

    def __init__(self, name: str, inputs: int, seconds: float, keep: Path | None) -> None:
        self.name, self.parser, self.inputs, self.keep = name, hostile.parsers()[name], inputs, keep
        self.start, self.until = time.monotonic(), time.monotonic() + seconds
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY if Path(IN_MEMORY).is_dir() else None))
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: dict[tuple[str, str], str] = {}

    def one(self, data: bytes) -> None:
        """Reads one input, and ends the process after the last."""
        try:
            self.counts[hostile.outcome(self.parser, data, self.folder)] += 1
        except Exception as error:
            self.counts["faults"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            key = type(error).__name__, f"{frame.filename}:{frame.lineno}"
            if key not in self.faults:
                self.faults[key] = f"{error!r:.300}"
                if self.keep:
                    self.keep.mkdir(parents=True, exist_ok=True)
                    (self.keep / f"{self.name}-{len(self.faults)}").write_bytes(data)
        if self.counts.total() >= self.inputs or time.monotonic() > self.until:
            self.end()

    def end(self) -> None:
        """Says what happened, and ends the process."""
        seconds, counts = time.monotonic() - self.start, self.counts
        how = "by coverage" if atheris else "at random"
        shown = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("read", "refused", "faults"))
        print(f"{self.name:>12}  {counts.total():>9,} inputs {how}  {counts.total() / seconds:>7,.0f}/s  {shown}")
        for (kind, place), text in self.faults.items():
            print(f"{'':>14}{kind} at {place}: {text}")
        sys.stdout.flush()
        shutil.rmtree(self.folder)
        os._exit(FAULTS if self.faults else 0)  # the fuzzer would go on


def fuzz(tried: Tried, seed: int) -> None:
    """Feeds inputs until `tried` ends the process."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    valid = hostile.seeds(tried.parser)
    for data in valid:
        assert hostile.outcome(tried.parser, data, tried.folder) == "read", f"a valid {tried.name} is refused"
    if atheris:
        _by_coverage(tried, valid, seed)
    draw = random.Random(seed)
    while True:
        tried.one(hostile.spoiled(draw, draw.choice(valid), tried.parser)[:LONGEST])


def _by_coverage(tried: Tried, valid: list[bytes], seed: int) -> None:
    def change(data: bytes, longest: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.2:
            return atheris.Mutate(data, longest)
        start = draw.choice(valid) if not data or draw.random() < 0.2 else data
        return hostile.spoiled(draw, start, tried.parser)[:longest]

    corpus = tried.folder / ".corpus"
    corpus.mkdir()
    for n, data in enumerate(valid):
        (corpus / str(n)).write_bytes(data)
    limits = [f"-timeout={SECONDS}", "-rss_limit_mb=0", f"-max_len={LONGEST}", f"-artifact_prefix={tried.folder}/"]
    flags = [f"-runs={10**9}", f"-seed={seed + 1}", "-verbosity=0", *limits, str(corpus)]
    atheris.Setup([sys.argv[0], *flags], tried.one, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--parser", action="append", choices=hostile.parsers(), help="only this one; repeatable")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end a parser's turn after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where inputs go that were taken badly")
    options = parser.parse_args()
    names = options.parser or list(hostile.parsers())
    if len(names) == 1:
        t5._abstract = functools.cache(t5._abstract)  # tracing a T5 takes longer than reading a small one
        fuzz(Tried(names[0], options.inputs, options.seconds, options.keep), options.seed)
    died = []
    for name in names:
        flags = ["--inputs", str(options.inputs), "--seconds", str(options.seconds), "--seed", str(options.seed)]
        kept = ["--keep", str(options.keep)] if options.keep else []
        done = subprocess.run([sys.executable, __file__, "--parser", name, *flags, *kept], stderr=subprocess.PIPE)
        if done.returncode:
            died.append(name)
            if done.returncode != FAULTS:
                print(f"{name:>12}  ended with {done.returncode}: {done.stderr.decode(errors='replace')[-1000:]}")
    print(f"faults in {', '.join(died)}" if died else "no faults")
    return bool(died)


if __name__ == "__main__":
    raise SystemExit(main())
