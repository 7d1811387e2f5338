"""Pictures of a run: the curves of metrics.jsonl."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.infer import mean_metric

Point = tuple[int, dict[str, float]]  # a step, and a number for each slot

NAMED = 8  # slots that get a line in the legend; of more, those that came furthest


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
    names, sign = list(scores[0][1]), -1 if metrics == {"validation_loss"} else 1
    furthest = lambda name: max((sign * value for value in _numbers(scores, name)), default=-math.inf)
    shown, beside = names, {}
    if len(names) > NAMED:
        shown = sorted(names, key=furthest, reverse=True)[:NAMED]
        beside = {"title": f"best {NAMED} of {len(names)}", "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    lines = dict(zip(names, right.lines, strict=True))
    right.legend([lines[name] for name in shown], shown, frameon=False, fontsize=8, **beside)
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
    seen = lambda value: math.nan if value is None else value
    losses = [(r["step"], {k: seen(v) for k, v in r["loss"].items()}) for r in records if "loss" in r]
    found = [(r["step"], r["eval"]) for r in records if "eval" in r]
    of_all = lambda m: mean_metric({name: seen(value) for name, value in m.items()})
    scores = [(step, {name: of_all(m) for name, m in slots.items()}) for step, slots in found]
    return losses, scores, {name for _, slots in found for m in slots.values() for name in m}


def _numbers(points: list[Point], name: str) -> list[float]:
    """A slot's numbers, where they are some."""
    return [values[name] for _, values in points if not math.isnan(values[name])]


def _lines(axes: Any, points: list[Point], label: str, marker: str) -> None:
    from matplotlib import colormaps

    names = list(points[0][1])
    few = len(names) <= 10
    colours = colormaps["tab10"](range(10)) if few else colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    for name, colour in zip(names, colours, strict=False):
        values = [values[name] for _, values in points]
        axes.plot([step for step, _ in points], values, marker=marker, ms=3, label=name, color=colour)
    axes.set_xlabel("step")
    axes.set_title(label, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
