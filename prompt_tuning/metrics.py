"""The metrics of both papers, in percent, as functions of (targets, predictions); no TensorFlow.

What stands in the two lists is what a task's postprocessor made: label ids (-1 for a text that is no label), numbers,
texts, or dictionaries with a `group`. An undefined correlation counts as 0, so that a run can compare its steps.
"""

import collections
import math
import re
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Scores = dict[str, float]
Metric = Callable[[Any, Any], Scores]


def number(text: str) -> float:
    """The number that a text spells; -1 for any other text, and for those that Python reads as no finite one."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def accuracy(targets, predictions) -> Scores:
    """Share of predictions equal to their target."""
    return {"accuracy": 100 * float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def f1(targets, predictions) -> Scores:
    """F1 of class 1 of two; a prediction that is no label counts as the wrong one of the two."""
    import sklearn.metrics

    targets, predictions = np.asarray(targets), np.asarray(predictions)
    decided = np.where(np.isin(predictions, (0, 1)), predictions, 1 - targets)
    return {"f1": 100 * float(sklearn.metrics.f1_score(targets, decided, zero_division=0.0))}


def mean_class_f1(num_classes: int) -> Metric:
    """Macro F1, the mean of each class's own F1: CommitmentBank's first metric, with three classes."""

    def mean_class_f1(targets, predictions) -> Scores:
        import sklearn.metrics

        each = sklearn.metrics.f1_score(
            targets, predictions, labels=range(num_classes), average=None, zero_division=0.0
        )
        return {f"mean_{num_classes}class_f1": 100 * float(np.mean(each))}

    return mean_class_f1


def matthews(targets, predictions) -> Scores:
    """Matthews correlation; a prediction that is no label is a class of its own."""
    import sklearn.metrics

    return {"matthews_corrcoef": 100 * float(sklearn.metrics.matthews_corrcoef(targets, predictions))}


def pearson(targets, predictions) -> Scores:
    import scipy.stats

    return {"pearson_corrcoef": _correlation(scipy.stats.pearsonr, targets, predictions)}


def spearman(targets, predictions) -> Scores:
    import scipy.stats

    return {"spearman_corrcoef": _correlation(scipy.stats.spearmanr, targets, predictions)}


def _correlation(function, targets, predictions) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant prediction, as an untrained prompt gives, has no correlation
        value = float(function(targets, predictions)[0])
    return 100 * value if np.isfinite(value) else 0.0


def multirc(targets, predictions) -> Scores:
    """F1 over all answers, and the share of questions with every answer right (dictionaries of value and group)."""
    questions = collections.defaultdict(list)
    for t, p in zip(targets, predictions, strict=True):
        questions[t["group"]].append(t["value"] == p["value"])
    exact = float(np.mean([all(answers) for answers in questions.values()]))
    return f1([t["value"] for t in targets], [p["value"] for p in predictions]) | {"exact_match": 100 * exact}


def squad(targets, predictions) -> Scores:
    """Exact match and token F1 of Rajpurkar et al. 2016: each prediction against the best of its answers."""
    em, f1 = [], []
    for answers, prediction in zip(targets, predictions, strict=True):
        guess = normalise_answer(prediction)
        truths = [normalise_answer(a) for a in answers] or [""]
        em.append(max(guess == t for t in truths))
        f1.append(max(_token_f1(guess.split(), t.split()) for t in truths))
    return {"em": 100 * float(np.mean(em)), "f1": 100 * float(np.mean(f1))}


def record(targets, predictions) -> Scores:
    """SQuAD's metrics over ReCoRD's queries: a query with several answers is several examples, and counts once."""
    first: dict[Any, tuple[Sequence[str], str]] = {}
    for t, p in zip(targets, predictions, strict=True):
        first.setdefault(t["group"], (t["value"], p["value"]))
    return squad([t for t, _ in first.values()], [p for _, p in first.values()])


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's notion of the same answer."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _token_f1(guess: Sequence[str], truth: Sequence[str]) -> float:
    shared = sum((collections.Counter(guess) & collections.Counter(truth)).values())
    return 2 * shared / (len(guess) + len(truth)) if shared else 0.0


def rouge(targets, predictions) -> Scores:
    """ROUGE-1, ROUGE-2 and summary-level ROUGE-L F1, sentences parted at " . " (Raffel et al. 2020)."""
    from rouge_score import rouge_scorer

    names = ("rouge1", "rouge2", "rougeLsum")
    scorer = rouge_scorer.RougeScorer(names)
    lines = [[text.replace(" . ", " .\n") for text in texts] for texts in (targets, predictions)]
    scores = [scorer.score(t, p) for t, p in zip(*lines, strict=True)]
    return {name: 100 * float(np.mean([s[name].fmeasure for s in scores])) for name in names}


def bleu(targets, predictions) -> Scores:
    """Corpus BLEU of sacrebleu with international tokenisation, as Raffel et al. 2020 report translation."""
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(list(predictions), [list(targets)], tokenize="intl").score)}


BENCHMARKS = {
    "superglue": ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"),
    "glue": ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"),  # without WNLI, as in Vu et al. 2022, §2
}


def averages(means: Mapping[str, float]) -> Scores:
    """The score of SuperGLUE, and of GLUE, if all tasks of it are there: their mean, each counting alike.

    `means` are those of each task's metrics, by its name. MNLI is the mean of its two halves where it is given as such;
    WNLI is left out unless it is given, as in both papers.
    """
    found = {}
    for benchmark, tasks in BENCHMARKS.items():
        of = {_short(benchmark, name): mean for name, mean in means.items()}
        halves = [of[half] for half in ("mnli_matched", "mnli_mismatched") if half in of]
        of = {"mnli": float(np.mean(halves))} | of if len(halves) == 2 else of
        counted = (*tasks, *(["wnli"] if "wnli" in of and benchmark == "glue" else []))
        if all(task in of for task in counted):
            found[benchmark] = float(np.mean([of[task] for task in counted]))
    return found


def _short(benchmark: str, name: str) -> str:
    return name.removeprefix(f"{benchmark}_").removesuffix("_prefixed").removesuffix("_eval")
