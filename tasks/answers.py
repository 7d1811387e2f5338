"""Predicted text to what a metric compares: SeqIO postprocessors (text, example=..., is_target=...)."""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning import metrics

# fmt: off
DETERMINERS = frozenset({
    "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their",
    "these", "this", "those", "which", "whose", "your",
})
# fmt: on


def label_id(text: str, label_classes: Sequence[str], **unused: Any) -> int:
    """The label's place, -1 for any other text: an answer that is no label is wrong, not an error."""
    return label_classes.index(text) if text in label_classes else -1


def number(text: str, **unused: Any) -> float:
    """The number a text spells, -1 for any other text."""
    return metrics.number(text)


def multirc(text: str, label_classes: Sequence[str], example: Mapping[str, Any], **unused: Any) -> dict[str, Any]:
    """The label's place, and the question it belongs to."""
    return {"value": label_id(text, label_classes), "group": (example["idx/paragraph"], example["idx/question"])}


def record(text: str, example: Mapping[str, Any], is_target: bool = False) -> dict[str, Any]:
    """All answers of the query as target, the text as prediction, and the query both belong to."""
    value = all_answers(text, example, is_target)
    return {"value": value, "group": (example["idx/passage"], example["idx/query"])}


def all_answers(text: str, example: Mapping[str, Any], is_target: bool = False) -> str | list[str]:
    """Every answer that counts as right as target, the text itself as prediction."""
    return [a.decode() if isinstance(a, bytes) else str(a) for a in example["answers"]] if is_target else text


def referent(text: str, example: Mapping[str, Any], is_target: bool = False) -> int:
    """Does the prediction name the referent on trial (WSC)? The example's own label as target.

    Names match if the words of one are all in the other, determiners and capitals aside, and both or neither have an
    apostrophe: "Bob" is not "Bob's hat". An empty prediction is wrong either way.
    """
    if is_target:
        return int(example["label"])
    on_trial = example["targets_pretokenized"]
    guess, truth = _bare_words(text), _bare_words(on_trial.decode() if isinstance(on_trial, bytes) else on_trial)
    if not guess:
        return -1
    if ("'" in " ".join(guess)) != ("'" in " ".join(truth)):
        return 0
    return int(set(guess) <= set(truth) or set(truth) <= set(guess))


def _bare_words(text: str) -> list[str]:
    return [w for w in text.strip().lower().split(" ") if w and w not in DETERMINERS]
