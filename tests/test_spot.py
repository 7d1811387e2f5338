"""SPoT's formulas against float64, and what is retrieved on cases small enough to see through."""

import math

import numpy as np
import pytest
from scipy import stats

from prompt_tuning import spot
from prompt_tuning.errors import UserError


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def as_printed(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Both similarities in float64 exactly as Vu et al. 2022, §3.2 prints them, pair by pair."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    pairs = [cosine(a, b) for a in one for b in other]
    return cosine(one.mean(axis=0), other.mean(axis=0)), math.fsum(pairs) / len(pairs)


@pytest.mark.parametrize("length, width, size", [(5, 8, 1.0), (20, 768, 1600.0), (3, 4096, 1e-3)])
def test_one_product_gives_both_similarities_of_the_paper(length, width, size):
    rng = np.random.default_rng(length)
    shared = rng.normal(size=width)
    scale = size * rng.lognormal(size=(7, length, 1))
    prompts = (scale * (rng.normal(size=(7, length, width)) + shared)).astype(np.float32)
    every = np.stack([spot.directions(prompt) for prompt in prompts])
    assert every.dtype == np.float32
    both = spot.similarities(every, every[:3])
    assert both.dtype == np.float32 and both.shape == (2, 7, 3)
    expected = np.array([[as_printed(a, b) for b in prompts[:3]] for a in prompts])
    np.testing.assert_allclose(both, np.moveaxis(expected, 2, 0), atol=1e-6, rtol=0)


def test_a_prompt_is_as_like_itself_as_its_tokens_are_to_one_another():
    prompt = np.eye(4, dtype=np.float32)
    both = spot.similarities(spot.directions(prompt)[None], spot.directions(prompt)[None])
    np.testing.assert_allclose(both.ravel(), [1, 1 / 4], atol=1e-7)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), [[1, 0], [-1, 0]], [[1.0, np.inf]]], ids=["zero", "opposed", "inf"])
def test_a_prompt_that_points_nowhere_is_refused(bad):
    with pytest.raises(UserError, match="points nowhere"):
        spot.directions(np.asarray(bad, np.float32), "films")


ALIKE = {"b": 0.5, "d": 0.1, "a": 0.5, "c": 0.9}


def test_the_most_alike_come_first_and_equals_by_name():
    assert [name for name, _ in spot.ranked(ALIKE)] == ["c", "a", "b", "d"]
    assert spot.ranked(dict(reversed(ALIKE.items()))) == spot.ranked(ALIKE)


def test_best_of_top_k_is_k_tunings_from_one_source_each():
    assert spot.best_of_top_k(spot.ranked(ALIKE), 2) == [spot.Pick(("c",)), spot.Pick(("a",))]


def test_the_weights_of_an_average_are_shares_of_similarity():
    [pick] = spot.top_k_weighted_average(spot.ranked(ALIKE), 3)
    assert pick.sources == ("c", "a", "b") and not pick.mixture
    np.testing.assert_allclose(pick.weights, np.array([0.9, 0.5, 0.5]) / 1.9, rtol=1e-12)


def test_a_mixture_is_one_tuning():
    assert spot.top_k_mixture(spot.ranked(ALIKE), 2) == [spot.Pick(("c", "a"), (), mixture=True)]


@pytest.mark.parametrize("similarity", [-0.1, 0.0])
def test_an_average_with_a_source_that_points_away_or_aside_is_refused(similarity):
    with pytest.raises(UserError, match="TOP_K=1"):
        spot.top_k_weighted_average(spot.ranked({"a": 0.5, "b": similarity}), 2)


@pytest.mark.parametrize("k", [0, 5, 1.5])
def test_a_k_that_is_no_number_of_sources_is_refused(k):
    with pytest.raises(UserError, match="there are 4 source prompts"):
        spot.best_of_top_k(spot.ranked(ALIKE), k)


def test_a_similarity_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="diverged"):
        spot.ranked({"a": math.nan})


def test_relative_error_reduction_is_the_papers_example():
    assert spot.relative_error_reduction(97.0, 92.7) == pytest.approx(58.9, abs=0.05)  # MNLI to CB
    assert math.isnan(spot.relative_error_reduction(100, 100))
    assert math.isnan(spot.relative_error_reduction(-math.inf, 50)), "a prompt that was never scored"
    assert math.isnan(spot.relative_error_reduction(50, -math.inf))


def test_correlation_is_pearsons_and_leaves_pairs_without_a_number_out():
    x, y = np.random.default_rng(0).normal(size=(2, 48))
    found = spot.correlation([*x, math.nan], [*(x + y), 3.0])
    expected = stats.pearsonr(x, x + y)
    assert found == spot.Correlation(pytest.approx(expected.statistic), pytest.approx(expected.pvalue), 48)
    r = expected.statistic
    t = r * math.sqrt(46 / (1 - r * r))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 46))
    assert math.isnan(spot.correlation([1, 1, 1], [1, 2, 3]).r), "nothing varies"
    assert math.isnan(spot.correlation([1, 2], [1, 2]).p), "two points always lie on a line"
