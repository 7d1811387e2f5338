"""SeqIO tasks and mixtures by name: found, bound to the base's vocabulary, and their rates."""

import dataclasses
import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from prompt_tuning import made_from, quiet
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import LENGTHS, Mixture
from prompt_tuning.seqio_task import SeqioTask, labels_of
from prompt_tuning.vocabulary import Vocabulary

with quiet.imports():
    import seqio
    import tensorflow_datasets as tfds


def open_mixture(
    name: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] = LENGTHS,
    module: str | None = None,
    data_dir: str | None = None,
) -> Mixture:
    """Open a SeqIO task or mixture by name, over the vocabulary of the base.

    Args:
      name: a name registered by `module`, or the name the papers' own code has for one of this project's tasks.
      vocabulary: replaces the registered vocabulary of every text feature.
      lengths: longest inputs and targets in tokens, EOS included; what is longer is cut, and counted.
      module: what to import first so that the name is registered; several are separated by commas.
      data_dir: the folder with the official files (`superglue/`, `glue/`); else the environment variable DATA_DIR, else
        TensorFlow Datasets.

    Raises:
      UserError: no such module, name or feature.
    """
    modules = [_import(m.strip()) for m in (module or "tasks").split(",")]
    provider = _find(name, modules)
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"DATA_DIR {data_dir} is not a folder; give the folder that holds superglue/ and glue/.")
    tasks = {t.name: _bind(t, vocabulary, data_dir) for t in seqio.get_subtasks(provider)}
    for task in tasks.values():
        if left_out := [getattr(metric, "__name__", str(metric)) for metric in task.score_metric_fns]:
            warnings.warn(
                f"{', '.join(left_out)} of task {task.name}: metrics of (targets, scores) are left out; those of "
                "(targets, predictions) are computed.",
                stacklevel=2,
            )
    members: tuple[Any, ...] = tuple(SeqioTask(t, vocabulary, lengths) for t in tasks.values())
    for member in members:
        vocabulary.check_labels(member.labels, lengths["targets"], member.name)
    if isinstance(provider, seqio.Task):
        return Mixture(provider.name, members, (1.0,))
    rates = _rates(provider, tasks)
    total = sum(rates.values()) or 1.0
    return Mixture(provider.name, members, tuple(rates.get(t, 0.0) / total for t in tasks))


def known_names(module: str | None = None) -> tuple[list[str], list[str]]:
    """Names of all registered tasks and mixtures, sorted, after importing `module` (default: this project's tasks)."""
    for m in (module or "tasks").split(","):
        _import(m.strip())
    return sorted(seqio.TaskRegistry.names()), sorted(seqio.MixtureRegistry.names())


def describe(name: str) -> dict[str, Any]:
    """What is known of a registered task without reading its data: splits, labels, metrics, source."""
    task = seqio.TaskRegistry.get(name)
    source = task.source
    known = source.__dict__.get("_splits")  # TfdsDataSource.splits would ask the network
    return {
        "splits": tuple(known if known is not None else source.splits),
        "labels": labels_of(task),
        "metrics": tuple(metric.__name__ for metric in task.predict_metric_fns if hasattr(metric, "__name__")),
        "source": str(source),
    }


def members(name: str) -> list[str]:
    """The tasks of a registered mixture."""
    return [task.name for task in seqio.MixtureRegistry.get(name).tasks]


def looked_at(task: Any) -> list[Path] | None:
    """Every path that decides which examples a `SeqioTask` has; None where its source does not tell."""
    source = task.task.source
    defined = lambda name: next((kind for kind in type(source).__mro__ if name in vars(kind)), None)
    if defined("looked_at") is None or defined("looked_at") is not defined("get_dataset"):  # which may read elsewhere
        return None
    return source.looked_at()


def prepare_tfds(name: str) -> None:
    """Download and prepare, with TensorFlow Datasets, what a task or mixture reads; TFDS_DATA_DIR says where."""
    for task in seqio.get_subtasks(_find(name, [_import("tasks")])):
        set_name = getattr(task.source, "tfds_name", None)
        if set_name is None:
            raise UserError(f"Task {task.name} is not of TensorFlow Datasets; it reads {task.source}.")
        try:
            tfds.builder(set_name).download_and_prepare()
        except Exception as error:  # as many kinds as there are downloads
            raise UserError(f"TensorFlow Datasets could not prepare {set_name}: {error}") from error


def _import(module: str) -> ModuleType:
    """Import a module of tasks, also from the working folder."""
    made_from.look_in_working_folder()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if module.startswith("prompt_tuning."):
            raise UserError(
                f"{module!r} is a module of the authors' code, whose tasks are known here without it: leave"
                " MIXTURE_OR_TASK_MODULE out."
            ) from None
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"No module {module!r} to take tasks from. Give its import name, as in 'my_tasks' for my_tasks.py in "
                "the working folder or on PYTHONPATH."
            ) from None
        raise
    except ValueError as error:
        if "duplicate provider" not in str(error):
            raise
        taken = str(error).rsplit(" ", 1)[-1]
        raise UserError(f"The module {module!r} registers a task named {taken!r}, but one exists already.") from None


def _find(name: str, modules: Sequence[ModuleType]) -> seqio.Task | seqio.Mixture:
    tasks, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
    for resolve in [None, *(getattr(m, "own_name", None) for m in modules)]:
        candidate = resolve(name) if resolve else name
        if candidate in mixtures or candidate in tasks:
            return seqio.get_mixture_or_task(candidate)
    raise UserError(
        f"No task or mixture is called {name!r} in {', '.join(m.__name__ for m in modules)}."
        f"{nearest(name, [*tasks, *mixtures])} `prompt-tuning data list` shows them all; one of your own needs "
        "--gin.TASK_FILE=FILE.toml, or --gin.MIXTURE_OR_TASK_MODULE=NAME of the module that registers it."
    )


def _bind(task: seqio.Task, vocabulary: Vocabulary, data_dir: str | None) -> seqio.Task:
    """The task over another vocabulary and, where its source knows official files, over those of `data_dir`."""
    missing = {"inputs", "targets"} - set(task.output_features)
    if missing:
        raise UserError(
            f"Task {task.name} has the features {', '.join(task.output_features)}; an encoder-decoder needs inputs and "
            "targets."
        )
    words = seqio.SentencePieceVocabulary(vocabulary.path, vocabulary.extra_ids)
    features = {
        k: f if isinstance(f.vocabulary, seqio.PassThroughVocabulary) else dataclasses.replace(f, vocabulary=words)
        for k, f in task.output_features.items()
    }
    source = task.source
    if data_dir is not None and hasattr(source, "at"):
        source = source.at(data_dir)
    return task.replace(output_features=features, source=source)


def _rates(mixture: seqio.Mixture, tasks: Mapping[str, seqio.Task]) -> dict[str, float]:
    """Each task's rate by SeqIO's rules: a number, or a function of the task; a mixture inside shares out its own."""
    rates: dict[str, float] = {}
    for name, rate in mixture.rate_per_task_name.items():
        if name in tasks:
            if "train" in tasks[name].splits:
                rates[name] = rates.get(name, 0.0) + _rate(mixture.name, name, rate, tasks[name])
            continue
        inner = _rates(seqio.MixtureRegistry.get(name), tasks)
        total = sum(inner.values()) or 1.0
        for task, share in inner.items():
            rates[task] = rates.get(task, 0.0) + _rate(mixture.name, name, rate, None) * share / total
    return rates


def _rate(mixture: str, name: str, rate: Any, task: seqio.Task | None) -> float:
    """A member's rate as a number; `task` is None for a mixture inside."""
    try:
        number = float(rate(task) if callable(rate) and task else rate)
    except Exception as error:  # of a function that is the user's
        raise UserError(
            f"The rate of {name} in the mixture {mixture} is no number ({error!r:.100}). Register one; for one by size,"
            " a source knows its num_input_examples."
        ) from error
    if not 0 <= number < math.inf:
        raise UserError(f"The rate of {name} in the mixture {mixture} is {number:g}; it is a number from 0.")
    return number
