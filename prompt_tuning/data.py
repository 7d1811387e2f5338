"""SeqIO tasks and mixtures as the trainer sees them; nothing else in the package imports SeqIO or TensorFlow.

A task keeps its own preprocessors, postprocessor and metrics. Only the vocabulary is exchanged: a base brings its own.
"""

import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from prompt_tuning import fields, made_from, quiet
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import HIDDEN, LENGTHS, Examples, Mixture, Ragged, part_of
from prompt_tuning.vocabulary import Vocabulary, flatten, warn_of_cut

READ_BATCH = 1024  # examples handed from TensorFlow to numpy at a time
SHUFFLED = 10_000  # examples of a stream that are shuffled among one another

with quiet.imports():
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    with contextlib.suppress(RuntimeError):  # where somebody has used TensorFlow already, it keeps what it has
        tf.config.set_visible_devices([], "GPU")  # else TensorFlow would reserve the memory that JAX needs
absl_logging.set_verbosity(absl_logging.ERROR)


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
        "labels": _labels(task),
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


def _labels(task: seqio.Task) -> tuple[str, ...]:
    """The `label_classes` its postprocessor was given, the custom of T5's own tasks."""
    keywords = getattr(task.postprocessor, "keywords", None) or {}
    return tuple(keywords.get("label_classes", ()))


@dataclasses.dataclass(frozen=True, eq=False)
class SeqioTask:
    """A SeqIO task over one vocabulary and one pair of lengths (an `examples.Task`)."""

    task: seqio.Task
    vocabulary: Vocabulary
    lengths: Mapping[str, int]
    _loaded: dict[str, Examples] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(str(s) for s in self.task.splits)

    @property
    def labels(self) -> tuple[str, ...]:
        return _labels(self.task)

    @property
    def scored(self) -> bool:
        return bool(self.task.predict_metric_fns)

    def load(self, split: str) -> Examples:
        """All examples of a split, unshuffled, cut to the lengths; of `train[:1000]` the first thousand.

        Raises:
          UserError: no such split, or the data cannot be read.
        """
        name, count = self._place(split)
        if split not in self._loaded:
            self._loaded[split] = self._load(name, count)
        return self._loaded[split]

    def texts(self, split: str) -> Sequence[Mapping[str, Any]]:
        """What `load` would tokenise; for looking at a task rather than training on it."""
        head, _ = _before_tokenizer(self.task)
        return self.load(split).texts if head is None else self._texts(head, *self._place(split))

    def _place(self, split: str) -> tuple[str, int | None]:
        return part_of(split, self.splits, self.name, self.task.source)

    def _load(self, split: str, count: int | None) -> Examples:
        head, keep_eos = _before_tokenizer(self.task)
        if head is None:
            texts, tokens = self._through_seqio(split, count)
        else:
            texts = self._texts(head, split, count)
            tokens = {
                k: self.vocabulary.tokenise(
                    [text[f"{k}_pretokenized"] for text in texts],
                    self.lengths[k],
                    add_eos=self.task.output_features[k].add_eos,
                    keep_eos=keep_eos,
                )
                for k in ("inputs", "targets")
            }
        if not texts:
            raise UserError(f"The split {split!r} of {self.name} holds no examples in {self.task.source}.")
        self._check_answers(split, texts)
        (inputs, cut), (targets, lost) = tokens["inputs"], tokens["targets"]
        warn_of_cut(lost, len(texts), f"{self.name}, {split},", self.lengths["targets"])
        return Examples(self.name, split, inputs, targets, texts, cut, lost)

    def _check_answers(self, split: str, texts: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError for a target that is none of the labels: no answer to it could be right."""
        known = {*self.labels, HIDDEN}
        for i, target in enumerate(text["targets_pretokenized"] for text in texts if self.labels):
            if target not in known:
                raise UserError(
                    f"Example {i + 1} of {self.name}, {split}, has the target {target!r}; the label_classes of its"
                    f" postprocessor are {', '.join(map(repr, self.labels))}.{nearest(target, self.labels)}"
                )

    def _texts(self, head: list[Any], split: str, count: int | None) -> list[dict[str, Any]]:
        """The examples behind the preprocessors `head`, which end before the tokenizer."""
        plain = self.task.replace(preprocessors=head)
        source = plain.source.get_dataset(split=split, shuffle=False, seed=0)
        batched = count is None and all(getattr(step, "on_batches", False) for step in head)
        dataset = plain.preprocess_postcache(
            source.ragged_batch(READ_BATCH) if batched else source, self.lengths, seed=0
        )
        rows = _read(dataset if count is None else dataset.take(count), batched)
        for row in rows:
            for k in plain.output_features:
                row[f"{k}_pretokenized"] = row.pop(k)
        return rows

    def _through_seqio(
        self, split: str, count: int | None
    ) -> tuple[list[dict[str, Any]], dict[str, tuple[Ragged, int]]]:
        """The examples of a task that works on tokens, such as span corruption, by SeqIO's own pipeline."""
        dataset = self.task.get_dataset(
            self.lengths, split, shuffle=False, seed=0, trim_output_features=False, try_in_mem_cache=False
        )
        rows = _read(dataset if count is None else dataset.take(count))
        tokens = {k: _trim([row.pop(k) for row in rows], self.lengths[k]) for k in ("inputs", "targets")}
        for i, row in enumerate(rows):
            for k, (ragged, _) in tokens.items():
                row.setdefault(f"{k}_pretokenized", self.vocabulary.decode(ragged[i]))
        return rows, tokens

    def stream(self, split: str, seed: int | None, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(inputs, targets) from example `start` on: without end and shuffled by `seed`, or (None) once and in order.

        The examples before `start` are read again to be passed over.
        """
        name, count = self._place(split)
        repeats = {"shuffle": False, "seed": 0} if seed is None else {"shuffle": True, "seed": seed, "num_epochs": None}
        dataset = self.task.get_dataset(
            self.lengths, name, shuffle_buffer_size=SHUFFLED, try_in_mem_cache=False, **repeats
        )
        if seed is None and count is not None:
            dataset = dataset.take(count)
        for row in dataset.skip(start).prefetch(READ_BATCH).as_numpy_iterator():
            yield row["inputs"].astype(np.int32), row["targets"].astype(np.int32)

    def score(self, examples: Examples, predictions: Sequence[str]) -> dict[str, float]:
        """The task's own metrics of one predicted text for every example.

        Raises:
          UserError: the task has no metric of predictions, or there is not one prediction for each example.
        """
        if len(predictions) != len(examples):
            raise UserError(f"{len(predictions)} predictions for the {len(examples)} examples of {self.name}.")
        if not self.scored:
            raise UserError(f"Task {self.name} has no metric_fns of (targets, predictions), so it cannot be scored.")
        shown = [fields.as_seqio(text) for text in examples.texts]
        of = self.task.postprocess_fn
        targets = [
            of(t["targets_pretokenized"], example=f, is_target=True) for t, f in zip(examples.texts, shown, strict=True)
        ]
        guesses = [of(p, example=f, is_target=False) for p, f in zip(predictions, shown, strict=True)]
        scores: dict[str, float] = {}
        for metric in self.task.predict_metric_fns:
            found = metric(targets, guesses)
            if not isinstance(found, Mapping):
                called = getattr(metric, "__name__", "metric")
                raise UserError(
                    f"{called} of task {self.name} gave {found!r:.40}; a metric gives a table from names to numbers."
                )
            scores.update(fields.numbers(found))
        return scores


def _import(module: str) -> ModuleType:
    """Import a module of tasks, also from the working folder."""
    made_from.look_in_working_folder()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
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
        return float(rate(task) if callable(rate) and task else rate)
    except Exception as error:  # of a function that is the user's
        raise UserError(
            f"The rate of {name} in the mixture {mixture} is no number ({error!r:.100}). Register one; for one by size,"
            " a source knows its num_input_examples."
        ) from error


def _before_tokenizer(task: seqio.Task) -> tuple[list[Any] | None, bool]:
    """The preprocessors before plain tokenisation, and whether a cut text keeps its EOS; None if not so simple.

    Where tokens are only made and ended, sentencepiece does it in bulk, several times faster than inside tf.data.
    """
    steps = [p for p in task.preprocessors if not isinstance(p, seqio.CacheDatasetPlaceholder)]
    plain = seqio.preprocessors
    text_only = all(isinstance(f.vocabulary, seqio.SentencePieceVocabulary) for f in task.output_features.values())
    for tail, keep_eos in (
        ([plain.tokenize, plain.append_eos], False),
        ([plain.tokenize_and_append_eos], False),
        ([plain.tokenize, plain.append_eos_after_trim], True),
    ):
        if text_only and steps[-len(tail) :] == tail:
            return steps[: -len(tail)], keep_eos
    return None, False


def _read(dataset: tf.data.Dataset, batched: bool = False) -> list[dict[str, Any]]:
    """Every example as plain Python values: str, numbers, lists of these."""
    rows: list[dict[str, Any]] = []
    for batch in (dataset if batched else dataset.ragged_batch(READ_BATCH)).prefetch(2):
        rows.extend(fields.rows(batch))
    return rows


def _trim(tokens: Sequence[Sequence[int]], limit: int) -> tuple[Ragged, int]:
    """Sequences cut at the limit, and how many were."""
    return flatten([t[:limit] for t in tokens]), sum(len(t) > limit for t in tokens)
