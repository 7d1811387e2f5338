"""Pictures of a run: the curves of metrics.jsonl."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_tuning.infer import mean_metric

Point = tuple[int, dict[str, float]]  # a step, and a number for each slot

NAMED = 8  # slots that get a line in the legend; of more, the lines alone are drawn


def curves(folder: Path) -> Path | None:
    """Draws each slot's loss and mean metric over the steps into `folder/curves.png`; None if there is nothing yet."""
    losses, scores, metrics = _read(folder)
    if not losses or not scores:
        return None
    from matplotlib import figure  # not pyplot: no display, no global state

    picture = figure.Figure(figsize=(9, 3.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    _lines(left, losses, "loss per target token", marker="")
    left.set_yscale("log")
    _lines(right, scores, "validation loss" if metrics == {"validation_loss"} else "validation, mean metric (%)", "o")
    if len(scores[0][1]) <= NAMED:
        right.legend(frameon=False, fontsize=8)
    path = folder / "curves.png"
    picture.savefig(path, dpi=150)
    return path


def comparison(folder: Path, runs: Mapping[str, str], levels: Mapping[str, float]) -> Path:
    """Draws the first slot's mean metric of several runs, `folder/<value>` each, into `folder/comparison.png`.

    `levels` are drawn as flat lines: what needs no training.
    """
    from matplotlib import figure

    picture = figure.Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = picture.subplots()
    for name, inside in runs.items():
        _, scores, _ = _read(folder / inside)
        _lines(axes, [(step, {name: next(iter(values.values()))}) for step, values in scores], "", "o")
    for (name, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="0.5", linestyle=style, linewidth=1, label=name)
    axes.set_title("validation accuracy (%)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    path = folder / "comparison.png"
    picture.savefig(path, dpi=150)
    return path


def _read(folder: Path) -> tuple[list[Point], list[Point], set[str]]:
    """Losses and mean metrics at their steps, and what the metrics are called."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    seen = lambda loss: math.nan if loss is None else loss
    losses = [(r["step"], {k: seen(v) for k, v in r["loss"].items()}) for r in records if "loss" in r]
    found = [(r["step"], r["eval"]) for r in records if "eval" in r]
    scores = [(step, {name: mean_metric(m) for name, m in slots.items()}) for step, slots in found]
    return losses, scores, {name for _, slots in found for m in slots.values() for name in m}


def _lines(axes: Any, points: list[Point], label: str, marker: str) -> None:
    for name in points[0][1]:
        axes.plot([step for step, _ in points], [values[name] for _, values in points], marker=marker, ms=3, label=name)
    axes.set_xlabel("step")
    axes.set_title(label, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
