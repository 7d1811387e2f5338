"""Runs that are a job of several processes on this machine, each with one pretended device, and runs of one alone."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ALONE = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(PACKAGE)}
TRAIN = (sys.executable, "-m", "prompt_tuning.train")


class Job:
    """The processes of one training command."""

    def __init__(self, flags: Sequence[str], count: int, logs: Path) -> None:
        """Starts `count` processes; what each says goes to `logs/INDEX`."""
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self.processes = []
        address = f"127.0.0.1:{_free_port()}"
        for index in range(count):
            shared = [f"--coordinator_address={address}", f"--process_count={count}", f"--process_index={index}"]
            command = [*TRAIN, *flags, *(shared if count > 1 else [])]
            with (logs / str(index)).open("w") as out:
                self.processes.append(
                    subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | ALONE)
                )

    def said(self, index: int) -> str:
        """Everything that a process has said so far."""
        return (self.logs / str(index)).read_text(errors="replace")

    def codes(self, within: float) -> list[int]:
        """The exit code of each, all of them having ended within so many seconds; else AssertionError."""
        until = time.monotonic() + within
        try:
            return [process.wait(max(0.0, until - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            said = "\n".join(f"--- {n}\n{self.said(n)[-2000:]}" for n in range(len(self.processes)))
            raise AssertionError(f"still running after {within:.0f} s:\n{said}") from None
        finally:
            self.kill()

    def wait_for(self, path: Path, within: float) -> None:
        """Returns when a file is there, or a process has ended."""
        until = time.monotonic() + within
        while not path.exists() and all(p.poll() is None for p in self.processes) and time.monotonic() < until:
            time.sleep(0.05)
        assert path.exists(), self.said(0)[-3000:]

    def kill(self) -> None:
        """Ends every process that is left."""
        for process in self.processes:
            process.kill()
            process.wait()


def run(flags: Sequence[str], count: int, logs: Path, within: float) -> None:
    """One job that ends well."""
    job = Job(flags, count, logs)
    assert job.codes(within) == [0] * count, "\n".join(f"--- {n}\n{job.said(n)[-3000:]}" for n in range(count))


def records(model_dir: Path) -> list[tuple[int, str, dict[str, float]]]:
    """(step, kind, numbers by slot) of every loss and evaluation, in order."""
    rows = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], kind, row[kind]) for row in rows for kind in ("loss", "eval") if kind in row]


def furthest(one: Path, other: Path) -> float:
    """The largest relative difference between the losses of two runs, whose steps and metrics are the same."""
    first, second = records(one), records(other)
    assert [row[:2] for row in first] == [row[:2] for row in second]
    assert [row for row in first if row[1] == "eval"] == [row for row in second if row[1] == "eval"]
    pairs = [(a[2][k], b[2][k]) for a, b in zip(first, second, strict=True) if a[1] == "loss" for k in a[2]]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def _free_port() -> int:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        return open_socket.getsockname()[1]
