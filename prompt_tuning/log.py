"""What a run tells: aligned lines on the console, the same in metrics.jsonl and for TensorBoard."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from prompt_tuning import disk
from prompt_tuning.board import Board

COLUMNS = ("step", "loss", "lr", "examples/s", "padding", "memory", "left")
WIDTHS = (13, 9, 9, 11, 8, 10, 9)


def bytes_in_words(count: int | float | None) -> str:
    """1.9 GiB, 205 KiB."""
    if count is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def time_in_words(seconds: float) -> str:
    """0:07:30."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def finite(value: Any) -> Any:
    """What JSON can spell: None where a number is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """Console lines, `metrics.jsonl` and TensorBoard events of one run."""

    def __init__(
        self, folder: Path | None, resumed_at: int = 0, evaluated: bool = True, out: TextIO | None = None
    ) -> None:
        """Records of `folder/metrics.jsonl` behind step `resumed_at` are dropped: they will be made again.

        So is that step's evaluation, unless what resumes was saved with it (`evaluated`). Without a folder nothing is
        said or written: of several processes one speaks.
        """
        self._speaks = folder is not None
        self.path = folder / "metrics.jsonl" if folder else Path(os.devnull)
        if folder:
            _cut(self.path, resumed_at, evaluated)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = Board(folder / "tensorboard") if folder else None
        self.out = out or (sys.stdout if folder else self._file)
        self.colour = self.out.isatty() and "NO_COLOR" not in os.environ
        self._lines = 0

    def say(self, text: str, style: str = "") -> None:
        """One line for people."""
        codes = {"": "", "bold": "\x1b[1m", "dim": "\x1b[2m", "good": "\x1b[32m"}
        print(f"{codes[style]}{text}\x1b[0m" if self.colour and style else text, file=self.out, flush=True)

    def ledger(self, rows: Mapping[str, str]) -> None:
        """What the run is made of, before it starts."""
        width = max(map(len, rows))
        for name, text in rows.items():
            self.say(f"{name:>{width}}  {text}")

    def train(self, step: int, total: int, record: Mapping[str, Any], left: float) -> None:
        """One line of the table, and the record behind it: loss and learning rate are each slot's."""
        if self._lines % 20 == 0:
            self.say(" ".join(f"{name:>{width}}" for name, width in zip(COLUMNS, WIDTHS, strict=True)), "dim")
        self._lines += 1
        rates = [f"{rate:.3g}" for rate in sorted({*record["learning_rate"].values()})]
        losses = [loss for loss in record["loss"].values() if loss is not None] or [math.nan]
        cells = (
            f"{step}/{total}",
            f"{math.fsum(losses) / len(losses):.4f}",
            " to ".join(rates[:: max(len(rates) - 1, 1)]),  # the lowest and the highest
            "?" if record["examples_per_second"] is None else f"{record['examples_per_second']:.1f}",
            f"{100 * record['padding']:.0f} %",
            bytes_in_words(record["memory"]),
            time_in_words(left),
        )
        self.say(" ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
        self.record(step, record)

    def record(self, step: int, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; TensorBoard gets the numbers in it as `a/b` tags."""
        self._file.write(json.dumps(finite({"step": step, **record})) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, dict(_scalars(record)))

    def flush(self) -> None:
        """Everything said so far is on disk when this returns."""
        self._file.flush()
        if self._speaks:
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()
        if self._board is not None:
            self._board.close()


def _cut(path: Path, step: int, evaluated: bool) -> None:
    if path.exists():
        kept = []
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
                again = record["step"] == step and "eval" in record and not evaluated
                if line.endswith(b"\n") and record["step"] <= step and not again:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut short
        with disk.replacing(path) as file:
            file.write(b"".join(kept))


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


class Clock:
    """Seconds since the start, and the pace of the steps since."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.steps = 0
        self.stepping = 0.0
        self._mark = self.start

    def pause(self) -> None:
        """The time since the last mark belonged to no step (evaluation, compilation)."""
        self._mark = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """So much of the time since the last mark belonged to no step."""
        self._mark += seconds

    def window(self, steps: int) -> float:
        """Seconds that the last `steps` steps took."""
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        self.steps += steps
        self.stepping += elapsed
        return elapsed

    def left(self, steps: int) -> float:
        """Expected seconds of `steps` more."""
        return steps * self.stepping / self.steps if self.steps else math.nan

    def since_start(self) -> float:
        return time.monotonic() - self.start
