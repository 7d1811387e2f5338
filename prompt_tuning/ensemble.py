"""Several prompts of one task as one answerer: majority vote and mean likelihood (Lester et al. 2021, §6).

The members are slots of one bank, so an example is answered behind each of them in the same batch.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from prompt_tuning.infer import Answer, mean_metric

Metrics = dict[str, float]


def likelihoods(answers: Sequence[Answer]) -> dict[str, float]:
    """Mean likelihood over the members of each label, or of each text that one of them wrote.

    A label's likelihood is its probability among the labels. A written text has none from a member that wrote
    another, which counts as zero.
    """
    each = [answer.probabilities or {answer.text: float(np.exp(answer.score))} for answer in answers]
    texts = dict.fromkeys(text for one in each for text in one)
    return {text: sum(one.get(text, 0.0) for one in each) / len(each) for text in texts}


def vote(answers: Sequence[Answer]) -> Answer:
    """The answer that most members give; between equals, the one of the higher mean likelihood."""
    means, votes = likelihoods(answers), collections.Counter(answer.text for answer in answers)
    return _answer(answers, max(votes, key=lambda text: (votes[text], means[text])))


def mean_likelihood(answers: Sequence[Answer]) -> Answer:
    """The answer of the highest mean likelihood."""
    means = likelihoods(answers)
    return _answer(answers, max(means, key=means.__getitem__))


def _answer(answers: Sequence[Answer], text: str) -> Answer:
    means = likelihoods(answers)
    ranked = all(answer.probabilities for answer in answers)
    with np.errstate(divide="ignore"):  # a text may be so long that its likelihood is zero
        score = float(np.log(means[text]))
    return Answer(text, means if ranked else {}, score)


WAYS: dict[str, Callable[[Sequence[Answer]], Answer]] = {"majority vote": vote, "mean likelihood": mean_likelihood}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the members reach alone and together, in percent (the columns of Lester et al. 2021, Table 3)."""

    members: dict[str, Metrics]
    together: dict[str, Metrics]  # of each of `WAYS`

    @property
    def mean(self) -> Metrics:
        """Each metric's mean over the members."""
        found = list(self.members.values())
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    @property
    def best(self) -> str:
        """The member with the highest mean of its metrics."""
        return max(self.members, key=lambda name: mean_metric(self.members[name]))


def teams(keys: Sequence[Hashable]) -> list[list[int]]:
    """Slots that answer the same questions with the same answers to choose from, two or more; `keys` tells by what."""
    found: dict[Hashable, list[int]] = {}
    for k, key in enumerate(keys):
        found.setdefault(key, []).append(k)
    return [team for team in found.values() if len(team) > 1]
