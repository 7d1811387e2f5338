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
    labels: tuple[str, ...] = ()  # to rank; empty: those of the slot's task


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
    shape: layout.Shape | None = None  # of every batch, for what must not compile again; None: what costs least
    progress: Callable[[Iterable, int], Iterable] = lambda batches, total: batches

    def labels_of(self, question: Question) -> tuple[str, ...]:
        """The answers to choose from; empty if there are none."""
        return question.labels or self.labels[question.slot]

    def items(self, questions: Sequence[Question], ranking: bool) -> list[layout.Item]:
        """Questions as the layout wants them, with their labels as targets when `ranking`."""
        spelled = {labels: self._spelled(labels) for labels in {self.labels_of(q) for q in questions} if ranking}
        made = []
        for number, question in enumerate(questions):
            slot = self.slots[question.slot]
            targets = spelled[self.labels_of(question)] if ranking else []
            made.append(layout.Item(question.inputs, targets, question.slot, number, slot.length, slot.placement))
        return made

    def _spelled(self, labels: tuple[str, ...]) -> list[np.ndarray]:
        return [np.array([*self.vocabulary.encode(t), self.vocabulary.eos_id], np.int32) for t in labels]

    def batches(self, items: list[layout.Item]) -> Iterable[tuple[list[layout.Item], layout.Batch]]:
        """The items in groups and each group's packed batch; all of one shape, or of the few that `shape` names."""
        groups = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        if self.shape:
            groups = [part for group in groups for part in _that_fit(group, self.shape)]
            pack = lambda group: self._packed(group, self.shape)
        else:
            longest = max(item.length for item in items), max(max(item.target_length for item in items), 1)
            planned = layout.plan(groups, longest, self.packing, self.mesh.shape["data"])
            planned = dataclasses.replace(planned, rows=planned.rows[-1:])
            pack = lambda group: layout.pack(group, planned, self.model.length, min(self.batch_size, len(items)))
        for group in self.progress(groups, len(groups)):
            yield group, device.put_batch(pack(group), self.mesh)

    def source_length(self, items: list[layout.Item]) -> int:
        """A bound on the length of these items (prompt and input) that few batches differ in."""
        return self.shape.row_length if self.shape else -(-max(item.length for item in items) // 16) * 16

    def empty_batches(self) -> Iterable[layout.Batch]:
        """A batch without examples of every size that `shape` names: what there is to compile."""
        assert self.shape is not None
        for rows in self.shape.rows:
            batch = self._packed([], dataclasses.replace(self.shape, rows=(rows,)))
            yield device.put_batch(batch, self.mesh)

    def _packed(self, group: list[layout.Item], shape: layout.Shape) -> layout.Batch:
        batch = layout.pack(group, shape, self.model.length, self.batch_size)
        most = self.batch_size * shape.target_length  # labels of one token each: any number of them is this shape
        return batch._replace(target_examples=np.zeros(most, np.int32))


def _that_fit(group: list[layout.Item], shape: layout.Shape) -> list[list[layout.Item]]:
    """The group in parts that the largest of `shape.rows` holds."""
    if len(group) == 1 or len(layout.assign_rows(group, shape)) <= shape.rows[-1]:
        return [group]
    half = len(group) // 2
    return [*_that_fit(group[:half], shape), *_that_fit(group[half:], shape)]


Predict = Callable[[Answerer, split.Params, Sequence[Question]], list[Answer]]


@gin.configurable
def rank(answerer: Answerer, params: split.Params, questions: Sequence[Question]) -> list[Answer]:
    """The most likely label of each question's task; every label is scored against one encoding of the input."""
    if unlabelled := {question.slot for question in questions if not answerer.labels_of(question)}:
        names = ", ".join(answerer.slots[k].name for k in sorted(unlabelled))
        raise UserError(f"{names}: there are no labels to rank. Type --gin.PREDICT=@write, or set CLASS_LABELS.")
    scores = _label_scores(answerer, params, questions)
    return [_choose(answerer.labels_of(q), s) for q, s in zip(questions, scores, strict=True)]


def _label_scores(answerer: Answerer, params: split.Params, questions: Sequence[Question]) -> list[np.ndarray]:
    """Log-likelihood of every label of each question, float64[C]."""
    found = []
    for group, batch in answerer.batches(answerer.items(questions, ranking=True)):
        scores = np.asarray(_score(params, batch, model=answerer.model), np.float64)
        stride = max(len(item.targets) for item in group)
        found += [scores[i * stride : i * stride + len(item.targets)] for i, item in enumerate(group)]
    return found


def _choose(labels: tuple[str, ...], scores: np.ndarray) -> Answer:
    likelihoods = np.exp(scores - scores.max())
    probabilities = dict(zip(labels, (likelihoods / likelihoods.sum()).tolist(), strict=True))
    best = int(scores.argmax())
    return Answer(labels[best], probabilities, float(scores[best]))


@gin.configurable
def write(
    answerer: Answerer, params: split.Params, questions: Sequence[Question],
    decoder: Callable[..., Any] = decode.greedy, seed: int = 0,
) -> list[Answer]:  # fmt: skip
    """The text that `decoder` (greedy, beam_search or sample) makes of each question; `seed` is what it draws from."""
    items = answerer.items(questions, ranking=False)
    length, rng = answerer.source_length(items), jax.random.key(seed)
    answers = []
    for group, batch in answerer.batches(items):
        decoded = _decode(params, batch, rng, decoder, answerer.model, answerer.target_length, length)
        tokens, scores = np.asarray(decoded.tokens)[:, 0], np.asarray(decoded.scores)[:, 0]
        for i in range(len(group)):
            answers.append(Answer(answerer.vocabulary.decode(tokens[i].tolist()), {}, float(scores[i])))
    return answers


_score = jax.jit(score_targets, static_argnames="model")


@functools.partial(jax.jit, static_argnames=("decoder", "model", "max_length", "source_length"))
def _decode(
    params: split.Params,
    batch: layout.Batch,
    rng: jax.Array,
    decoder: Callable[..., Any],
    model: Model,
    max_length: int,
    source_length: int,
) -> decode.Decoded:
    return decoder(params, batch, model=model, max_length=max_length, source_length=source_length, rng=rng)


def compile_ahead(answerer: Answerer, params: split.Params, writing: bool = True) -> None:
    """Compiles ranking, and greedy decoding if `writing`, for every size of `answerer.shape`."""
    assert answerer.shape is not None
    for batch in answerer.empty_batches():
        jax.block_until_ready(_score(params, batch, model=answerer.model))
        if writing:
            length, rng = answerer.shape.row_length, jax.random.key(0)
            arguments = (decode.greedy, answerer.model, answerer.target_length, length)
            jax.block_until_ready(_decode(params, batch, rng, *arguments))


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
