"""Pictures of a run: the curves of metrics.jsonl."""

import json
from pathlib import Path
from typing import Any

from prompt_tuning.infer import mean_metric

NAMED = 8  # slots that get a line in the legend; of more, the lines alone are drawn


def curves(folder: Path) -> Path | None:
    """Draws each slot's loss and mean metric over the steps into `folder/curves.png`; None if there is nothing yet."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    scores = [(r["step"], {name: mean_metric(m) for name, m in r["eval"].items()}) for r in records if "eval" in r]
    if not losses or not scores:
        return None
    from matplotlib import figure  # not pyplot: no display, no global state

    picture = figure.Figure(figsize=(9, 3.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    _lines(left, losses, "loss per target token", marker="")
    left.set_yscale("log")
    _lines(right, scores, "validation, mean metric (%)", marker="o")
    if len(scores[0][1]) <= NAMED:
        right.legend(frameon=False, fontsize=8)
    path = folder / "curves.png"
    picture.savefig(path, dpi=150)
    return path


def _lines(axes: Any, points: list[tuple[int, dict[str, float]]], label: str, marker: str) -> None:
    for name in points[0][1]:
        axes.plot([step for step, _ in points], [values[name] for _, values in points], marker=marker, ms=3, label=name)
    axes.set_xlabel("step")
    axes.set_title(label, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
