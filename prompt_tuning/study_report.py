"""What a study found, as Markdown, JSON and pictures, beside the numbers of Vu et al. 2022."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_tuning import disk, spot, study_pictures
from prompt_tuning.log import finite

MEASURES = ("average_tokens", "per_token_average")

# Table 3, T5-base, 48 source prompts for 10 targets: change, relative error reduction, score.
PAPER = {
    "without transfer": ("", "", "74.7 ± 0.7"),
    "oracle": ("6.0 ± 0.5", "26.5 ± 1.1", "80.7 ± 0.0"),
    "best of top-1 by average_tokens": ("1.5 ± 0.5", "11.7 ± 1.1", "76.2 ± 0.1"),
    "best of top-3 by average_tokens": ("2.7 ± 0.6", "16.6 ± 1.1", "77.4 ± 0.3"),
    "best of top-6 by average_tokens": ("3.8 ± 0.1", "20.0 ± 1.1", "78.5 ± 0.5"),
    "best of top-9 by average_tokens": ("4.5 ± 0.4", "22.2 ± 1.1", "79.2 ± 0.1"),
    "best of top-12 by average_tokens": ("5.0 ± 0.9", "23.6 ± 2.2", "79.7 ± 0.4"),
    "best of top-15 by average_tokens": ("5.4 ± 0.8", "24.9 ± 1.8", "80.1 ± 0.3"),
    "best of top-1 by per_token_average": ("2.0 ± 0.4", "12.1 ± 1.1", "76.7 ± 0.7"),
    "best of top-3 by per_token_average": ("2.9 ± 0.6", "17.0 ± 0.6", "77.5 ± 0.4"),
    "best of top-6 by per_token_average": ("4.5 ± 0.5", "22.1 ± 1.2", "79.2 ± 0.1"),
    "best of top-9 by per_token_average": ("4.6 ± 0.5", "22.6 ± 0.9", "79.5 ± 0.2"),
    "best of top-12 by per_token_average": ("5.0 ± 0.6", "23.5 ± 1.4", "79.6 ± 0.1"),
    "best of top-15 by per_token_average": ("5.3 ± 0.9", "24.5 ± 2.2", "80.0 ± 0.4"),
    "top_k_weighted_average, k = 3": ("1.9 ± 0.5", "11.5 ± 2.7", "76.6 ± 0.1"),
    "top_k_mixture, k = 12": ("3.1 ± 0.5", "15.3 ± 2.8", "77.8 ± 0.1"),
}
# §3.3: Pearson's r of similarity and relative error reduction, and p, over 48 source prompts.
PAPER_CORRELATION = {
    "superglue_boolq": "-0.070 (.635)", "glue_cola": "0.028 (.852)", "glue_stsb": "0.708 (1.9e-8)",
    "superglue_wic": "0.163 (.270)", "spot_cr": "0.234 (.110)", "glue_mrpc": "0.243 (.096)",
    "superglue_rte": "0.290 (.046)", "superglue_wsc": "0.428 (.002)", "superglue_copa": "0.140 (.343)",
    "superglue_cb": "0.490 (<.001)",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """What a way to choose sources gained: means over targets, one number a target seed."""

    name: str
    change: Float[np.ndarray, "seeds"]
    error_reduction: Float[np.ndarray, "seeds"]
    score: Float[np.ndarray, "seeds"]


@dataclasses.dataclass
class Findings:
    """A study's numbers in percent: T targets, S sources, R seeds.

    NaN where a target may not start from a source, and where no evaluation gave a score.
    """

    sources: list[str]
    targets: list[str]
    seeds: list[int]
    baseline: Float[np.ndarray, "T R"]
    source_scores: Float[np.ndarray, "S R"]
    scores: Float[np.ndarray, "T S R"]
    similarity: Float[np.ndarray, "2 T R S R"]  # of a target's seed to a source prompt
    heat: tuple[list[str], Float[np.ndarray, "N N"]]  # tasks, and their similarity by `chosen`
    embedding_step: int
    chosen: str
    retrieval: list[Retrieval] = dataclasses.field(default_factory=list)

    @property
    def candidates(self) -> int:
        """Source prompts with a score that a target can choose from, of the target with the fewest."""
        return int(np.isfinite(self.scores).sum(axis=(1, 2)).min())

    @property
    def error_reduction(self) -> Float[np.ndarray, "T S"]:
        """Relative, of the means over seeds."""
        return self._reduction(self.scores.mean(axis=2))

    def _reduction(self, scores: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "T ..."]:
        reduce = lambda row, base: [spot.relative_error_reduction(float(s), float(base)) for s in row.ravel()]
        rows = [reduce(row, base) for row, base in zip(scores, self.baseline.mean(axis=1), strict=True)]
        return np.array(rows).reshape(scores.shape)

    def points(self, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each source prompt: similarity to a target, mean over its seeds, and relative error reduction `[S R]`."""
        measure = MEASURES.index(self.chosen)
        return self.similarity[measure, target].mean(axis=0), self._reduction(self.scores)[target]

    def correlation(self, target: int) -> spot.Correlation:
        """Whether the more alike helped this target more."""
        alike, gain = self.points(target)
        return spot.correlation(alike.ravel().tolist(), gain.ravel().tolist())


def write(folder: Path, found: Findings) -> None:
    """`study.md`, `study.json`, `error_reduction.png`, `similarity.png`, `correlation.png`."""
    study_pictures.error_reduction(folder / "error_reduction.png", found)
    study_pictures.similarity(folder / "similarity.png", *found.heat, found.chosen)
    study_pictures.correlation(folder / "correlation.png", found)
    text = markdown(found)
    for name, content in (("study.json", json.dumps(plain(found), indent=1)), ("study.md", text)):
        with disk.replacing(folder / name) as file:
            file.write(content.encode())
    print(text)
    print(f"tables and pictures in {folder}")


def plain(found: Findings) -> dict[str, Any]:
    """Everything as JSON knows it; null where there is no number."""
    rounded = lambda array: finite(np.round(array, 6).tolist())
    return {
        "sources": found.sources, "targets": found.targets, "seeds": found.seeds,
        "embedding_step": found.embedding_step, "similarity_measure": found.chosen,
        "baseline": rounded(found.baseline), "source_scores": rounded(found.source_scores),
        "transfer_scores": rounded(found.scores), "relative_error_reduction": rounded(found.error_reduction),
        "similarity": {name: rounded(found.similarity[i]) for i, name in enumerate(MEASURES)},
        "task_similarity": {"tasks": found.heat[0], "values": rounded(found.heat[1])},
        "correlation": {
            target: {k: finite(v) for k, v in dataclasses.asdict(found.correlation(t)).items()}
            for t, target in enumerate(found.targets)
        },
        "retrieval": [
            {"name": r.name, "change": rounded(r.change), "relative_error_reduction": rounded(r.error_reduction),
             "score": rounded(r.score)}
            for r in found.retrieval
        ],
    }  # fmt: skip


def markdown(found: Findings) -> str:
    """The study as a person reads it."""
    seeds, count = len(found.seeds), len(found.sources) * len(found.seeds)
    parts = [
        "# Transfer study (SPoT)\n",
        f"{len(found.sources)} sources x {len(found.targets)} targets x {seeds} seeds: {count} source prompts, compared"
        f" at step {found.embedding_step} by {found.chosen}. Validation scores in percent, mean ± deviation over seeds."
        " No task starts from itself or from tasks joined by + of which it is one.\n",
        "## Relative error reduction\n",
        "In parentheses and in the picture: the percentage of the error without transfer that each takes away.\n",
        "![relative error reduction](error_reduction.png)\n",
        *_scores(found),
        "## Similarity of task embeddings\n",
        f"{found.chosen} at step {found.embedding_step}, mean over pairs of seeds, in the order of their clusters.\n",
        "![similarity](similarity.png)\n",
        "## Did similarity predict transfer?\n",
        *_correlations(found),
        "![correlation](correlation.png)\n",
        "## Retrieval\n",
        *_retrieval(found),
    ]
    return "\n".join(parts)


def _scores(found: Findings) -> list[str]:
    lines = [_row("", *found.targets), _rule(len(found.targets) + 1)]
    lines.append(_row("without transfer", *(mean_and_deviation(values) for values in found.baseline)))
    for s, source in enumerate(found.sources):
        cells = [
            ""
            if np.isnan(alike).all()  # it may not start from there
            else mean_and_deviation(scores) + ("" if math.isnan(gain) else f" ({gain:+.1f})")
            for scores, gain, alike in zip(
                found.scores[:, s], found.error_reduction[:, s], found.similarity[0, :, :, s], strict=True
            )
        ]
        lines.append(_row(f"from {source}", *cells))
    return [*lines, ""]


def _correlations(found: Findings) -> list[str]:
    paper = [PAPER_CORRELATION.get(target.removesuffix("_prefixed")) for target in found.targets]
    more = ("paper: r (p)",) if any(paper) else ()
    lines = [_row("target", "r", "p", "source prompts", *more), _rule(4 + len(more))]
    for t, target in enumerate(found.targets):
        c = found.correlation(t)
        shown = ("-", "-") if math.isnan(c.r) else (f"{c.r:.3f}", f"{c.p:.2g}")
        lines.append(_row(target, *shown, str(c.points), *((paper[t] or "",) if more else ())))
    return [*lines, ""]


def _retrieval(found: Findings) -> list[str]:
    columns = (
        "",
        "change",
        "error reduction, %",
        "score",
        "paper: change",
        "paper: error reduction, %",
        "paper: score",
    )
    none = mean_and_deviation(found.baseline.mean(axis=0))
    lines = [_row(*columns), _rule(len(columns)), _row("without transfer", "", "", none, *PAPER["without transfer"])]
    for r in found.retrieval:
        key = "oracle" if "oracle" in r.name else r.name
        cells = [mean_and_deviation(values) for values in (r.change, r.error_reduction, r.score)]
        lines.append(_row(r.name, *cells, *PAPER.get(key, ("", "", ""))))
    note = "The paper's: T5-base, 16 sources x 10 targets x 3 seeds (Vu et al. 2022, Table 3). Means over targets,"
    return [*lines, "", f"{note} deviation over the target's seeds; the oracle tries every source prompt.", ""]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" + "|---:" * (columns - 1) + "|"


def mean_and_deviation(values: Sequence[float] | np.ndarray) -> str:
    """74.7 ± 0.7, as the papers print it: the deviation of the sample, none of a single number; - for no number."""
    if not np.isfinite(values).all():
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"
