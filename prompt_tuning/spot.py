"""SPoT's arithmetic (Vu et al. 2022, §3): tasks as prompts, how alike they are, which to start from, what it gained."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import gin
import numpy as np
from jaxtyping import Float

from prompt_tuning.errors import UserError

AVERAGE, PER_TOKEN = 0, 1  # the two rows of `directions`, the two layers of `similarities`

Directions = Float[np.ndarray, "2 D"]


def directions(prompt: Float[np.ndarray, "P D"], name: str = "a prompt") -> Directions:
    """All that similarities need of a prompt, in float32: its mean vector made unit length, and its mean unit vector.

    The average over token pairs of their cosines is the dot product of two mean unit vectors, so no pair is formed.
    """
    vectors = np.asarray(prompt, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = vectors.mean(axis=0)
    if not (np.isfinite(lengths).all() and lengths.all() and np.linalg.norm(mean) > 0):
        raise UserError(f"{name} has a vector of length 0 or infinity, which points nowhere: it cannot be compared.")
    return np.stack([mean / np.linalg.norm(mean), (vectors / lengths).mean(axis=0)]).astype(np.float32)


def similarities(library: Float[np.ndarray, "N 2 D"], wanted: Float[np.ndarray, "Q 2 D"]) -> Float[np.ndarray, "2 N Q"]:
    """Cosine of average tokens, and per-token average, of every pair: one matrix product that reads the library once.

    Each measure of `wanted` stands in columns of its own with zeros where the library has the other one.
    """
    count, _, width = wanted.shape
    columns = np.zeros((2, width, 2, count), np.float32)
    for measure in (AVERAGE, PER_TOKEN):
        columns[measure, :, measure] = wanted[:, measure].T
    product = library.reshape(len(library), 2 * width) @ columns.reshape(2 * width, 2 * count)
    return product.reshape(len(library), 2, count).transpose(1, 0, 2)


Similarity = Callable[[Float[np.ndarray, "2 ..."]], Float[np.ndarray, "..."]]


@gin.configurable
def average_tokens(both: Float[np.ndarray, "2 ..."]) -> Float[np.ndarray, "..."]:
    """The cosine of the prompts' average tokens."""
    return both[AVERAGE]


@gin.configurable
def per_token_average(both: Float[np.ndarray, "2 ..."]) -> Float[np.ndarray, "..."]:
    """The average over all pairs of tokens of their cosines."""
    return both[PER_TOKEN]


def ranked(similarity: Mapping[str, float]) -> list[tuple[str, float]]:
    """(source, similarity), the most alike first; equals stand in the order of their names, so that reruns agree."""
    if wrong := [name for name, value in similarity.items() if not math.isfinite(value)]:
        raise UserError(f"The similarity of {wrong[0]} is no number. Its run diverged: look at its metrics.jsonl.")
    return sorted(similarity.items(), key=lambda pair: (-pair[1], pair[0]))


@dataclasses.dataclass(frozen=True)
class Pick:
    """What one target prompt starts from: source prompts and their weights, or a prompt of their tasks' mixture."""

    sources: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    mixture: bool = False


class Unlike(UserError):
    """A source that is not like the target at all was to be weighed by how alike they are."""


Retrieve = Callable[[Sequence[tuple[str, float]], int], list[Pick]]  # from `ranked` and k to what is tuned


@gin.configurable
def best_of_top_k(order: Sequence[tuple[str, float]], k: int) -> list[Pick]:
    """k tunings, one from each of the k most alike; the best by validation is kept."""
    return [Pick((name,)) for name, _ in _top(order, k)]


@gin.configurable
def top_k_weighted_average(order: Sequence[tuple[str, float]], k: int) -> list[Pick]:
    """One tuning, from the average of the k most alike weighted by their similarities."""
    top = _top(order, k)
    if top[-1][1] <= 0:
        positive = sum(value > 0 for _, value in order)
        raise Unlike(
            f"{top[-1][0]}, number {k} of the sources, has the similarity {top[-1][1]:.3f}, which is no weight of an"
            f" average. {f'Type --gin.TOP_K={positive}' if positive else 'No source is like this target'}."
        )
    total = math.fsum(value for _, value in top)
    return [Pick(tuple(name for name, _ in top), tuple(value / total for _, value in top))]


@gin.configurable
def top_k_mixture(order: Sequence[tuple[str, float]], k: int) -> list[Pick]:
    """One tuning, from the last prompt tuned on a mixture of the target's task and those of the k most alike."""
    return [Pick(tuple(name for name, _ in _top(order, k)), (), mixture=True)]


def _top(order: Sequence[tuple[str, float]], k: int) -> Sequence[tuple[str, float]]:
    if not isinstance(k, int) or not 1 <= k <= len(order):
        raise UserError(f"TOP_K is {k!r} and there are {len(order)} source prompts to choose from.")
    return order[:k]


def relative_error_reduction(score: float, baseline: float) -> float:
    """Percent of the baseline's error, 100 - baseline, that a score takes away.

    NaN where there was none to take, and where either is no number.
    """
    known = math.isfinite(score) and math.isfinite(baseline)
    return 100 * (score - baseline) / (100 - baseline) if known and baseline < 100 else math.nan


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Pearson's r, its two-sided p, and over how many points; NaN where either side does not vary."""

    r: float
    p: float
    points: int


def correlation(similarity: Sequence[float], gain: Sequence[float]) -> Correlation:
    """Whether the more alike helped more (Vu et al. 2022, §3.3); pairs with a NaN are left out."""
    from scipy import stats  # takes a second to import

    pairs = np.array([(a, b) for a, b in zip(similarity, gain, strict=True) if math.isfinite(a) and math.isfinite(b)])
    if len(pairs) < 3 or not np.ptp(pairs, axis=0).all():
        return Correlation(math.nan, math.nan, len(pairs))
    found = stats.pearsonr(pairs[:, 0].astype(np.float64), pairs[:, 1].astype(np.float64))
    return Correlation(float(found.statistic), float(found.pvalue), len(pairs))
