"""A study's pictures: relative error reduction and similarity as heat maps, one against the other as points."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

INK, PALE, RULE = "#1f2430", "#8a8f9c", "#d9dbe1"


def error_reduction(path: Path, found: Any) -> None:
    """Sources down, targets across; blue takes error away, red adds some."""
    values = found.error_reduction.T
    figure, axes = _canvas(2.6 + 0.95 * values.shape[1], 1.5 + 0.42 * values.shape[0])
    finite = np.abs(values[np.isfinite(values)])
    bound = max(float(finite.max(initial=0)), 1.0)
    image = axes.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    _cells(axes, values, lambda v: f"{v:+.1f}", lambda v: abs(v) > 0.6 * bound)
    _ticks(axes, found.targets, found.sources)
    _title(figure, "Relative error reduction (%), by source and target")
    _bar(figure, image, axes)
    _save(figure, path)


def similarity(path: Path, tasks: list[str], values: Float[np.ndarray, "N N"], measure: str) -> None:
    """Tasks in the order of their clusters (average linkage over 1 - similarity), the tree above."""
    order, tree = clusters(values)
    values, tasks = values[np.ix_(order, order)], [tasks[i] for i in order]
    size = 2.0 + (0.55 if len(tasks) < 12 else 0.4) * len(tasks)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size + 1.2, size + 1.0), layout="constrained")
    above, axes = figure.subplots(2, 1, height_ratios=(0.8, size - 0.8))
    _draw_tree(above, tree, len(tasks))
    shown = np.where(np.eye(len(tasks), dtype=bool), np.nan, values)
    low, high = (np.nanmin(shown), np.nanmax(shown)) if len(tasks) > 1 else (0, 1)
    image = axes.imshow(values, cmap="YlGnBu", vmin=low, vmax=high, aspect="auto")
    middle = low + 0.55 * (high - low)
    _cells(axes, values, lambda v: f"{v:.2f}", lambda v: v > middle)
    _ticks(axes, tasks, tasks)
    _title(figure, f"Similarity of task embeddings, {measure.replace('_', ' ')}")
    _bar(figure, image, axes)
    _save(figure, path)


def clusters(values: Float[np.ndarray, "N N"]) -> tuple[list[int], np.ndarray | None]:
    """Tasks in the order of a hierarchical clustering of their similarities, and its linkage; none for one task."""
    if len(values) < 2:
        return list(range(len(values))), None
    from scipy.cluster import hierarchy
    from scipy.spatial import distance

    apart = 1 - (values + values.T) / 2
    np.fill_diagonal(apart, 0)
    linkage = hierarchy.linkage(
        distance.squareform(np.maximum(apart, 0), checks=False), "average", optimal_ordering=True
    )
    return hierarchy.leaves_list(linkage).tolist(), linkage


def correlation(path: Path, found: Any) -> None:
    """A panel a target, a point a source prompt: similarity across, error reduction up, the line of least squares."""
    count = len(found.targets)
    across = min(count, 4)
    down = math.ceil(count / across)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * across + 0.4, 2.7 * down + 0.7), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.ravel()[count:]:
        axes.remove()
    colours = _colours(len(found.sources))
    for t, axes in zip(range(count), panels.ravel(), strict=False):
        _panel(axes, found, t, colours)
    figure.supxlabel(f"similarity, {found.chosen.replace('_', ' ')}", fontsize=9, color=INK)
    figure.supylabel("relative error reduction (%)", fontsize=9, color=INK)
    shown: dict[str, Any] = {}
    for axes in panels.ravel()[:count]:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    names = [source for source in found.sources if source in shown]
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside upper left", ncols=min(len(names), 6), frameon=False, fontsize=8)
    _save(figure, path)


def _panel(axes: Any, found: Any, t: int, colours: list[Any]) -> None:
    alike, gain = found.points(t)
    for s, source in enumerate(found.sources):
        if np.isfinite(gain[s]).any():
            axes.scatter(
                alike[s], gain[s], s=26, color=colours[s], edgecolor="white", linewidth=0.6, label=source, zorder=3
            )
    there = np.isfinite(gain) & np.isfinite(alike)
    c = found.correlation(t)
    if not math.isnan(c.r):
        slope, start = np.polyfit(alike[there], gain[there], 1)
        ends = np.array([alike[there].min(), alike[there].max()])
        axes.plot(ends, start + slope * ends, color=PALE, linewidth=1.2, zorder=2)
    axes.axhline(0, color=RULE, linewidth=0.9, zorder=1)
    told = "" if math.isnan(c.r) else f"   r = {c.r:.2f}, p = {c.p:.2g}"
    axes.set_title(f"{found.targets[t]}{told}", loc="left", fontsize=9, color=INK)
    _plain(axes)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10" if count <= 10 else "tab20"](i % 20) for i in range(count)]


def _cells(axes: Any, values: np.ndarray, word: Any, dark: Any) -> None:
    """Writes each number into its cell, white where the cell is dark."""
    for i, j in np.ndindex(values.shape):
        if np.isfinite(values[i, j]):
            colour = "white" if dark(values[i, j]) else INK
            axes.text(
                j, i, word(values[i, j]), ha="center", va="center", fontsize=8 if len(values) < 12 else 7, color=colour
            )
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.set_facecolor("#f1f2f5")  # a target may not start from every source


def _ticks(axes: Any, across: list[str], down: list[str]) -> None:
    axes.set_xticks(range(len(across)), across, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(down)), down)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _draw_tree(axes: Any, tree: np.ndarray | None, count: int) -> None:
    if tree is not None:
        from scipy.cluster import hierarchy

        hierarchy.dendrogram(tree, ax=axes, no_labels=True, color_threshold=0, above_threshold_color=PALE)
        axes.set_xlim(0, 10 * count)  # scipy puts leaf i at 10 i + 5: the tree stands above the columns
    axes.set_axis_off()


def _title(figure: Any, text: str) -> None:
    """From the picture's edge on: of few tasks the cells, which begin behind the names, are narrower than a title."""
    figure.suptitle(text, x=0.02, ha="left", fontsize=10, color=INK)


def _bar(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(labelsize=8, color=RULE, labelcolor=INK)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=160, facecolor="white")
