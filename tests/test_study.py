"""A study's tables on invented scores: what is averaged over what, what is compared with what."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from prompt_tuning import spot, spot_steps, study, study_pictures, study_report
from prompt_tuning.spot_steps import Compared, Scratch, Spot, Tuned
from prompt_tuning.study_report import Findings

SETTINGS = Spot(sources=("a", "b", "c"), targets=("c", "d"), seeds=(0, 1), similarity=spot.average_tokens)
PROMPTS = list(itertools.product(SETTINGS.sources, SETTINGS.seeds))
GOALS = list(itertools.product(SETTINGS.targets, SETTINGS.seeds))


def tuned(name: str, score: float) -> Tuned:
    return Tuned("run", name, score, 2, 4)


@pytest.fixture
def scores() -> dict:
    rng = np.random.default_rng(0)
    return {(s, t): float(rng.uniform(60, 90)) for s in PROMPTS for t in SETTINGS.targets if s[0] != t}


@pytest.fixture
def both() -> np.ndarray:
    values = np.random.default_rng(1).uniform(0.1, 0.9, (2, len(PROMPTS) + len(GOALS), len(PROMPTS) + len(GOALS)))
    return (values + values.transpose(0, 2, 1)) / 2


@pytest.fixture
def found(scores, both) -> Findings:
    return made(scores, both)


def made(scores: dict, both: np.ndarray) -> Findings:
    baselines = dict(zip(GOALS, (70.0, 74.0, 50.0, 60.0), strict=True))
    scratch = Scratch({s: tuned(s[0], 80) for s in PROMPTS}, {t: tuned(t[0], base) for t, base in baselines.items()})
    places = {s: i for i, s in enumerate(PROMPTS)}, {t: len(PROMPTS) + i for i, t in enumerate(GOALS)}
    return study.findings(SETTINGS, scratch, Compared(both, *places), scores)


def named(found: Findings, name: str) -> study_report.Retrieval:
    return next(r for r in found.retrieval if r.name.startswith(name))


def test_the_heat_map_shows_error_reduction_of_means_and_nothing_of_a_task_for_itself(found, scores):
    mean = (scores[("a", 0), "d"] + scores[("a", 1), "d"]) / 2
    assert found.error_reduction[1, 0] == pytest.approx(100 * (mean - 55) / 45)
    assert np.isnan(found.error_reduction).tolist() == [[False, False, True], [False, False, False]]


def test_a_point_is_a_source_prompt_and_its_similarity_a_mean_over_the_targets_seeds(found, both):
    alike, _ = found.points(1)
    assert alike.shape == (3, 2) and found.correlation(1).points == 6 and found.correlation(0).points == 4
    of_goal = [both[spot.AVERAGE, 1, len(PROMPTS) + i] for i in (2, 3)]  # a, seed 1, to both seeds of d
    assert alike[0, 1] == pytest.approx(np.mean(of_goal))


def test_the_best_of_the_top_k_is_of_each_targets_seed_over_that_seeds_baseline(found, scores, both):
    best = []
    for i, (target, _) in enumerate(GOALS):
        sources = [s for s in PROMPTS if s[0] != target]
        order = sorted(sources, key=lambda s: -both[spot.PER_TOKEN, PROMPTS.index(s), len(PROMPTS) + i])
        best.append(max(scores[s, target] for s in order[:3]))
    got = named(found, "best of top-3 by per_token_average")
    np.testing.assert_allclose(got.score, [(best[0] + best[2]) / 2, (best[1] + best[3]) / 2])
    np.testing.assert_allclose(got.change, got.score - [(70 + 50) / 2, (74 + 60) / 2])
    first = [100 * (best[0] - 70) / 30, 100 * (best[2] - 50) / 50]
    assert got.error_reduction[0] == pytest.approx(np.mean(first))


def test_the_oracle_and_chance_are_what_trying_every_choice_gives(found, scores):
    of = lambda target: [score for (_, t), score in scores.items() if t == target]
    np.testing.assert_allclose(
        named(found, "best of all 4 (oracle)").score, [np.mean([max(of("c")), max(of("d"))])] * 2
    )
    chance = [np.mean([max(chosen) for chosen in itertools.combinations(of(t), 3)]) for t in ("c", "d")]
    np.testing.assert_allclose(named(found, "best of 3 at random").score, [np.mean(chance)] * 2)


def test_similarities_of_tasks_leave_a_prompt_with_itself_out(found, both):
    tasks, values = found.heat
    assert tasks == ["a", "b", "c", "d"], "a task that is source and target stands once, as a source"
    assert values[0, 0] == pytest.approx(both[spot.AVERAGE, 0, 1])
    assert values[0, 3] == pytest.approx(both[spot.AVERAGE][:2, 8:10].mean())


def test_a_target_starts_from_no_mixture_that_it_is_a_part_of():
    settings = Spot(sources=("a+cb", "b"), targets=("cb",), seeds=(0,))
    compared = Compared(np.full((2, 3, 3), 0.5), {("a+cb", 0): 0, ("b", 0): 1}, {("cb", 0): 2})
    picks = spot_steps.picked(settings, compared, ("cb", 0), spot.best_of_top_k, 1)
    assert picks == [spot.Pick(("source-b-seed0",))]
    assert list(study.every_pair(settings)) == [(("b", 0), "cb")]
    scratch = Scratch({s: tuned(s[0], 80) for s in compared.sources}, {("cb", 0): tuned("cb", 70)})
    found = study.findings(settings, scratch, compared, {(("b", 0), "cb"): 75.0})
    assert np.isnan(found.similarity[:, 0, 0, :, 0]).tolist() == [[True, False]] * 2
    assert not spot_steps.may_start("cb_prefixed+b", "cb") and not spot_steps.may_start("cb", "cb_prefixed")
    assert not spot_steps.may_start("./a/t.toml", "a/t.toml") and spot_steps.may_start("b/t.toml", "a/t.toml")
    assert spot_steps.may_start("cb", "a+cb") and not spot_steps.may_start("b+a", "a+b"), "a part may start the whole"


def test_no_average_is_made_of_a_source_that_points_away(both):
    """One such target prompt costs the study that one tuning."""
    away = np.array(both)
    places = {s: i for i, s in enumerate(PROMPTS)}, {t: len(PROMPTS) + i for i, t in enumerate(GOALS)}
    away[:, : len(PROMPTS), places[1]["d", 1]] = away[:, places[1]["d", 1], : len(PROMPTS)] = -0.1
    settings = dataclasses.replace(SETTINGS, average_top=(2,), mixture_top=(1,))
    average, mixture = study._of_several(settings, Compared(away, *places)).values()
    assert {(r.target, r.seed) for r in average} == {*GOALS} - {("d", 1)}
    assert {(r.target, r.seed) for r in mixture} == {*GOALS}


def test_tasks_that_are_alike_stand_together():
    near, far = 0.9, 0.1
    values = np.array([[1, far, near, far], [far, 1, far, near], [near, far, 1, far], [far, near, far, 1]])
    order, tree = study_pictures.clusters(values)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    np.testing.assert_allclose(tree[:, 2], [1 - near, 1 - near, 1 - far])
    assert study_pictures.clusters(values[:1, :1]) == ([0], None)


def test_json_and_markdown_say_the_same_and_have_no_nan(found, tmp_path: Path):
    study_report.write(tmp_path, found)
    text = (tmp_path / "study.md").read_text()
    assert "NaN" not in (tmp_path / "study.json").read_text() and "nan" not in text
    assert f"({found.error_reduction[1, 0]:+.1f})" in text and f"{found.correlation(1).r:.3f}" in text
    assert all(
        (tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("error_reduction", "similarity", "correlation")
    )


def test_a_picture_of_few_tasks_holds_its_title(found, tmp_path: Path, monkeypatch):
    figures = []
    monkeypatch.setattr(study_pictures, "_save", lambda figure, path: figures.append(figure))
    study_pictures.error_reduction(tmp_path / "e.png", found)
    for count in (1, 2):
        names = ["a_task_of_a_long_name", "another"][:count]
        study_pictures.similarity(tmp_path / "s.png", names, np.full((count, count), 0.5), "per_token_average")
    for figure in figures:
        figure.draw_without_rendering()
        wide = figure.get_tightbbox()
        assert 0 <= wide.x0 < wide.x1 <= figure.get_figwidth(), "something reaches over the edge"


@pytest.mark.parametrize("left", [3, 1, 0])
def test_a_study_in_which_some_scores_are_no_numbers_is_told(scores, both, tmp_path: Path, left):
    """Of the four source prompts of c, `left` have a score; the last one of d has none either."""
    of = lambda target: [pair for pair in scores if pair[1] == target]
    lost = [*of("c")[left:], of("d")[-1]]
    found = made(scores | dict.fromkeys(lost, -math.inf), both)
    oracle, *others = found.retrieval
    best = [max([scores[pair] for pair in of(target) if pair not in lost], default=math.nan) for target in ("c", "d")]
    np.testing.assert_allclose(oracle.score, [np.mean(best)] * 2)
    assert np.isnan([oracle.change, oracle.error_reduction]).all() == (left == 0)
    assert [r.name for r in others if "random" in r.name] == ["best of 1 at random (expected)"] * (left == 3)
    assert found.correlation(0).points == left and found.correlation(1).points == 5
    study_report.write(tmp_path, found)
    text = (tmp_path / "study.md").read_text()
    assert ("| best of all 0 (oracle) | - | - | - |" in text) == (left == 0) and f"best of all {left} (oracle)" in text
    assert "| from c |  | - |" in text, "what is not tried and what is not scored are told apart"
    assert "inf" not in text and "nan" not in text and "NaN" not in (tmp_path / "study.json").read_text()


def test_a_study_of_one_seed_and_one_pair_is_still_told(tmp_path: Path):
    settings = Spot(sources=("a",), targets=("b",), seeds=(0,))
    scratch = Scratch({("a", 0): tuned("a", 80)}, {("b", 0): tuned("b", 100.0)})
    both = np.full((2, 2, 2), 0.5)
    found = study.findings(settings, scratch, Compared(both, {("a", 0): 0}, {("b", 0): 1}), {(("a", 0), "b"): 99.0})
    study_report.write(tmp_path, found)
    assert math.isnan(found.error_reduction[0, 0]), "there was no error to take away"
    text = (tmp_path / "study.md").read_text()
    assert "| b | - | - | 0 |" in text and "nan" not in text
