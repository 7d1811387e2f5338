"""SPoT's steps (Vu et al. 2022, §3): each a training run in a folder of its own below MODEL_DIR, done once.

A step is done when `finished.json` stands in its folder; one that was cut short goes on from its own checkpoints.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np

from prompt_tuning import disk, inits, job, kinds, prompt_file, slots, spot
from prompt_tuning.checkpoint import changes
from prompt_tuning.errors import UserError
from prompt_tuning.run import Run
from prompt_tuning.train import settings_of, train
from prompt_tuning.tuning import PromptTuning

FINISHED = "finished.json"


def may_start(source: str, target: str) -> bool:
    """Whether a target may start from a source: not from its own task, nor from several of which it is one."""
    task = lambda part: str(Path(part).resolve()) if part.endswith(".toml") else part.removesuffix("_prefixed")
    tasks = lambda name: {task(part) for part in name.split("+")}
    return not tasks(target) <= tasks(source)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Spot:
    """What SPoT is told besides a run's settings; gin/spot.gin says what each means."""

    sources: Sequence[str] = ()
    targets: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    source_steps: int = 262_144
    source_init: inits.Init = inits.sampled_vocabulary
    embedding_step: int = 10_000
    similarity: spot.Similarity = spot.per_token_average
    retrieve: spot.Retrieve = spot.best_of_top_k
    top_k: int = 3
    average_top: Sequence[int] = (3,)
    mixture_top: Sequence[int] = ()
    bank_slots: int | None = None

    def __post_init__(self) -> None:
        for name in ("sources", "targets", "seeds"):
            values = getattr(self, name)
            if isinstance(values, str) or not values:
                such = "[0, 1, 2]" if name == "seeds" else "['a', 'b']"
                wrong = f"{values!r}; it is a list" if values else "empty"
                raise UserError(f'{name.upper()} is {wrong}. Type --gin.{name.upper()}="{such}".')
            kinds.check(kinds.WHOLES if name == "seeds" else kinds.TEXTS, **{name.upper(): values})
            called = [label(str(value)) for value in values]
            if twice := next((one for one in called if called.count(one) > 1), None):
                file = "" if len(set(values)) < len(values) else " A task file is called as the file is: rename one."
                raise UserError(f"{name.upper()} names {twice} twice: {list(values)}.{file}")
        of = lambda *names: {name.upper(): getattr(self, name) for name in names}
        kinds.check(kinds.WHOLE, **of("source_steps", "embedding_step", "top_k"))
        kinds.check(kinds.WHOLE, True, **of("bank_slots"))
        kinds.check(kinds.WHOLES, **of("average_top", "mixture_top"))
        kinds.check(kinds.FUNCTION, **of("source_init", "similarity", "retrieve"))
        for target in self.targets:
            if not self.sources_of(target):
                raise UserError(
                    f"There is no source for the target {target}: a task is no source of itself, nor are tasks"
                    " joined by + of which it is one."
                )

    def sources_of(self, target: str) -> list[str]:
        """The sources that a target may start from."""
        return [source for source in self.sources if may_start(source, target)]

    def check(self, run: Run, tops: Mapping[str, Sequence[int]]) -> None:
        """Raises UserError where settings do not fit each other; `tops` are the k that will be wanted, by name."""
        fewest = min(len(self.sources_of(target)) for target in self.targets) * len(self.seeds)
        for name, k in ((name, k) for name, ks in tops.items() for k in ks):
            if not isinstance(k, int) or not 1 <= k <= fewest:
                raise UserError(f"{name} has {k!r}, and a target has {fewest} source prompts to choose from.")
        told = slots.Slot()
        if told.labels is not None or told.seed:
            name = "CLASS_LABELS" if told.labels is not None else "RANDOM_SEED"
            raise UserError(f"spot takes labels from its tasks and seeds from SEEDS: leave {name} out.")
        if run.patience is not None:
            raise UserError("spot compares all prompts at EMBEDDING_STEP, which none may stop before: leave PATIENCE at None.")  # fmt: skip # noqa: E501
        if type(run.tuning) is not PromptTuning:
            raise UserError("spot moves prompts between tasks; leave TUNING at @PromptTuning().")
        if run.model_dir and (run.folder / "checkpoints").is_dir():
            raise UserError(f"{run.folder} holds a run of `train`, whose prompts spot would write over: give another MODEL_DIR.")  # fmt: skip # noqa: E501
        step, period = self.embedding_step, run.eval_period
        if run.slots is not None or run.grid is not None or run.data.task_file:
            raise UserError("spot makes its slots from SOURCES, TARGETS and SEEDS: leave SLOTS, GRID and TASK_FILE at None. A task file may be named among SOURCES and TARGETS.")  # fmt: skip # noqa: E501
        for name, steps in (("SOURCE_STEPS", self.source_steps), ("TRAIN_STEPS", run.train_steps)):
            if step > steps or (step % period and step != steps):
                raise UserError(
                    f"EMBEDDING_STEP is {step}: prompts are kept every EVAL_PERIOD={period} steps and at the last one,"
                    f" {name}={steps}. Choose one of these."
                )


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One prompt of a finished step."""

    run: str  # folder
    name: str
    score: float
    step: int  # of the best score
    last: int  # step

    @property
    def best(self) -> str:
        """Where its best prompt is (see `prompt_file.find`)."""
        return f"{self.run}:{self.name}"

    def at(self, step: int) -> str:
        """Where its prompt of a step is."""
        return f"{self.run}:{self.name}@{step}"


class Stopped(Exception):
    """A training was asked to stop, and has saved."""


def until_stopped(work: Callable[[Spot, Run], Any], settings: Spot, run: Run) -> int:
    """Does the work; the exit code. A stop in the middle is no mistake: the same command goes on."""
    try:
        work(settings, run)
    except Stopped as stopped:
        _say(f"{stopped}: the same command goes on from there")
    return 0


def _say(text: str) -> None:
    if job.writes():
        print(text, flush=True)


class Steps:
    """The folder of one SPoT run and the trainings in it."""

    def __init__(self, run: Run, bank_slots: int | None = None) -> None:
        self.run, self.bank_slots = run, bank_slots

    def tune(self, step: str, rows: Sequence[Mapping[str, Any]], train_steps: int) -> dict[str, Tuned]:
        """Trains the slots `rows`, as many in a bank as may be; what is done is only read. By the slots' names."""
        tuned: dict[str, Tuned] = {}
        for folder, group in self._banks(step, rows):
            tuned |= self._bank(folder, group, train_steps)
        return tuned

    def refuse_others(self, step: str, names: Sequence[str]) -> None:
        """Raises UserError where a finished `step` has other slots than `names`: before what it needs is tuned."""
        for folder, group in self._banks(step, names):
            if (file := folder / FINISHED).is_file():
                there = json.loads(file.read_text("utf-8"))["slots"]
                was: dict[str, Any] = {"settings": {}, "slots": {name: {} for name in there}}
                _refuse_other(folder, was, was | {"slots": {name: {} for name in group}})

    def _banks(self, step: str, rows: Sequence[Any]) -> Iterator[tuple[Path, Sequence[Any]]]:
        """As many of the rows as may be in a bank, and the folder of each."""
        size = self.bank_slots or len(rows)
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        for n, group in enumerate(groups, 1):
            yield self.run.folder / (step if len(groups) == 1 else f"{step}/{n}_of_{len(groups)}"), group

    def _bank(self, folder: Path, rows: Sequence[Mapping[str, Any]], train_steps: int) -> dict[str, Tuned]:
        run = dataclasses.replace(self.run, model_dir=str(folder), slots=rows, train_steps=train_steps)
        plan = self._plan(run)
        finished = json.loads((folder / FINISHED).read_text("utf-8")) if (folder / FINISHED).is_file() else None
        if finished:
            _refuse_other(folder, _plan_of(finished), plan)
        if finished and "settings" in finished["plan"]:
            _say(f"{folder} is finished: {len(rows)} prompts, {finished['last']} steps")
        else:  # or finished by an earlier version: its checkpoint, which is at the last step, compares the settings
            finished = _train(run) | {"plan": plan}
            if job.writes():
                with disk.replacing(folder / FINISHED) as file:
                    file.write(json.dumps(finished, indent=1).encode())
            job.together("a step of spot is finished")  # and all can read the prompts that process 0 has written
        return {
            name: Tuned(str(folder), name, score, step, finished["last"])
            for name, (score, step) in finished["slots"].items()
        }

    def _plan(self, run: Run) -> dict[str, Any]:
        """What a resumed run is held to, its steps and what it is tuned over; folders as seen from MODEL_DIR."""
        told = settings_of(run, run.tuning.slots(run)) | {"train_steps": run.train_steps, "base": run.frozen.path}
        told |= {"vocabulary_file": run.frozen.vocabulary_file, "module": run.data.module}
        named = {slot.pop("name"): slot for slot in told.pop("slots")}
        text = json.dumps({"settings": told, "slots": named}, default=str, ensure_ascii=False)
        return json.loads(text.replace(f"{self.run.folder}/", "MODEL_DIR/"))


def _train(run: Run) -> dict[str, Any]:
    """What a training came to, and the seconds it took; raises Stopped if it was asked to stop before its end."""
    _say(f"{run.folder}: {len(run.slots or ())} prompts, {run.train_steps} steps")
    clock, processor = time.monotonic(), time.process_time()
    result = train(run)
    found = list(zip(result.names, result.best.score, result.best.step, strict=True))
    if result.stopped:
        raise Stopped(f"{run.folder} is at step {result.step} of {run.train_steps}")
    return {
        "last": result.step, "slots": {name: (float(score), int(step)) for name, score, step in found},
        "seconds": time.monotonic() - clock, "processor_seconds": time.process_time() - processor,
    }  # fmt: skip


def _plan_of(finished: dict[str, Any]) -> dict[str, Any]:
    """The plan that a step was finished under; of an earlier version's, which has another form, what is sure."""
    if "settings" in finished["plan"]:
        return finished["plan"]
    return {"settings": {"train_steps": finished["last"]}, "slots": {name: {} for name in finished["slots"]}}


def _refuse_other(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    was, now = old["slots"], new["slots"]
    changed = changes(old["settings"], new["settings"])
    for slot in sorted(was.keys() | now.keys()):
        both = slot in was and slot in now
        changed += changes(was[slot], now[slot], f"{slot}: ") if both else [f"the slot {slot} is another"]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"The step in {folder} was finished under other settings: {'; '.join(changed[:5])}{more}. Set them back,"
            f" give another MODEL_DIR, or delete {folder} to do that step again."
        )


def label(task: str) -> str:
    """A task's name in the names of slots, tables and pictures."""
    parts = [Path(part).stem if part.endswith(".toml") else part for part in task.split("+")]
    return slots.file_name(parts[0]) if len(parts) == 1 else "_and_".join(parts)


Key = tuple[str, int]  # task, seed


@dataclasses.dataclass(frozen=True)
class Scratch:
    """Every source and target tuned without transfer."""

    sources: dict[Key, Tuned]
    targets: dict[Key, Tuned]


def tune_from_scratch(settings: Spot, steps: Steps) -> Scratch:
    """The first step: sources and targets as slots of one bank, or of two where they train for unequal steps."""
    row = lambda kind, task, seed: {
        "task": task, "seed": seed, "labels": None, "name": f"{kind}-{label(task)}-seed{seed}"
    }  # fmt: skip
    keys = lambda tasks: [(task, seed) for task in tasks for seed in settings.seeds]
    sources = [row("source", *key) | {"init": settings.source_init} for key in keys(settings.sources)]
    targets = [row("target", *key) for key in keys(settings.targets)]
    if settings.source_steps == steps.run.train_steps:
        tuned = steps.tune("from_scratch", [*sources, *targets], settings.source_steps)
    else:
        tuned = steps.tune("sources", sources, settings.source_steps)
        tuned |= steps.tune("targets", targets, steps.run.train_steps)
    named = lambda tasks, rows: {key: tuned[r["name"]] for key, r in zip(keys(tasks), rows, strict=True)}
    return Scratch(named(settings.sources, sources), named(settings.targets, targets))


@dataclasses.dataclass(frozen=True)
class Compared:
    """Both similarities of all task embeddings, `both[2 N N]`, and whose they are."""

    both: np.ndarray
    sources: dict[Key, int]
    targets: dict[Key, int]

    def of_target(self, target: Key, similarity: spot.Similarity) -> dict[Key, float]:
        """How alike each source prompt is to one target prompt, of those that it may start from."""
        values = similarity(self.both)[:, self.targets[target]]
        return {key: float(values[i]) for key, i in self.sources.items() if may_start(key[0], target[0])}


def compare(settings: Spot, scratch: Scratch, folder: Path) -> Compared:
    """The second step: the similarities of the prompts of EMBEDDING_STEP; also written to `similarity.json`."""
    tuned = [*scratch.sources.values(), *scratch.targets.values()]
    every = np.stack([spot.directions(prompt_file.load(t.at(settings.embedding_step)).vectors, t.name) for t in tuned])
    both = spot.similarities(every, every)
    numbers: Iterator[int] = iter(range(len(tuned)))
    found = Compared(both, {k: next(numbers) for k in scratch.sources}, {k: next(numbers) for k in scratch.targets})
    written = {
        "step": settings.embedding_step, "prompts": [t.name for t in tuned],
        "average_tokens": np.round(both[spot.AVERAGE], 6).tolist(),
        "per_token_average": np.round(both[spot.PER_TOKEN], 6).tolist(),
    }  # fmt: skip
    if job.writes():
        with disk.replacing(folder / "similarity.json") as file:
            file.write(json.dumps(written, default=float).encode())
    return found


def picked(settings: Spot, compared: Compared, target: Key, retrieve: spot.Retrieve, k: int) -> list[spot.Pick]:
    """The third step for one target prompt; sources are called by their slots' names."""
    alike = compared.of_target(target, settings.similarity)
    return retrieve(spot.ranked({source_name(key): value for key, value in alike.items()}), k)


def source_name(key: Key) -> str:
    """What the slot of a source prompt is called."""
    return f"source-{label(key[0])}-seed{key[1]}"


@dataclasses.dataclass(frozen=True)
class Retuning:
    """One tuning of a target that starts from a pick."""

    target: str
    seed: int
    pick: spot.Pick
    name: str


def retune(settings: Spot, steps: Steps, scratch: Scratch, wanted: Sequence[Retuning]) -> dict[str, Tuned]:
    """The fourth step: all retunings as slots of one bank, behind the mixtures that some of them start from."""
    sources = {source_name(key): tuned for key, tuned in scratch.sources.items()}
    for name in dict.fromkeys(name for retuning in wanted for name in retuning.pick.sources):
        if not math.isfinite(sources[name].score):
            raise UserError(f"{name} has no best prompt to start from: it was never scored, or its score is no number.")
    steps.refuse_others("transfers", [retuning.name for retuning in wanted])
    mixtures = _tune_mixtures(settings, steps, scratch, [retuning for retuning in wanted if retuning.pick.mixture])
    rows = []
    for retuning in wanted:
        pick = retuning.pick
        places = (mixtures[retuning.name],) if pick.mixture else tuple(sources[name].best for name in pick.sources)
        init = inits.Saved(places, (1.0,) if pick.mixture else pick.weights)
        rows.append({
            "task": retuning.target, "seed": retuning.seed, "labels": None, "init": init, "name": retuning.name
        })  # fmt: skip
    return steps.tune("transfers", rows, steps.run.train_steps)


def _tune_mixtures(settings: Spot, steps: Steps, scratch: Scratch, wanted: Sequence[Retuning]) -> dict[str, str]:
    """The last prompt of the mixture of each retuning, by its name; those of the same tasks and seed share one."""
    tasks = {source_name(key): key[0] for key in scratch.sources}
    keys = {r.name: ("+".join(sorted({tasks[s] for s in r.pick.sources} | {r.target})), r.seed) for r in wanted}
    names = {key: f"mixture{n}-seed{key[1]}" for n, key in enumerate(dict.fromkeys(keys.values()), 1)}
    rows = [
        {"task": task, "seed": seed, "labels": None, "init": settings.source_init, "name": names[task, seed]}
        for task, seed in names
    ]
    tuned = steps.tune("mixtures", rows, settings.source_steps) if rows else {}
    return {name: tuned[names[key]].at(tuned[names[key]].last) for name, key in keys.items()}
