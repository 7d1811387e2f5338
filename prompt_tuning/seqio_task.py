"""One SeqIO task as the trainer sees it: its examples over the base's vocabulary, and its own metrics of them.

A task keeps its own preprocessors, postprocessor and metrics. Only this module and `data` import SeqIO.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning import fields, quiet
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import HIDDEN, Examples, Ragged, part_of
from prompt_tuning.vocabulary import Vocabulary, warn_of_cut

READ_BATCH = 1024  # examples handed from TensorFlow to numpy at a time
SHUFFLED = 10_000  # examples of a stream that are shuffled among one another

with quiet.imports():
    import seqio
    import tensorflow as tf
    from absl import logging as absl_logging

    with contextlib.suppress(RuntimeError):  # where somebody has used TensorFlow already, it keeps what it has
        tf.config.set_visible_devices([], "GPU")  # else TensorFlow would reserve the memory that JAX needs
absl_logging.set_verbosity(absl_logging.ERROR)


def labels_of(task: seqio.Task) -> tuple[str, ...]:
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
        return labels_of(self.task)

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
        for k in ("inputs", "targets"):
            made = dataset.element_spec.get(k)
            if made is None or made.dtype != tf.string or made.shape.rank not in (None, int(batched)):
                found = f"make {made.dtype.name}{made.shape}" if made is not None else "make nothing"
                raise UserError(f"The preprocessors of {self.name} {found} as {k}; an example has a text there.")
        rows = self._read(dataset, split, count, batched)
        for row in rows:
            for k in plain.output_features.keys() & row.keys():
                row[f"{k}_pretokenized"] = row.pop(k)
        return rows

    def _through_seqio(
        self, split: str, count: int | None
    ) -> tuple[list[dict[str, Any]], dict[str, tuple[Ragged, int]]]:
        """The examples of a task that works on tokens, such as span corruption, by SeqIO's own pipeline."""
        dataset = self.task.get_dataset(
            self.lengths, split, shuffle=False, seed=0, trim_output_features=False, try_in_mem_cache=False
        )
        rows = self._read(dataset, split, count)
        tokens = {k: _trim([row.pop(k) for row in rows], self.lengths[k]) for k in ("inputs", "targets")}
        for i, row in enumerate(rows):
            for k, (ragged, _) in tokens.items():
                row.setdefault(f"{k}_pretokenized", self.vocabulary.decode(ragged[i]))
        return rows, tokens

    def _read(
        self, dataset: tf.data.Dataset, split: str, count: int | None, batched: bool = False
    ) -> list[dict[str, Any]]:
        """Every example as plain Python values: str, numbers, lists of these. Raises UserError if there is none."""
        some = dataset if count is None else dataset.take(count)
        rows: list[dict[str, Any]] = []
        for batch in (some if batched else some.ragged_batch(READ_BATCH)).prefetch(2):
            rows.extend(fields.rows(batch))
        if not rows:
            raise UserError(f"The split {split!r} of {self.name} holds no examples in {self.task.source}.")
        return rows

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


def _trim(tokens: Sequence[Sequence[int]], limit: int) -> tuple[Ragged, int]:
    """Sequences cut at the limit, and how many were."""
    return Ragged.of([t[:limit] for t in tokens]), sum(len(t) > limit for t in tokens)
