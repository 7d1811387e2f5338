"""Records what the reference metrics say of random predictions: tests/fixtures/metrics.json.

    python -m venv reference && reference/bin/pip install t5
    reference/bin/python scripts/record_metrics.py

The metrics are those of the `t5` package (Raffel et al. 2020), which the papers evaluate with: the SQuAD and ReCoRD
scripts' exact match and F1, MultiRC's F1 over answers and exact match of questions, scikit-learn, scipy, rouge_score.
"""

import json
from pathlib import Path

import numpy as np
from t5.evaluation import metrics

OUT = Path(__file__).parents[1] / "tests/fixtures/metrics.json"
N = 240
WORDS = [
    "the",
    "a",
    "an",
    "film",
    "plot",
    "of",
    "York",
    "New",
    "it's",
    "U.S.",
    "1984,",
    "(thin)",
    "river-bank",
    "Zürich",
    "-",
    "He",
    "he",
]


def texts(rng: np.random.Generator, n: int, longest: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest + 1))) for _ in range(n)]


def near(rng: np.random.Generator, truth: str) -> str:
    """A prediction: the truth, a part of it, it with other words, or something else."""
    words = truth.split()
    match rng.integers(4):
        case 0:
            return truth
        case 1:
            return " ".join(w for w in words if rng.random() < 0.7)
        case 2:
            return " ".join([*words, *rng.choice(WORDS, 2)]).upper()
    return texts(rng, 1, 4)[0]


def cases(seed: int):
    """(name, targets, predictions, the reference's scores), predictions of -1 being texts that are no label."""
    rng = np.random.default_rng(seed)
    two, guess = rng.integers(0, 2, N), rng.integers(-1, 2, N)
    three, guess3 = rng.integers(0, 3, N), rng.integers(-1, 3, N)
    matthews = metrics.sklearn_metrics_wrapper("matthews_corrcoef", metric_post_process_fn=lambda x: 100 * x)
    yield "accuracy", three, guess3, metrics.accuracy(three, guess3)
    yield "f1", two, guess, metrics.f1_score_with_invalid(two, guess.copy())
    yield "mean_3class_f1", three, guess3, metrics.mean_multiclass_f1(3)(three, guess3)
    yield "matthews", two, guess, matthews(two, guess)

    scores = np.round(rng.uniform(0, 5, N) * 5) / 5
    guesses = np.where(rng.random(N) < 0.1, -1.0, np.clip(scores + rng.normal(0, 1, N), 0, 5))
    yield "pearson", scores, guesses, metrics.pearson_corrcoef(scores, guesses)
    yield "spearman", scores, guesses, metrics.spearman_corrcoef(scores, guesses)

    groups = rng.integers(0, N // 3, N)
    right = [{"value": int(t), "group": int(g)} for t, g in zip(two, groups, strict=True)]
    said = [{"value": int(t if rng.random() < 0.6 else p)} for t, p in zip(two, guess, strict=True)]
    exact = metrics.mean_group_metric(metrics.all_match)(right, said)
    yield "multirc", right, said, metrics.multirc_f1_over_all_answers(right, said) | exact

    truths = [texts(rng, rng.integers(1, 4), 4) for _ in range(N)]
    predictions = [near(rng, str(rng.choice(t))) for t in truths]
    yield "squad", truths, predictions, metrics.squad(truths, predictions)

    queries = [[int(g), int(g) % 7] for g in groups]
    by_query = [{"value": t, "group": tuple(q)} for t, q in zip(truths, queries, strict=True)]
    answered = [{"value": p} for p in predictions]
    yield "record", by_query, answered, metrics.deduplicate_metric(metrics.squad)(by_query, answered)

    summaries = [" . ".join(texts(rng, 3, 8)) for _ in range(N)]
    drafts = [near(rng, s) for s in summaries]
    yield "rouge", summaries, drafts, metrics.rouge(summaries, drafts)


def main() -> None:
    recorded = {}
    for name, targets, predictions, scores in cases(seed=20211014):
        plain = [x.tolist() if isinstance(x, np.ndarray) else list(x) for x in (targets, predictions)]
        values = {k: float(v) for k, v in scores.items()}
        recorded[name] = {"targets": plain[0], "predictions": plain[1], "scores": values}
        print(name, values)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
