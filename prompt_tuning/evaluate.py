"""prompt-tuning eval: the best prompts of a run, or prompts from files, scored on a split, alone and together."""

import collections
import contextlib
import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table

from prompt_tuning import device, ensemble, infer, inits, job, prompt_file, terminal
from prompt_tuning.bank import name_of
from prompt_tuning.checkpoint import Checkpointer
from prompt_tuning.errors import UserError
from prompt_tuning.log import finite
from prompt_tuning.metrics import averages
from prompt_tuning.over_prompts import over_prompts
from prompt_tuning.prompt_file import Prompt
from prompt_tuning.run import Opened, Run, open_run

Metrics = dict[str, float]


def evaluate_run(run: Run, files: Sequence[str] = ()) -> list[Metrics]:
    """Prints the metrics on EVAL_SPLIT of each slot, or of the prompts in `files`, and of those of one task together.

    Of a run that tuned a whole model, that model is scored; of one that was not trained yet and whose PROMPT_INIT is
    `@from_file`, that file. With a MODEL_DIR they are added to its `eval.jsonl`.
    """
    prompts = _named(files)
    if run.tuning.whole_model:
        run = dataclasses.replace(run, frozen=dataclasses.replace(run.frozen, path=str(run.folder / "base")))
    opened = open_run(over_prompts(run, list(prompts.items())) if prompts else run)
    prompt: dict[str, Any] = {}
    if run.tuning.whole_model:
        steps = [str(opened.base.step)]
    elif prompts:
        prompt["bank"], steps = _bank(opened, prompts), [_step(one) for one in prompts.values()]
    else:
        prompt["bank"], steps = _of_run(opened)
    params = opened.base.params | {"prompt": device.put_everywhere(prompt, opened.mesh)}
    held_out = opened.held_out()
    with device.on(opened.mesh):
        answers = infer.answer_all(opened.answerer(), params, held_out, run.predict)
    metrics = [infer.score(pairs, given) for pairs, given in zip(held_out, answers, strict=True)]
    reports = _ensembles(opened, held_out, answers, metrics)
    means = _averages(opened, metrics)
    if job.writes():
        _show(opened, held_out, steps, metrics, means, reports)
    if run.model_dir and job.writes():
        _record(run, opened, steps, metrics, means, reports)
    return metrics


def commonest(held_out: infer.HeldOut) -> Metrics:
    """The metrics of giving the commonest answer of each task, whatever the input."""
    answers = []
    for held in held_out:
        right = [text["targets_pretokenized"] for text in held.examples.texts]
        ((answer, _),) = collections.Counter(right).most_common(1)
        answers.append([infer.Answer(answer, {}, 0.0)] * len(right))
    return infer.score(held_out, answers)


def _ensembles(
    opened: Opened, held_out: list, answers: list[list[list[infer.Answer]]], metrics: list[Metrics]
) -> dict[str, ensemble.Report]:
    """What slots of the same task and labels reach together, by the task's name."""
    reports = {}
    keys = [(mixture.name, labels) for mixture, labels in zip(opened.mixtures, opened.labels, strict=True)]
    for team in ensemble.teams(keys):
        pairs = held_out[team[0]]
        together = {}
        for way, combine in ensemble.WAYS.items():
            joint = [
                [combine(each) for each in zip(*(answers[k][t] for k in team), strict=True)] for t in range(len(pairs))
            ]
            together[way] = infer.score(pairs, joint)
        members = {opened.slots[k].name: metrics[k] for k in team}
        task, labels = keys[team[0]]
        named = task if task not in reports else f"{task} ({', '.join(labels)})"
        reports[named] = ensemble.Report(members, together)
    return reports


def _show(
    opened: Opened, held_out: list, steps: list[str], metrics: list[Metrics], means: Metrics,
    reports: dict[str, ensemble.Report],
) -> None:  # fmt: skip
    table = Table(
        Column("prompt", overflow="fold"), "step", "split", "examples", "metrics", box=None, header_style="bold"
    )
    for slot, step, pairs, found in zip(opened.slots, steps, held_out, metrics, strict=True):
        count = sum(len(held.examples) for held in pairs)
        table.add_row(slot.name, step, opened.run.data.eval_split, f"{count:,}", _words(found))
    console = terminal.console()
    console.print(table)
    for benchmark, score in means.items():
        console.print(f"\n{benchmark}, the mean of its tasks: {score:.2f}")
    for task, report in reports.items():
        table = Table(f"{len(report.members)} prompts of {task}", "metrics", box=None, header_style="bold")
        table.add_row("mean", _words(report.mean))
        table.add_row(f"best ({report.best})", _words(report.members[report.best]))
        for way, found in report.together.items():
            table.add_row(f"ensemble, {way}", _words(found))
        console.print()
        console.print(table)


def _averages(opened: Opened, metrics: list[Metrics]) -> Metrics:
    """SuperGLUE's and GLUE's score, where prompts for all of their tasks are scored; of one task's prompts the mean."""
    of_task: dict[str, list[float]] = {}
    for mixture, found in zip(opened.mixtures, metrics, strict=True):
        of_task.setdefault(mixture.name, []).append(infer.mean_metric(found))
    return averages({task: statistics.fmean(scores) for task, scores in of_task.items()})


def _words(metrics: Metrics) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in metrics.items())


def _record(
    run: Run, opened: Opened, steps: list[str], metrics: list[Metrics], means: Metrics,
    reports: dict[str, ensemble.Report],
) -> None:  # fmt: skip
    named = {slot.name: found for slot, found in zip(opened.slots, metrics, strict=True)}
    record: dict[str, Any] = {"split": run.data.eval_split, "step": steps, "metrics": named}
    if means:
        record["averages"] = means
    if reports:
        record["ensembles"] = {
            task: {"members": list(r.members), "mean": r.mean, "best": {r.best: r.members[r.best]}, **r.together}
            for task, r in reports.items()
        }
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "eval.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite(record)) + "\n")


def _of_run(opened: Opened) -> tuple[np.ndarray, list[str]]:
    """The bank to score and the step each prompt is of; where nothing was trained, the files that PROMPT_INIT names."""
    run = opened.run
    trained = _is_trained(run)
    if not trained and all(getattr(slot.init, "__name__", "") == inits.from_file.__name__ for slot in opened.slots):
        return opened.start_bank(), ["file"] * len(opened.slots)
    if not trained:
        raise UserError(
            f"There is no checkpoint in {run.folder}. Train first, or type --prompts FILE ... to score prompts from"
            " files."
        )
    paths = [run.folder / "prompts" / f"{slot.name}.safetensors" for slot in opened.slots]
    if missing := [path for path in paths if not path.is_file()]:
        there = ", ".join(sorted(f.stem for f in missing[0].parent.glob("*.safetensors"))) or "nothing"
        raise UserError(
            f"There is no {missing[0].name} in {missing[0].parent}, which holds {there}. Type the GRID or SLOTS that"
            f" the run was trained with, or --prompts {run.folder} to score what is there."
        )
    prompts = {str(path): prompt_file.load(path) for path in paths}
    for slot, labels, (path, prompt) in zip(opened.slots, opened.labels, prompts.items(), strict=True):
        _refuse_other_use(path, prompt, slot.placement.__name__, labels)
    return _bank(opened, prompts), [_step(one) for one in prompts.values()]


def _is_trained(run: Run) -> bool:
    """Whether a run has saved anything."""
    if not run.model_dir or not (run.folder / "checkpoints").is_dir():
        return False
    with contextlib.closing(Checkpointer(run.folder)) as saved:
        return saved.latest is not None


def _bank(opened: Opened, prompts: dict[str, Prompt]) -> np.ndarray:
    """The prompts in the slots, `bank[K P D]`. Raises UserError for one of another base."""
    bank = np.zeros((len(opened.slots), opened.model.length, opened.base.config.emb_dim), np.float32)
    for k, (name, prompt) in enumerate(prompts.items()):
        opened.base.check(prompt, name)
        length = len(prompt.vectors)
        if length != opened.slots[k].length:
            raise UserError(f"The prompt {name} has {length} vectors. Type --gin.PROMPT_LENGTH={length}.")
        bank[k, :length] = prompt.vectors
    return bank


def _refuse_other_use(path: str, prompt: Prompt, placement: str, labels: tuple[str, ...]) -> None:
    """Raises UserError for a run's prompt that is to stand elsewhere, or rank other labels, than when it was tuned."""
    card = prompt.card
    if card.placement not in ("", placement):
        raise UserError(f"{path} was tuned with --gin.PROMPT_PLACEMENT=@{card.placement}: type that too.")
    if card.labels and card.labels != labels:
        raise UserError(
            f"{path} was tuned to rank {list(card.labels)}, and now {list(labels)} are wanted. Type"
            f' --gin.CLASS_LABELS="{list(card.labels)}", or --prompts {path} to rank others.'
        )


def _step(prompt: Prompt) -> str:
    return "file" if prompt.card.step is None else str(prompt.card.step)


def _named(files: Sequence[str]) -> dict[str, Prompt]:
    """Prompts by name: that of the card or file, or where two share it, what differs in the path.

    A folder stands for all prompts in it.
    """
    paths = [path for file in files for path in _inside(Path(file).expanduser())]
    prompts = {str(path): prompt_file.load(path) for path in paths}
    names = {path: name_of(path, prompt.card) for path, prompt in prompts.items()}
    counts = collections.Counter(names.values())
    alike = [path for path in prompts if counts[names[path]] > 1]
    shared = os.path.commonpath([Path(path).absolute().parent for path in alike]) if alike else ""
    told = lambda path: os.path.relpath(path, shared) if path in alike else names[path]
    return {told(path): prompt for path, prompt in prompts.items()}


def _inside(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    prompt_file.refuse_unimported(path)
    folder = path / "prompts" if (path / "prompts").is_dir() else path  # a run's folder, or the one inside it
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise UserError(f"There is no .safetensors prompt in the folder {folder}.")
    return found
