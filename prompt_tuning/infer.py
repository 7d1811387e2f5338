"""Predictions of a frozen T5 behind prompts: rank the labels or decode; many slots and tasks in one batch."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gin
import jax
import numpy as np

from prompt_tuning import decode, device, layout, split
from prompt_tuning.errors import UserError
from prompt_tuning.examples import Examples
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model, score_targets
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Question:
    """One input for one slot."""

    inputs: np.ndarray  # int32[T], as the task's tokeniser leaves it
    slot: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model makes of a question; probabilities are over the labels, empty where it decoded."""

    text: str
    probabilities: dict[str, float]
    score: float  # log-likelihood of the answer


@dataclasses.dataclass(frozen=True)
class Answerer:
    """The frozen model, its slots, and how they are run."""

    model: Model
    slots: Sequence[Slot]
    labels: Sequence[tuple[str, ...]]  # of each slot's task
    vocabulary: Vocabulary
    mesh: Any
    batch_size: int = 64
    target_length: int = 62
    packing: bool = True
    progress: Callable[[Iterable, int], Iterable] = lambda batches, total: batches

    def items(self, questions: Sequence[Question], ranking: bool) -> list[layout.Item]:
        """Questions as the layout wants them, with their labels as targets when `ranking`."""
        ids = [[np.array([*self.vocabulary.encode(t), self.vocabulary.eos_id], np.int32) for t in labels]
               for labels in self.labels]  # fmt: skip
        made = []
        for number, question in enumerate(questions):
            slot = self.slots[question.slot]
            targets = ids[question.slot] if ranking else []
            made.append(layout.Item(question.inputs, targets, question.slot, number, slot.length, slot.placement))
        return made

    def batches(self, items: list[layout.Item]) -> Iterable[tuple[int, layout.Batch]]:
        """(position of the first item, packed batch), all of one shape."""
        groups = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        longest = max(item.length for item in items), max(max(item.target_length for item in items), 1)
        shape = layout.plan(groups, longest, self.packing, self.mesh.shape["data"])
        shape = dataclasses.replace(shape, rows=shape.rows[-1:])
        for g, group in enumerate(self.progress(groups, len(groups))):
            batch = layout.pack(group, shape, self.model.length, min(self.batch_size, len(items)))
            yield g * self.batch_size, device.put_batch(batch, self.mesh)


Predict = Callable[[Answerer, split.Params, Sequence[Question]], list[Answer]]


@gin.configurable
def rank(answerer: Answerer, params: split.Params, questions: Sequence[Question]) -> list[Answer]:
    """The most likely label of each question's task; every label is scored against one encoding of the input."""
    if unlabelled := {question.slot for question in questions if not answerer.labels[question.slot]}:
        names = ", ".join(answerer.slots[k].name for k in sorted(unlabelled))
        raise UserError(f"{names}: there are no labels to rank. Type --gin.PREDICT=@write, or set CLASS_LABELS.")
    items = answerer.items(questions, ranking=True)
    answers = []
    for start, batch in answerer.batches(items):
        scores = np.asarray(_score(params, batch, model=answerer.model), np.float64)
        group = items[start : start + answerer.batch_size]
        stride = max(len(item.targets) for item in group)
        for i, item in enumerate(group):
            labels = answerer.labels[item.slot]
            answers.append(_choose(labels, scores[i * stride : i * stride + len(labels)]))
    return answers


def _choose(labels: tuple[str, ...], scores: np.ndarray) -> Answer:
    likelihoods = np.exp(scores - scores.max())
    probabilities = dict(zip(labels, (likelihoods / likelihoods.sum()).tolist(), strict=True))
    best = int(scores.argmax())
    return Answer(labels[best], probabilities, float(scores[best]))


@gin.configurable
def write(
    answerer: Answerer, params: split.Params, questions: Sequence[Question], decoder: Callable[..., Any] = decode.greedy
) -> list[Answer]:
    """The text that `decoder` (greedy, beam_search or sample) makes of each question."""
    items = answerer.items(questions, ranking=False)
    answers = []
    for start, batch in answerer.batches(items):
        length = batch.encoder_tokens.shape[1]
        decoded = _decode(params, batch, decoder, answerer.model, answerer.target_length, length)
        tokens, scores = np.asarray(decoded.tokens[:, 0]), np.asarray(decoded.scores[:, 0])
        for i in range(len(items[start : start + answerer.batch_size])):
            answers.append(Answer(answerer.vocabulary.decode(tokens[i].tolist()), {}, float(scores[i])))
    return answers


_score = jax.jit(score_targets, static_argnames="model")


@functools.partial(jax.jit, static_argnames=("decoder", "model", "max_length", "source_length"))
def _decode(
    params: split.Params,
    batch: layout.Batch,
    decoder: Callable[..., Any],
    model: Model,
    max_length: int,
    source_length: int,
) -> decode.Decoded:
    rng = jax.random.key(0)
    return decoder(params, batch, model=model, max_length=max_length, source_length=source_length, rng=rng)


def evaluate(
    answerer: Answerer,
    params: split.Params,
    held_out: Sequence[Sequence[tuple[Any, Examples]]],
    predict: Predict | None = None,
) -> list[dict[str, float]]:
    """Each slot's metrics on its own tasks, `held_out[k]` being (task, examples) of slot k; percent.

    With several tasks a metric is called `task/metric`. The default prediction is `rank` for tasks with labels.
    """
    found: list[dict[str, float]] = [{} for _ in answerer.slots]
    methods: dict[Predict, list[tuple[int, Any, Examples]]] = {}
    for k, pairs in enumerate(held_out):
        for task, examples in pairs:
            methods.setdefault(predict or (rank if task.labels else write), []).append((k, task, examples))
    for method, chosen in methods.items():
        questions = [Question(examples.inputs[i], k) for k, _, examples in chosen for i in range(len(examples))]
        answers = iter(method(answerer, params, questions))
        for k, task, examples in chosen:
            texts = [next(answers).text for _ in range(len(examples))]
            prefix = f"{task.name}/" if len(held_out[k]) > 1 else ""
            found[k] |= {prefix + metric: value for metric, value in task.score(examples, texts).items()}
    return found


def mean_metric(metrics: dict[str, float]) -> float:
    """What steps are compared by: the mean of a task's metrics (Lester et al. 2021, §3.1)."""
    values = list(metrics.values())
    return math.fsum(values) / len(values) if values else math.nan
