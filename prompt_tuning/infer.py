"""Predictions of a frozen T5 behind prompts: rank the labels or decode; many slots and tasks in one batch."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import gin
import jax
import numpy as np

from prompt_tuning import configure, decode, device, layout, split
from prompt_tuning.errors import UserError
from prompt_tuning.examples import LENGTHS, UNCUT, Examples
from prompt_tuning.grouping import Fixed, Group, Grouping, Progress, planned
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model, score_targets
from prompt_tuning.vocabulary import Vocabulary

WORTH_A_LINE = 100_000  # positions of all questions: enough to win back what lines take longer to compile

MEAN_OF_TASKS = "mean_of_tasks"  # among the metrics of a mixture


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
    prior: dict[str, float] = dataclasses.field(default_factory=dict)  # what calibration divided by; empty without


@dataclasses.dataclass(frozen=True)
class Answerer:
    """The frozen model, its slots, and how they are run."""

    model: Model
    slots: Sequence[Slot]
    labels: Sequence[tuple[str, ...]]  # of each slot's task
    vocabulary: Vocabulary
    mesh: Any
    batch_size: int = 64
    target_length: int = LENGTHS["targets"]  # tokens of an answer that is written, at most
    grouping: Grouping = planned
    progress: Progress = lambda batches, total: batches
    input_lengths: Sequence[int] = ()  # tokens that each slot's inputs are cut to; empty: they are not

    def labels_of(self, question: Question) -> tuple[str, ...]:
        """The answers to choose from; empty if there are none."""
        return question.labels or self.labels[question.slot]

    def items(self, questions: Sequence[Question], ranking: bool) -> list[layout.Item]:
        """Questions as the layout wants them, with their labels as targets when `ranking`.

        They are numbered within their slot: what is drawn for one does not depend on the other slots.
        """
        asked: collections.Counter[int] = collections.Counter()
        spelled = {labels: self._spelled(labels) for labels in {self.labels_of(q) for q in questions} if ranking}
        made = []
        for question in questions:
            slot, number = self.slots[question.slot], asked[question.slot]
            asked[question.slot] += 1
            targets = spelled[self.labels_of(question)] if ranking else []
            made.append(layout.Item(question.inputs, targets, question.slot, number, slot.length, slot.placement))
        return made

    def encode(self, text: str, slot: int) -> np.ndarray:
        """An input as the slot's prompt reads it: `int32[T]`, EOS last."""
        limit = self.input_lengths[slot] if self.input_lengths else None
        return self.vocabulary.tokenise([text], limit or UNCUT["inputs"])[0][0]

    def _spelled(self, labels: tuple[str, ...]) -> list[np.ndarray]:
        return [np.array([*self.vocabulary.encode(t), self.vocabulary.eos_id], np.int32) for t in labels]

    def batches(self, items: list[layout.Item], line: int | None = None) -> Iterable[Group]:
        """The items in groups, each packed; a device takes a row of up to `line` positions, if that is given."""
        groups = self.grouping(items, self.batch_size, self.mesh.shape["data"], line)
        return groups.packed(self.model.length, self.progress)

    def likelihoods(self, params: split.Params, items: list[layout.Item]) -> list[np.ndarray]:
        """Log-likelihood of each item's targets, float64[C]."""
        items = [dataclasses.replace(item, number=number) for number, item in enumerate(items)]
        found: list[list[float]] = [[] for _ in items]
        for group in self.batches(items, self.line(items)):
            for number, score in _numbered(group.batch, device.fetch(_scored(self, params, group))):
                found[number].append(score)
        return [np.array(scores, np.float64) for scores in found]

    def line(self, items: list[layout.Item]) -> int | None:
        """The line that each device takes at a time, where several share a CPU and there is enough to do."""
        worth_it = self.mesh.shape["data"] > 1 and sum(item.length for item in items) > WORTH_A_LINE
        return device.line(self.mesh) if worth_it else None


def _numbered(batch: layout.Batch, scores: np.ndarray) -> Iterable[tuple[int, float]]:
    """Every target's score, and the number of the example it belongs to; those of an example in their order."""
    parts = zip(*batch, strict=True) if batch.in_parts else [batch]
    for arrays, of_part in zip(parts, scores.reshape(-1, batch.target_examples.shape[-1]), strict=True):
        part = layout.Batch(*arrays)
        targets = np.unique(part.decoder_segments[part.decoder_segments > 0]) - 1
        numbers = part.example_numbers[part.target_examples[targets]]
        yield from zip(numbers.tolist(), of_part[targets].tolist(), strict=True)


Predict = Callable[[Answerer, split.Params, Sequence[Question]], list[Answer]]


@gin.configurable
def rank(
    answerer: Answerer, params: split.Params, questions: Sequence[Question], content_free: Sequence[str] = ()
) -> list[Answer]:
    """The most likely label of each question's task; every label is scored against one encoding of the input.

    With `content_free` inputs (such as "sentence: N/A") labels are calibrated: each likelihood is divided by the mean
    probability that these inputs give the label (Zhao et al. 2021, arXiv 2102.09690).
    """
    if unlabelled := {question.slot for question in questions if not answerer.labels_of(question)}:
        names = ", ".join(answerer.slots[k].name for k in sorted(unlabelled))
        raise UserError(f"{names}: there are no labels to rank. Type --gin.PREDICT=@write, or set CLASS_LABELS.")
    if isinstance(content_free, str):
        raise UserError(f"rank.content_free is the text {content_free!r}; it is a list of texts: [{content_free!r}].")
    kinds = list(dict.fromkeys((q.slot, answerer.labels_of(q)) for q in questions))
    priors = dict(zip(kinds, _priors(answerer, params, kinds, content_free), strict=True))
    scores = _label_scores(answerer, params, questions)
    labelled = [(answerer.labels_of(q), priors[q.slot, answerer.labels_of(q)]) for q in questions]
    return [_choose(labels, found, prior) for (labels, prior), found in zip(labelled, scores, strict=True)]


def _priors(
    answerer: Answerer, params: split.Params, kinds: Sequence[tuple[int, tuple[str, ...]]], content_free: Sequence[str]
) -> list[np.ndarray | None]:
    """Mean label probabilities of inputs that say nothing, for each slot and labels; None without such inputs."""
    if not content_free:
        return [None] * len(kinds)
    questions = [Question(answerer.encode(text, slot), slot, labels) for slot, labels in kinds for text in content_free]
    scores, n = _label_scores(answerer, params, questions), len(content_free)
    return [np.mean([_softmax(s) for s in scores[i * n : (i + 1) * n]], axis=0) for i in range(len(kinds))]


def _label_scores(answerer: Answerer, params: split.Params, questions: Sequence[Question]) -> list[np.ndarray]:
    """Log-likelihood of every label of each question, float64[C]."""
    return answerer.likelihoods(params, answerer.items(questions, ranking=True))


def _choose(labels: tuple[str, ...], scores: np.ndarray, prior: np.ndarray | None) -> Answer:
    weighed = scores if prior is None else scores - np.log(np.maximum(prior, 1e-30))
    by_label = lambda values: dict(zip(labels, values.tolist(), strict=True))
    best = int(weighed.argmax())
    divided = {} if prior is None else by_label(prior)
    return Answer(labels[best], by_label(_softmax(weighed)), float(scores[best]), divided)


def _softmax(scores: np.ndarray) -> np.ndarray:
    likelihoods = np.exp(scores - scores.max())
    return likelihoods / likelihoods.sum()


@gin.configurable
def write(
    answerer: Answerer, params: split.Params, questions: Sequence[Question],
    decoder: Callable[..., Any] = decode.greedy, seed: int = 0,
) -> list[Answer]:  # fmt: skip
    """The text that `decoder` (greedy, beam_search or sample) makes of each question; `seed` is what it draws from."""
    items, rng = answerer.items(questions, ranking=False), jax.random.key(seed)
    line, order = answerer.line(items), list(range(len(items)))
    if line:  # then only what is filled is read, and examples of about one length can be written together
        order.sort(key=lambda i: -items[i].length)
    placed = [dataclasses.replace(items[i], number=n % answerer.batch_size) for n, i in enumerate(order)]
    waiting, answers = iter(order), [Answer("", {}, 0.0)] * len(items)
    for group in answerer.batches(placed, line):
        own = list(itertools.islice(waiting, len(group.items)))
        decoded = _written(answerer, params, group, [items[i].number for i in own], rng, decoder)
        tokens, scores = device.fetch(decoded.tokens)[:, 0], device.fetch(decoded.scores)[:, 0]
        for n, i in enumerate(own):
            answers[i] = Answer(answerer.vocabulary.decode(tokens[n].tolist()), {}, float(scores[n]))
    return answers


def _scored(answerer: Answerer, params: split.Params, group: Group) -> jax.Array:
    model = dataclasses.replace(answerer.model, filled=group.shape.filled)
    return _score(params, device.put_batch(group.batch, answerer.mesh), model=model)


def _written(
    answerer: Answerer, params: split.Params, group: Group, numbers: Sequence[int], rng: jax.Array,
    decoder: Callable[..., Any],
) -> decode.Decoded:  # fmt: skip
    """The answers to a group, whose items have `numbers` in their slots."""
    padded = np.zeros(layout.round_up(group.room, answerer.mesh.shape["data"]), np.int32)
    padded[: len(numbers)] = numbers
    batch, padded = device.put_batch(group.batch, answerer.mesh), device.put_everywhere(padded, answerer.mesh)
    model = dataclasses.replace(answerer.model, filled=group.shape.filled)
    sources = _read(params, batch, padded, model=model, length=group.source_length)
    told = str(configure.plain(decoder))
    return _decode(params, sources, rng, decoder, answerer.model, answerer.target_length, told)


_score = jax.jit(score_targets, static_argnames="model")
_read = jax.jit(decode.read, static_argnames=("model", "length"))


@functools.partial(jax.jit, static_argnames=("decoder", "model", "max_length", "told"))
def _decode(
    params: split.Params,
    sources: decode.Sources,
    rng: jax.Array,
    decoder: Callable[..., Any],
    model: Model,
    max_length: int,
    told: str,  # what gin gives the decoder: with something else it is another program
) -> decode.Decoded:
    """Each device of the data axis writes the answers of its own examples, and stops when it has them."""
    of_share = lambda sources, params, rng: decoder(params, sources, model=model, max_length=max_length, rng=rng)
    return device.joined_over_data(of_share, sources, params, rng)


def compile_ahead(answerer: Answerer, params: split.Params, writing: bool = True) -> None:
    """Compiles ranking, and greedy decoding if `writing`, for every size of an answerer whose batches are `Fixed`."""
    assert isinstance(answerer.grouping, Fixed)
    for grouping in answerer.grouping.sizes:
        for group in dataclasses.replace(answerer, grouping=grouping).batches([]):
            jax.block_until_ready(_scored(answerer, params, group))
            if writing:
                jax.block_until_ready(_written(answerer, params, group, [], jax.random.key(0), decode.greedy))


class Held(NamedTuple):
    """A task and its examples that a slot is scored on."""

    task: Any
    examples: Examples
    counts: bool = True  # for which step is the best


HeldOut = Sequence[Held]  # one slot's


def evaluate(
    answerer: Answerer, params: split.Params, held_out: Sequence[HeldOut], predict: Predict | None = None
) -> list[dict[str, float]]:
    """Each slot's metrics on its own tasks, `held_out[k]` being those of slot k; percent."""
    answers = answer_all(answerer, params, held_out, predict)
    return [score(of_slot, found) for of_slot, found in zip(held_out, answers, strict=True)]


def method_of(labels: Sequence[str]) -> Predict:
    """How a question is answered where nobody says it."""
    return rank if labels else write


def answer_all(
    answerer: Answerer, params: split.Params, held_out: Sequence[HeldOut], predict: Predict | None = None
) -> list[list[list[Answer]]]:
    """The answers of each slot to each of its tasks' examples, by `predict`; None: `rank` where there are labels.

    An example that several slots answer goes through the model behind all of their prompts in one batch.
    """
    found: list[list[list[Any]]] = [[[None] * len(held.examples) for held in of_slot] for of_slot in held_out]
    methods: dict[Predict, list[tuple[str, int, int, int]]] = {}
    for k, of_slot in enumerate(held_out):
        for t, (task, examples, _) in enumerate(of_slot):
            asked = methods.setdefault(predict or method_of(answerer.labels[k] or task.labels), [])
            asked += [(task.name, i, k, t) for i in range(len(examples))]
    for method, asked in methods.items():
        asked.sort()
        own = lambda k, t: () if answerer.labels[k] else held_out[k][t].task.labels  # tasks of a mixture may differ
        questions = [Question(held_out[k][t].examples.inputs[i], k, own(k, t)) for _, i, k, t in asked]
        answers = _one_each(method, method(answerer, params, questions), len(questions))
        for (_, i, k, t), answer in zip(asked, answers, strict=True):
            found[k][t][i] = answer
    return found


def _one_each(method: Predict, answers: Any, count: int) -> list[Answer]:
    """What a method returned. Raises UserError where one's own did not return an answer for each question."""
    are_some = isinstance(answers, list) and all(isinstance(answer, Answer) for answer in answers)
    if are_some and len(answers) == count:
        return answers
    what = f"{len(answers)} answers" if are_some else f"{answers!r:.60}"
    raise UserError(
        f"PREDICT, {configure.word(method)}, returned {what} to {count} questions; it returns a list with an"
        " infer.Answer(text, probabilities, score) to each, in their order."
    )


def score(held_out: HeldOut, answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """The metrics of a slot's answers; with several tasks they are called `task/metric`, and `MEAN_OF_TASKS` is added.

    It is the mean of the tasks' own means, of those that count (where any does): a task that is not trained on is a
    zero-shot one, which must not decide which step is best (Lester et al. 2021, §5).
    """
    metrics: dict[str, float] = {}
    means: dict[bool, list[float]] = {True: [], False: []}  # of the tasks that count, and of the others
    for (task, examples, counts), given in zip(held_out, answers, strict=True):
        prefix = f"{task.name}/" if len(held_out) > 1 else ""
        found = task.score(examples, [answer.text for answer in given])
        metrics |= {prefix + metric: value for metric, value in found.items()}
        means[counts].append(mean_metric(found))
    if len(held_out) > 1:
        metrics[MEAN_OF_TASKS] = _mean(means[True] or means[False])
    return metrics


def mean_metric(metrics: dict[str, float]) -> float:
    """What steps are compared by: the mean of a task's metrics (Lester et al. 2021, §3.1), or that of several tasks."""
    return metrics[MEAN_OF_TASKS] if MEAN_OF_TASKS in metrics else _mean(list(metrics.values()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
