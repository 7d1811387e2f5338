"""Prompt tuning in Python, for notebooks and scripts: `tune` trains prompts, `score` says how good they are."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import prompt_tuning.train as training  # registers what gin files name
from prompt_tuning import configure, device, infer, kinds, prompt_file
from prompt_tuning.bank import Bank, room_for
from prompt_tuning.errors import UserError, of_system, said
from prompt_tuning.examples import LENGTHS
from prompt_tuning.predict import PromptTuned
from prompt_tuning.run import Data, Opened, Run, held_out, open_run, refuse_other_labels
from prompt_tuning.task_file import Description

Task = str | Path | Mapping[str, Any]  # a name, a task file, or what such a file says
_FLAG = re.compile(r'--gin\.([\w.]+)=("[^"]*"|[^\s,;:()]*[^\s,;:().])')  # in what is said to those who type commands


def tune(
    base: str | Path, task: Task, folder: str | Path, *, gin_files: Sequence[str] = (), **names: Any
) -> PromptTuned:  # fmt: skip
    """Tunes a prompt for a frozen T5, or several at once, and returns the best of each over that T5.

    Called again it goes on from the newest checkpoint in `folder`, as far as TRAIN_STEPS says. PREDICT is how the run
    scores; what is returned ranks labels where there are some, and with `predict(texts, decode=True)` it writes.

    Args:
      base: the frozen model, as INITIAL_CHECKPOINT_PATH.
      task: the name of a task or mixture, a task file, or in a dict what such a file says, with rows for files:
        {"name": "sms", "inputs": "message: {text}", "target": "label", "labels": ["ham", "spam"],
        "train": [{"text": "...", "label": "ham"}, ...], "validation": [...]}.
      folder: MODEL_DIR.
      gin_files: such as ["runs/sst2_small.gin"]; what is given here wins over what they say.
      names: any other name of gin/defaults.gin: TRAIN_STEPS=500, GRID={"seed": [0, 1, 2]}, DECODER="@beam_search".
        Parameters of functions that have none there: **{"class_labels.words": ["yes", "no"]}.

    Raises:
      UserError: what was asked for cannot be done.
      KeyboardInterrupt: the run was interrupted. It is saved; the same call goes on with it.
    """
    with _in_words():
        _configure(base, task, folder, gin_files, names)
        run = Run()
        if run.tuning.whole_model:
            raise UserError("TUNING trains the whole model here, and tune returns prompts: type prompt-tuning train.")
        opened = open_run(run)
        result = training.train(opened)
    if result.stopped:
        raise KeyboardInterrupt
    return _tuned(opened)


def score(
    tuned: PromptTuned, task: Task, split: str = "validation", *, module: str | None = None, data_dir: str | None = None
) -> dict[str, dict[str, float]]:
    """Each loaded prompt's metrics on a split of a task, in percent: {"sms": {"accuracy": 98.2}}.

    Labels are ranked, also those of a run that wrote them (PREDICT="@write"); without labels answers are written.

    Args:
      tuned: prompts, whose inputs are cut where their cards say.
      task: as for `tune`.
      split: or a part of one: "test[:500]".
      module: MIXTURE_OR_TASK_MODULE.
      data_dir: DATA_DIR.

    Raises:
      UserError: there is no such task or split, or an answer cannot be scored.
    """
    if not isinstance(tuned, PromptTuned):
        raise UserError(f"What is scored is what tune, PromptTuned.load or open returned; found {tuned!r:.60}.")
    bank, params, answerer = tuned.now
    name, described = _named(task)
    opened: dict[tuple[int, int], infer.HeldOut] = {}
    asked: list[infer.HeldOut] = []
    for entry in bank.entries:
        lengths = (entry.input_length, entry.card.answer_length) if entry else None
        if lengths and lengths not in opened:
            cut = dict(zip(LENGTHS, lengths, strict=True))
            data = Data(module=module, task_file=described, data_dir=data_dir, lengths=cut, eval_lengths=cut)
            with _in_words(EVAL_SPLIT="split", MIXTURE_OR_TASK_MODULE="module", DATA_DIR="data_dir"):
                mixture = data.open(name, tuned.vocabulary)
                opened[lengths] = held_out(mixture, split, mixture.tasks)
        asked.append(opened[lengths] if lengths else [])
        if entry:
            instead = "Score it on the task it was tuned for, or load it with labels=[...] of this one."
            refuse_other_labels(entry.name, entry.labels, [held.task for held in asked[-1]], instead)
    with device.on(tuned.mesh):
        metrics = infer.evaluate(answerer, params, asked)
    return {entry.name: found for entry, found in zip(bank.entries, metrics, strict=True) if entry}


@contextlib.contextmanager
def _in_words(**called: str) -> Iterator[None]:
    """Inside, what a person can put right is raised as a UserError that says so, and what to give instead of flags.

    Names that are `called` otherwise here are told so.
    """
    try:
        yield
    except (UserError, OSError, RuntimeError) as error:
        known = error if isinstance(error, UserError) else device.too_little_memory(error)
        what = said(known) if known else of_system(error) if isinstance(error, OSError) else None
        if what is None:
            raise
        told = _FLAG.sub(lambda flag: _keyword(called.get(flag[1], flag[1]), flag[2]), what)
        raise UserError(told) from (None if known is error else error)


def _keyword(name: str, value: str) -> str:
    """A flag's name and value as Python is given them; words in capitals stand for what a person is to fill in."""
    if value.startswith(('"[', '"{')):
        value = value[1:-1]
    elif not value.startswith('"') and not re.fullmatch(r"[\d_.]+|True|False|None|[A-Z_]+", value):
        value = f'"{value}"'
    return f'**{{"{name}": {value}}}' if "." in name else f"{name}={value}"


def _configure(
    base: str | Path, task: Task, folder: str | Path, gin_files: Sequence[str], names: Mapping[str, Any]
) -> None:
    kinds.check(kinds.TEXT, base=base, folder=folder)
    kinds.check(kinds.TEXTS, gin_files=gin_files)
    name, described = _named(task)
    own: dict[str, Any] = {"INITIAL_CHECKPOINT_PATH": str(base), "MODEL_DIR": str(folder)}
    own |= {"MIXTURE_OR_TASK_NAME": name, "TASK_FILE": described}
    names = {name: _plain(value) for name, value in names.items()}
    if twice := own.keys() & names.keys():
        raise UserError(f"{min(twice)} is what tune(base, task, folder) is told already: leave it out.")
    referring = [name for name, value in names.items() if configure.refers(value)]
    bindings = [f"{name} = {configure.written(names[name])}" for name in referring]
    configure.parse(gin_files, bindings, values={k: v for k, v in names.items() if k not in referring} | own)


def _plain(value: Any) -> Any:
    """A setting as a gin file could have it, which alone can be kept beside the result: no type of numpy, no `Path`."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if type(value) in (list, tuple, range):  # and no optimizer, which is a tuple with names
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value  # arrays and their numbers, whoever made them


def _named(task: Task) -> tuple[str | None, str | Description | None]:
    """The name of a task, or else its description."""
    if isinstance(task, Mapping):
        return None, Description(task)
    if not isinstance(task, str | os.PathLike):
        raise UserError(f"task is {task!r:.60}; it is a task's name, a task file, or a dict of what such a file says.")
    path = os.fspath(task)
    return (None, path) if path.endswith(".toml") else (path, None)


def _tuned(opened: Opened) -> PromptTuned:
    folder = opened.run.folder / "prompts"
    found = {s.name: folder / f"{s.name}.safetensors" for s in opened.slots}
    prompts = {name: prompt_file.load(path) for name, path in found.items() if path.is_file()}
    if missing := sorted(found.keys() - prompts.keys()):
        raise UserError(
            f"{missing[0]} was never evaluated to a number, so no step of it is the best. See {opened.run.folder}."
        )
    length, answer_length = room_for(prompts.values())
    bank = Bank.empty(len(prompts), length, opened.base.config.emb_dim)
    tuned = PromptTuned(
        opened.base, opened.vocabulary, bank, opened.mesh, opened.run.eval_batch_size, answer_length=answer_length
    )
    for name, prompt in prompts.items():
        tuned.add(prompt, name)
    return tuned
