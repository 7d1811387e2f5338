"""Trains the same run in one process and in several on this machine, kills one of them, and prints the figures.

    python scripts/several_processes.py [--processes 2 4] [--steps 8] [--folder FOLDER]

For each number of processes, and each way to share them between data and model: the largest relative difference of a
loss to that of one process (1e-5 is allowed; evaluations have to be equal), the seconds until the others ended after
process 1 was killed, what they said, and the difference after the same command was started again. Ends with 1 if
something is not as it should be.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]

import processes  # noqa: E402 - which stands beside the tests

ALLOWED, MINUTES = 1e-5, 60.0


@dataclasses.dataclass(frozen=True)
class Trial:
    """One way to run the same thing."""

    folder: Path
    steps: int
    count: int
    model_parallel: int

    @property
    def name(self) -> str:
        return f"{self.count} processes, {self.count // self.model_parallel} data x {self.model_parallel} model"

    def flags(self, name: str) -> list[str]:
        settings = {
            "MODEL_DIR": self.folder / name, "INITIAL_CHECKPOINT_PATH": self.folder / "base",
            "TASK_FILE": self.folder / "task.toml", "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 4},
            "TRAIN_STEPS": self.steps, "EVAL_PERIOD": self.steps // 2, "LOG_PERIOD": 1, "BATCH_SIZE": 7,
            "EVAL_BATCH_SIZE": 30, "PROMPT_LENGTH": 5, "MODEL_PARALLEL": self.model_parallel,
            "JAX_CACHE_DIR": self.folder / "cache",
        }  # fmt: skip
        return [f"--gin.{key}={value}" for key, value in settings.items()]

    def measure(self, alone: Path) -> bool:
        """Prints a line; whether all is as it should be."""
        whole, killed = f"whole-{self.count}-{self.model_parallel}", f"killed-{self.count}-{self.model_parallel}"
        started = time.monotonic()
        processes.run(self.flags(whole), self.count, self.folder / f"{whole}.log", 30 * MINUTES)
        seconds = time.monotonic() - started
        job = processes.Job(self.flags(killed), self.count, self.folder / f"{killed}.log")
        saved = self.folder / killed / "checkpoints" / str(self.steps // 2) / "commit_success.txt"
        job.wait_for(saved, 30 * MINUTES)
        job.processes[1].kill()
        started = time.monotonic()
        codes = job.codes(5 * MINUTES)
        ended = time.monotonic() - started
        said = [n for n in range(self.count) if "type the same command on every host" in job.said(n)]
        processes.run(self.flags(killed), self.count, self.folder / f"{killed}-again.log", 30 * MINUTES)
        whole_off = processes.furthest(alone, self.folder / whole)
        killed_off = processes.furthest(alone, self.folder / killed)
        print(
            f"{self.name}: off by {whole_off:.1e} ({seconds:.0f} s); one killed: the others ended within {ended:.1f} s"
            f" with {codes}, {len(said)} of {self.count - 1} with the sentence; started again: off by {killed_off:.1e}",
            flush=True,
        )
        return max(whole_off, killed_off) < ALLOWED and all(codes)


def make_base(folder: Path) -> None:
    """A random T5, 32 wide, behind the vocabulary that comes with the package, and a task of 100 questions."""
    from prompt_tuning import base, tiny
    from prompt_tuning.stack import T5Config

    if (folder / "base").exists():
        return
    base.save_t5x(base.random_base(T5Config(8128, 32, 4, 8, 64, 2, 2), 0).params, folder / "base", 1)
    shutil.copy(tiny.VOCABULARY, folder / "base" / "spiece.model")
    rows = [{"text": f"is {n} below {n * 7 % 100}", "label": "yes" if n < n * 7 % 100 else "no"} for n in range(100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"inputs": "{text} ?", "target": "label", "labels": ["no", "yes"], "train": "rows.jsonl"}
    settings = task | {"validation": "rows.jsonl"}
    (folder / "task.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))


def trials(folder: Path, steps: int, counts: Sequence[int]) -> list[Trial]:
    """Every way to share the processes between the two axes."""
    return [Trial(folder, steps, n, model) for n in counts for model in (1, 2, 4) if n % model == 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_base(folder)
    alone = Trial(folder, options.steps, 1, 1)
    processes.run(alone.flags("alone"), 1, folder / "alone.log", 30 * MINUTES)
    held = [trial.measure(folder / "alone") for trial in trials(folder, options.steps, options.processes)]
    if not options.folder:
        shutil.rmtree(folder)
    return not all(held)


if __name__ == "__main__":
    raise SystemExit(main())
