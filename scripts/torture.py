"""Kills a training run again and again, and holds what it comes to against a run that nobody disturbed, to the bit.

    python scripts/torture.py --kills 50 [--seed 0] [--folder /tmp/torture]
    python scripts/torture.py --kills 30 --signal TERM      # asks it to stop instead; how long until it has

A tiny random base is tuned on a demonstration task by `prompt-tuning train`. Each life is ended by a signal in a phase
chosen in turn (start, compile, step, log, evaluation, save; the last lives at the end of the run), after a random
delay; then the same command starts the next. The two runs must agree on every file that counts: the prompts of every
step and the best one, the newest checkpoint's best-step record, and metrics.jsonl but for the fields that tell time
and memory (examples_per_second, waiting, memory). There may be no step twice or missing, and no temporary file. A run
that is asked to stop logs and saves the step it has come to: there the prompts and the best-step record are compared.
"""

import argparse
import collections
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PHASES = ("start", "compile", "step", "log", "evaluation", "save")
END = "end"  # behind the last evaluation: best prompts, curves
AT_END = 3  # kills
OF_THE_MACHINE = ("examples_per_second", "waiting", "memory")  # the fields of metrics.jsonl that are not compared
LENGTHS = {"inputs": 48, "targets": 4}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--period", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--folder", type=Path, help="default: a temporary one; what differs stays there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    flags = prepare(folder, options.steps, options.period)
    started = time.monotonic()
    calm = Life(flags, folder / "calm", options.period)
    if calm.wait():
        print(calm.told())
        return 1
    print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
    middle = options.kills - min(AT_END, options.kills)
    phases = [PHASES[n % len(PHASES)] for n in range(middle)] + [END] * (options.kills - middle)
    end = Life.kill if options.signal == "KILL" else Life.stop
    hits = torture(flags, folder / "killed", phases, options.period, random.Random(options.seed), end)
    print(
        f"{sum(map(len, hits.values()))} signals in {time.monotonic() - started:.0f} s, by the last thing that was seen"
        " of the run; seconds until it had ended, on the mean and at most:"
    )
    for phase, seconds in sorted(hits.items()):
        print(f"  {len(seconds):3}  {sum(seconds) / len(seconds):5.1f}  {max(seconds):5.1f}  {phase}")
    checks = CHECKS if options.signal == "KILL" else (_prompts, _best)
    difference = compare(folder / "calm", folder / "killed", options.period, options.steps, checks)
    print(difference or "the disturbed run is the undisturbed one, to the bit")
    return 1 if difference else 0


def prepare(folder: Path, steps: int, period: int) -> list[str]:
    """Draws a base into `folder`; the flags of a run on it, without MODEL_DIR."""
    from prompt_tuning import tiny
    from prompt_tuning.base import random_base, save_t5x
    from prompt_tuning.stack import T5Config

    config = T5Config(8128, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=1)
    save_t5x(random_base(config, 0).params, folder / "base", 0, np.float32)
    (folder / "base" / "spiece.model").write_bytes(tiny.VOCABULARY.read_bytes())
    names = {
        "INITIAL_CHECKPOINT_PATH": folder / "base", "MIXTURE_OR_TASK_NAME": "demo_question", "TRAIN_STEPS": steps,
        "EVAL_PERIOD": period, "LOG_PERIOD": max(1, period // 3), "PROMPT_LENGTH": 4, "BATCH_SIZE": 8,
        "EVAL_BATCH_SIZE": 128, "TASK_FEATURE_LENGTHS": LENGTHS, "JAX_CACHE_DIR": folder / "cache",
        "GRID": {"seed": [0, 1]},
        "rank.content_free": ["sentence: so"],  # without it, a random model gives every text one label
    }  # fmt: skip
    return [f"--gin.{name}={value}" for name, value in names.items()]


class Life:
    """One process of the run in `folder`, and what is seen of it from outside."""

    def __init__(self, flags: Sequence[str], folder: Path, period: int) -> None:
        self.folder, self.period = folder, period
        command = [sys.executable, "-m", "prompt_tuning.train", *flags, f"--gin.MODEL_DIR={folder}"]
        modules = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": modules},
        )  # fmt: skip
        self.lines: list[str] = []
        self._fresh: queue.Queue = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._fresh.put(line)

    def until(self, phase: str, rng: random.Random) -> bool:
        """Waits for a phase and a random moment in it; False if the run ended before."""
        wanted, skips = EVENTS[phase], rng.randrange(4) if phase in ("step", "log", "evaluation", "save") else 0
        while self.process.poll() is None:
            if phase == "save":
                if any(self.folder.glob("checkpoints/*tmp*")):
                    return _sleep(rng.uniform(0, 0.03))
                time.sleep(0.003)
                continue
            try:
                line = self._fresh.get(timeout=0.05) if wanted else ""
            except queue.Empty:
                continue
            if re.search(wanted, line) and (phase != "evaluation" or self._evaluates(line)):
                skips -= 1
                if skips < 0:
                    return _sleep(rng.uniform(0, DELAYS[phase]))
        return False

    def _evaluates(self, line: str) -> bool:
        return int(line.split("/")[0]) % self.period == 0

    def kill(self) -> str:
        """SIGKILL; the last thing that was seen of the run."""
        self.process.send_signal(signal.SIGKILL)
        self.wait()
        return self._last_seen()

    def stop(self) -> str:
        """SIGTERM; the last thing that was seen of the run before. Raises RuntimeError if it ends with an error."""
        seen = self._last_seen()
        self.process.send_signal(signal.SIGTERM)
        if (code := self.wait()) not in (0, -signal.SIGTERM):  # the second before it has begun to listen
            raise RuntimeError(f"A run that was asked to stop ended with {code}:\n{self.told()}")
        return seen

    def _last_seen(self) -> str:
        said = "".join(self.lines)
        if "writes to" not in said:
            return "starting: nothing said yet"
        if any(self.folder.glob("checkpoints/*tmp*")):
            return "a checkpoint half written"
        if any(self.folder.rglob(".*.part")):
            return "another file half written"
        if re.search(EVENTS[END], said):
            return "ending: the best prompts"
        told = [found for line in self.lines if (found := re.match(r" *(\d+)(/\d+)? ", line))]
        if not told:
            return "the first step" if "first step after" in said else "compiling: the ledger"
        if told[-1][2] is None:
            return "saving or stepping on: an evaluation's line"
        return (
            "evaluating: the line before it" if self._evaluates(told[-1][0]) else "stepping or logging: a line of steps"
        )

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait()
        self._reader.join()
        return code

    def told(self) -> str:
        """What it wrote."""
        return "".join(self.lines)


EVENTS = {
    "start": "", "compile": "writes to", "step": r"first step|^ *\d+/\d+ ", "log": r"^ *\d+/\d+ ",
    "evaluation": r"^ *\d+/\d+ ", "save": "", END: r"prompt in ",
}  # fmt: skip
DELAYS = {"start": 3.0, "compile": 1.5, "step": 0.2, "log": 0.002, "evaluation": 0.3, END: 0.3}  # seconds at most


def _newest(folder: Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()), default=0)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def torture(
    flags: Sequence[str],
    folder: Path,
    phases: Sequence[str],
    period: int,
    rng: random.Random,
    end: Callable[["Life"], str],
) -> dict[str, list[float]]:
    """Runs to the end, brought to an `end` once in each of `phases`; what was hit, and the seconds each took to end.

    Raises RuntimeError if a life ends badly by itself.
    """
    hits: dict[str, list[float]] = collections.defaultdict(list)
    phases = list(phases)
    while True:
        life = Life(flags, folder, period)
        if phases and life.until(phases[0], rng):
            signalled = time.monotonic()
            hit = end(life)
            hits[hit].append(time.monotonic() - signalled)
            print(f"signal {sum(map(len, hits.values()))} at step {_newest(folder)}: {hit}", flush=True)
            phases.pop(0)
            continue
        if life.wait():
            raise RuntimeError(f"A restarted run ended with {life.process.returncode}:\n{life.told()}")
        if not phases or phases[0] != END:
            return hits  # the run is over, whatever kills were left


def compare(calm: Path, killed: Path, period: int, steps: int, checks: Sequence["Check"] | None = None) -> str:
    """The first difference in words, or nothing; by all `CHECKS` unless told."""
    for check in checks or CHECKS:
        if found := check(calm, killed, period, steps):
            return found
    return ""


def _leftovers(calm: Path, killed: Path, *_: int) -> str:
    own = lambda folder: {
        str(f.relative_to(folder))
        for f in folder.rglob("*")
        if f.relative_to(folder).parts[0] != "tensorboard" and f.relative_to(folder).parts[2:3] != ("state",)
    }
    extra, missing = sorted(own(killed) - own(calm)), sorted(own(calm) - own(killed))
    return f"files that only one run has: killed {extra[:5]}, undisturbed {missing[:5]}" if extra or missing else ""


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in lines]


def _steps(_: Path, killed: Path, period: int, steps: int) -> str:
    logged = [r["step"] for r in records(killed) if "loss" in r]
    evaluated = [r["step"] for r in records(killed) if "eval" in r]
    every = max(1, period // 3)
    due = [s for s in range(1, steps + 1) if s % every == 0 or s % period == 0 or s == steps]
    if logged != due:
        return f"metrics.jsonl has losses of other steps: {_first(logged, due)}"
    due = [s for s in range(1, steps + 1) if s % period == 0 or s == steps]
    return f"metrics.jsonl has evaluations of other steps: {_first(evaluated, due)}" if evaluated != due else ""


def _first(found: list, due: list) -> str:
    n = next((n for n, (a, b) in enumerate(zip(found, due, strict=False)) if a != b), min(len(found), len(due)))
    return f"at place {n}, {found[n : n + 3]} where {due[n : n + 3]} belongs"


def _metrics(calm: Path, killed: Path, *_: int) -> str:
    for a, b in zip(records(calm), records(killed), strict=True):
        if a != b:
            return f"metrics.jsonl differs first at step {a['step']}:\n  undisturbed {a}\n  killed      {b}"
    return ""


def _prompts(calm: Path, killed: Path, *_: int) -> str:
    for kind in ("numpy_checkpoints/**/encoder.*", "prompts/*"):
        for path in sorted(calm.glob(kind)):
            if path.read_bytes() != (killed / path.relative_to(calm)).read_bytes():
                return f"{path.relative_to(calm)} differs"
    return ""


def _best(calm: Path, killed: Path, *_: int) -> str:
    import jax
    from orbax import checkpoint

    from prompt_tuning import device

    device.share_cpu()  # as the runs did

    def newest(folder: Path) -> tuple[int | None, dict]:
        with checkpoint.CheckpointManager((folder / "checkpoints").resolve()) as manager:
            items = checkpoint.args.Composite(state=checkpoint.args.StandardRestore())
            return manager.latest_step(), manager.restore(None, args=items)["state"]["best"]

    (step, best), (other, found) = newest(calm), newest(killed)
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), best, found)
    wrong = [jax.tree_util.keystr(path) for path, ok in jax.tree_util.tree_leaves_with_path(same) if not ok]
    if step != other or wrong:
        return f"the best-step record differs: newest checkpoint {step} and {other}, {', '.join(wrong) or 'alike'}"
    return ""


Check = Callable[[Path, Path, int, int], str]
CHECKS: tuple[Check, ...] = (_leftovers, _steps, _metrics, _prompts, _best)


if __name__ == "__main__":
    raise SystemExit(main())
