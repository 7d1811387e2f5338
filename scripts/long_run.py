"""Whether a long run grows, slows down or compiles again: 20,000 steps on a tiny random base, watched from inside.

    python scripts/long_run.py [--steps 20000] [--folder /tmp/long_run]
    python scripts/long_run.py --gin.INITIAL_CHECKPOINT_PATH=tiny --gin.BATCH_SIZE=1     # flags go to the run

Memory is what the process has resident, sampled once a second; its slope is fitted to what comes after the first tenth
of the steps. Programs are those that XLA compiles, and with a fresh folder none comes from a cache. Step times are of
the windows of metrics.jsonl, in the second and in the last tenth.
"""

import argparse
import json
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import torture

from prompt_tuning import allocator, cli


def main() -> int:
    allocator.start_in_huge_pages()  # as prompt-tuning does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    options, more = parser.parse_known_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="long-run-"))
    period = max(10, options.steps // 20)
    flags = torture.prepare(folder, options.steps, period)
    flags += [f"--gin.MODEL_DIR={folder / 'run'}", f"--gin.LOG_PERIOD={max(1, options.steps // 200)}", *more]
    started = time.monotonic()
    with Watch(folder / "run" / "metrics.jsonl") as watch:
        code = cli.main(["train", *flags])
    print(f"\n{options.steps:,} steps in {time.monotonic() - started:.0f} s, evaluated every {period}")
    for line in watch.told(options.steps):
        print(line)
    return code


class Watch:
    """What becomes of this process while a run writes `metrics`."""

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.samples: list[tuple[int, float]] = []  # step, MB resident
        self.compiled: list[int] = []  # the step that each compilation followed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _heard(self, event: str, seconds: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            self.compiled.append(self._step())

    def _step(self) -> int:
        try:
            return json.loads(self.metrics.read_bytes().splitlines()[-1])["step"]
        except (OSError, IndexError, ValueError):
            return 0  # nothing is written yet

    def _sample(self) -> None:
        while not self._over.wait(1.0):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.samples.append((self._step(), pages * resource.getpagesize() / 1e6))

    def told(self, steps: int) -> list[str]:
        """The figures in words."""
        late = [(step, size) for step, size in self.samples if step >= steps / 10]
        rows = [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]
        paces = [(r["step"], 1000 / r["examples_per_second"]) for r in rows if r.get("examples_per_second")]
        of = lambda low, high: statistics.median([p for step, p in paces if low * steps < step <= high * steps])
        early, end = of(0.1, 0.2), of(0.9, 1.0)
        last = [(step, size) for step, size in late if step >= steps / 2]
        grown = "no samples" if len({step for step, _ in last}) < 3 else f"{_slope(late):+.3f} MB per 1,000 steps"
        grown += "" if grown == "no samples" else f" ({_slope(last):+.3f} in the second half)"
        after = sum(step >= steps / 10 for step in self.compiled)
        return [
            f"memory      {grown}, {late[-1][1] if late else 0:,.0f} MB at the end",
            f"programs    {len(self.compiled)} compiled, {after} of them after step {steps // 10:,}",
            f"pace        {early:.2f} ms an example in the 2nd tenth, {end:.2f} in the last ({end / early - 1:+.1%})",
        ]


def _slope(samples: list[tuple[int, float]]) -> float:
    steps, sizes = np.array(samples, float).T
    return float(1000 * np.polyfit(steps, sizes, 1)[0])


if __name__ == "__main__":
    raise SystemExit(main())
