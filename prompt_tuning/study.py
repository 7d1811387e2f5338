"""prompt-tuning spot --study: every source for every target and seed, and whether similarity predicted transfer.

Pairs follow Vu et al. 2022, §3: a point is a source prompt; its similarity to a target is the mean over the target's
seeds; retrieval chooses among all source prompts by one target seed's similarities, and its deviation is over these.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from prompt_tuning import job, spot, spot_steps, study_report
from prompt_tuning.run import Run
from prompt_tuning.spot_steps import Compared, Key, Retuning, Scratch, Spot, Steps, label
from prompt_tuning.study_report import Findings, Retrieval

TOPS = (1, 3, 6, 9, 12, 15)  # the paper's k


def study(settings: Spot, run: Run) -> Findings:
    """Tunes all there is to tune, and writes `study.md`, `study.json` and the pictures."""
    settings.check(run, {"AVERAGE_TOP": settings.average_top, "MIXTURE_TOP": settings.mixture_top})
    steps = Steps(run, settings.bank_slots)
    scratch = spot_steps.tune_from_scratch(settings, steps)
    compared = spot_steps.compare(settings, scratch, run.folder)
    single = every_pair(settings)
    several = _of_several(settings, compared)
    wanted = [*single.values(), *(retuning for group in several.values() for retuning in group)]
    tuned = spot_steps.retune(settings, steps, scratch, wanted)
    found = findings(settings, scratch, compared, {pair: tuned[r.name].score for pair, r in single.items()})
    for name, group in several.items():
        scores = {(r.target, r.seed): tuned[r.name].score for r in group}
        table = [[scores.get((target, seed), math.nan) for seed in settings.seeds] for target in settings.targets]
        found.retrieval.append(_gain(name, found, table))
    if job.writes():
        study_report.write(run.folder, found)
    return found


def every_pair(settings: Spot) -> dict[tuple[Key, str], Retuning]:
    """Each source prompt for each target that may start from it, the target trained with the source's seed."""
    pairs = itertools.product(settings.targets, settings.sources, settings.seeds)
    return {
        ((source, seed), target): Retuning(
            target, seed, spot.Pick((spot_steps.source_name((source, seed)),)),
            f"target-{label(target)}-seed{seed}-from-{label(source)}-seed{seed}",
        )
        for target, source, seed in pairs if spot_steps.may_start(source, target)
    }  # fmt: skip


def _of_several(settings: Spot, compared: Compared) -> dict[str, list[Retuning]]:
    """Weighted averages and mixtures of the sources most like each target prompt, by the method's name.

    There is none where one of the k sources is not like the target at all.
    """
    made: dict[str, list[Retuning]] = {}
    for retrieve, word, tops in (
        (spot.top_k_weighted_average, "average", settings.average_top),
        (spot.top_k_mixture, "mixture", settings.mixture_top),
    ):
        for k, target, seed in itertools.product(tops, settings.targets, settings.seeds):
            group = made.setdefault(f"{retrieve.__name__}, k = {k}", [])
            with contextlib.suppress(spot.Unlike):
                [pick] = spot_steps.picked(settings, compared, (target, seed), retrieve, k)
                group.append(Retuning(target, seed, pick, f"target-{label(target)}-seed{seed}-from-{word}{k}"))
    return made


def findings(settings: Spot, scratch: Scratch, compared: Compared, scores: dict[tuple[Key, str], float]) -> Findings:
    """The study's numbers, from the score of each (source prompt, target); pairs that were left out have none.

    A prompt that no evaluation could score has the score -inf, which is no number here either.
    """
    sources, targets, seeds = settings.sources, settings.targets, settings.seeds
    baseline = [[scratch.targets[t, r].score for r in seeds] for t in targets]
    table = [[[scores.get(((s, r), t), math.nan) for r in seeds] for s in sources] for t in targets]
    rows = np.array([[compared.sources[s, r] for r in seeds] for s in sources])
    columns = np.array([[compared.targets[t, r] for r in seeds] for t in targets])
    alike = compared.both[:, rows[None, None], columns[:, :, None, None]]  # [2 T R S R]
    for (t, target), (s, source) in itertools.product(enumerate(targets), enumerate(sources)):
        if not spot_steps.may_start(source, target):
            alike[:, t, :, s] = math.nan
    found = Findings(
        sources=[label(s) for s in sources], targets=[label(t) for t in targets], seeds=list(seeds),
        baseline=_numbers(baseline), scores=_numbers(table), similarity=alike, heat=_heat(settings, compared),
        embedding_step=settings.embedding_step, chosen=settings.similarity.__name__,
        source_scores=_numbers([[scratch.sources[s, r].score for r in seeds] for s in sources]),
    )  # fmt: skip
    for measure, name in enumerate(study_report.MEASURES):
        for k in (k for k in TOPS if k < found.candidates):
            found.retrieval.append(_gain(f"best of top-{k} by {name}", found, _best_of_top(found, measure, k)))
    for k in (k for k in TOPS if k < found.candidates):
        found.retrieval.append(_gain(f"best of {k} at random (expected)", found, _best_at_random(found, k)))
    everything = [[np.fmax.reduce(scores, axis=None)] * len(seeds) for scores in found.scores]  # NaN if all are
    found.retrieval.insert(0, _gain(f"best of all {found.candidates} (oracle)", found, everything))
    return found


def _numbers(scores: Sequence) -> np.ndarray:
    """Scores as an array, NaN for each that is no number."""
    values = np.array(scores, float)
    return np.where(np.isfinite(values), values, math.nan)


def _best_of_top(found: Findings, measure: int, k: int) -> list[list[float]]:
    """Of each target and target seed, the best score among the k source prompts most like it."""
    chosen = []
    for t in range(len(found.targets)):
        scores = found.scores[t].ravel()  # [S R]
        there = np.flatnonzero(np.isfinite(scores))
        alike = found.similarity[measure, t].reshape(len(found.seeds), -1)[:, there]
        tops = np.argsort(-alike, axis=1, kind="stable")[:, :k]
        chosen.append([float(scores[there[top]].max()) for top in tops])
    return chosen


def _best_at_random(found: Findings, k: int) -> list[list[float]]:
    """Of each target, what the best of k source prompts drawn without looking is expected to score."""
    expected = []
    for scores in found.scores:
        there = np.sort(scores[np.isfinite(scores)])
        ways = [math.comb(i, k - 1) / math.comb(len(there), k) for i in range(len(there))]  # that the i-th is the best
        expected.append([float(there @ ways)] * len(found.seeds))
    return expected


def _gain(name: str, found: Findings, scores: list[list[float]]) -> Retrieval:
    """Means over targets of each seed: score, change, and relative error reduction, over that seed's baseline.

    NaN where a target has no score; one without an error to take away is left out of the reduction alone.
    """
    after, perfect = _numbers(scores), found.baseline >= 100
    pairs = np.vectorize(spot.relative_error_reduction, otypes=[float])(after, found.baseline)
    reduced = [np.mean(of[~out]) if not out.all() else math.nan for of, out in zip(pairs.T, perfect.T, strict=True)]
    return Retrieval(name, (after - found.baseline).mean(axis=0), np.array(reduced), after.mean(axis=0))


def _heat(settings: Spot, compared: Compared) -> tuple[list[str], Float[np.ndarray, "N N"]]:
    """Similarity of all tasks, sources first, averaged over pairs of seeds; never of a prompt to itself."""
    of = {task: [compared.targets[task, r] for r in settings.seeds] for task in settings.targets}
    of |= {task: [compared.sources[task, r] for r in settings.seeds] for task in settings.sources}
    order = [*settings.sources, *(task for task in settings.targets if task not in settings.sources)]
    values = np.array(settings.similarity(compared.both), np.float64)
    np.fill_diagonal(values, np.nan if len(settings.seeds) > 1 else 1)
    means = [[np.nanmean(values[np.ix_(of[a], of[b])]) for b in order] for a in order]
    return [label(task) for task in order], np.array(means)
