"""prompt-tuning spot: what other tasks' prompts do for a target, from training them to the report."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from prompt_tuning import disk, job, prompt_file, spot, spot_steps, terminal
from prompt_tuning.log import finite
from prompt_tuning.run import Run
from prompt_tuning.spot_steps import Compared, Retuning, Spot, Steps, Tuned, label
from prompt_tuning.study_report import mean_and_deviation


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What transfer did for one target: percent, one number a seed."""

    target: str
    without: list[float]
    tried: list[list[tuple[Retuning, Tuned]]]  # of each seed

    @property
    def best(self) -> list[tuple[Retuning, Tuned]]:
        """Each seed's best tuning by validation."""
        return [max(tried, key=lambda pair: pair[1].score) for tried in self.tried]

    @property
    def scores(self) -> list[float]:
        """With transfer."""
        return [tuned.score for _, tuned in self.best]

    @property
    def error_reduction(self) -> float:
        """Relative, of the mean scores."""
        return spot.relative_error_reduction(float(np.mean(self.scores)), float(np.mean(self.without)))


def transfer(settings: Spot, run: Run) -> list[Outcome]:
    """Tunes sources and targets, compares them, picks, tunes again, and writes `spot.md`, `spot.json` and prompts."""
    settings.check(run, {"TOP_K": [settings.top_k]})
    steps = Steps(run, settings.bank_slots)
    scratch = spot_steps.tune_from_scratch(settings, steps)
    compared = spot_steps.compare(settings, scratch, run.folder)
    wanted = {
        (target, seed): _retunings(settings, compared, (target, seed))
        for target in settings.targets
        for seed in settings.seeds
    }
    tuned = spot_steps.retune(settings, steps, scratch, [retuning for group in wanted.values() for retuning in group])
    outcomes = [
        Outcome(
            target,
            [scratch.targets[target, seed].score for seed in settings.seeds],
            [[(retuning, tuned[retuning.name]) for retuning in wanted[target, seed]] for seed in settings.seeds],
        )
        for target in settings.targets
    ]
    if job.writes():
        _write(settings, run.folder, compared, outcomes)
    return outcomes


def _retunings(settings: Spot, compared: Compared, target: spot_steps.Key) -> list[Retuning]:
    task, seed = target
    picks = spot_steps.picked(settings, compared, target, settings.retrieve, settings.top_k)
    start = f"target-{label(task)}-seed{seed}"
    return [Retuning(task, seed, pick, f"{start}-from-{_short(pick)}") for pick in picks]


def _short(pick: spot.Pick) -> str:
    if len(pick.sources) == 1 and not pick.mixture:
        return pick.sources[0].removeprefix("source-")
    return f"{'mixture' if pick.mixture else 'average'}{len(pick.sources)}"


def _write(settings: Spot, folder: Path, compared: Compared, outcomes: Sequence[Outcome]) -> None:
    best = [max(outcome.best, key=lambda pair: pair[1].score)[1] for outcome in outcomes]
    for outcome, tuned in zip(outcomes, best, strict=True):
        if math.isfinite(tuned.score):  # else no prompt of this target was ever scored, and none is the best
            with disk.replacing(folder / "prompts" / f"{label(outcome.target)}.safetensors") as file:
                file.write(prompt_file.find(tuned.best).read_bytes())
    plain = [_plain(settings, compared, outcome) for outcome in outcomes]
    for name, content in (
        ("spot.json", json.dumps(finite(plain), indent=1, allow_nan=False)),
        ("spot.md", _markdown(settings, outcomes)),
    ):
        with disk.replacing(folder / name) as file:
            file.write(content.encode())
    console = terminal.console()
    table = Table(
        "target", "without transfer", "with transfer", "relative error reduction", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for outcome in outcomes:
        table.add_row(label(outcome.target), *_numbers(outcome))
    console.print(table)
    console.print(f"all of it in {folder / 'spot.md'}, the prompts in {folder / 'prompts'}", soft_wrap=True)


def _plain(settings: Spot, compared: Compared, outcome: Outcome) -> dict:
    tries = [
        {
            "seed": retuning.seed, "name": retuning.name, "sources": retuning.pick.sources,
            "weights": retuning.pick.weights, "mixture": retuning.pick.mixture, "score": tuned.score,
            "step": tuned.step, "prompt": str(prompt_file.find(tuned.best)) if math.isfinite(tuned.score) else None,
            "best": (retuning, tuned) in outcome.best,
        }
        for tried in outcome.tried for retuning, tuned in tried
    ]  # fmt: skip
    alike = {
        str(seed): {spot_steps.source_name(key): value for key, value in _of(settings, compared, outcome, seed).items()}
        for seed in settings.seeds
    }
    return {
        "target": outcome.target, "seeds": list(settings.seeds), "similarity": alike,
        "without_transfer": outcome.without, "with_transfer": outcome.scores,
        "relative_error_reduction": outcome.error_reduction, "tunings": tries,
    }  # fmt: skip


def _of(settings: Spot, compared: Compared, outcome: Outcome, seed: int) -> dict[spot_steps.Key, float]:
    return compared.of_target((outcome.target, seed), settings.similarity)


def _markdown(settings: Spot, outcomes: Sequence[Outcome]) -> str:
    lines = [
        "# Transfer from other tasks' prompts (SPoT)\n",
        f"{settings.retrieve.__name__} with k = {settings.top_k} by {settings.similarity.__name__} at step"
        f" {settings.embedding_step}; validation scores in percent, mean and standard deviation over seeds"
        f" {', '.join(map(str, settings.seeds))}.\n",
        "| target | without transfer | with transfer | relative error reduction |",
        "|---|---|---|---|",
    ]
    lines += [f"| {label(o.target)} | {' | '.join(_numbers(o))} |" for o in outcomes]
    lines += ["", "| target | seed | starts from | score | best step |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        for tried in outcome.tried:
            for retuning, tuned in tried:
                score = f"{tuned.score:.2f}" + (" (kept)" if (retuning, tuned) in outcome.best else "")
                score = score if math.isfinite(tuned.score) else "-"
                lines.append(
                    f"| {label(outcome.target)} | {retuning.seed} | {_story(retuning.pick)} | {score} | {tuned.step} |"
                )
    return "\n".join(lines) + "\n"


def _story(pick: spot.Pick) -> str:
    names = [name.removeprefix("source-") for name in pick.sources]
    if pick.mixture:
        return f"a mixture of {', '.join(names)} and the target"
    if len(names) == 1:
        return names[0]
    return " + ".join(f"{weight:.3f} {name}" for name, weight in zip(names, pick.weights, strict=True))


def _numbers(outcome: Outcome) -> tuple[str, str, str]:
    reduction = outcome.error_reduction
    shown = f"{reduction:.1f} %"
    if math.isnan(reduction):
        shown = "no error to take away" if np.mean(outcome.without) >= 100 else "-"
    return mean_and_deviation(outcome.without), mean_and_deviation(outcome.scores), shown
