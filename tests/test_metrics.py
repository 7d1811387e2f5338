"""Metrics agree with the reference's, on 240 random predictions each (scripts/record_metrics.py)."""

import json
import math
from pathlib import Path

import pytest

from prompt_tuning import metrics

RECORDED = json.loads((Path(__file__).parent / "fixtures/metrics.json").read_text())
METRICS = {"mean_3class_f1": metrics.mean_class_f1(3)}


def _tuples(values):
    """JSON has no tuples; a group has to be one."""
    return [
        v | {"group": tuple(v["group"])} if isinstance(v, dict) and isinstance(v.get("group"), list) else v
        for v in values
    ]


@pytest.mark.parametrize("name", sorted(set(RECORDED) - {"rouge"}))
def test_a_metric_equals_the_recorded_reference(name):
    case = RECORDED[name]
    assert len(case["predictions"]) >= 200
    scores = METRICS.get(name, getattr(metrics, name, None))(_tuples(case["targets"]), _tuples(case["predictions"]))
    assert scores == pytest.approx(case["scores"], abs=1e-9)


def test_rouge_is_the_mean_of_which_the_reference_draws_a_bootstrap():
    case = RECORDED["rouge"]
    assert metrics.rouge(case["targets"], case["predictions"]) == pytest.approx(case["scores"], abs=0.3)


def test_rouge_of_summaries_goes_by_sentences():
    scores = metrics.rouge(["b c . a"], ["a . b c"])
    assert scores == pytest.approx({"rouge1": 100, "rouge2": 50, "rougeLsum": 100})


def test_bleu_is_of_the_predictions_which_are_punished_where_they_are_shorter():
    pytest.importorskip("sacrebleu", reason="BLEU is sacrebleu's, which is no dependency")
    long, short = "the cat sat on the mat by the door", "the cat sat on the mat"
    assert metrics.bleu([long], [short])["bleu"] == pytest.approx(100 * math.exp(1 - 9 / 6))


def test_a_constant_prediction_has_no_correlation_and_counts_as_zero():
    assert metrics.pearson([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"pearson_corrcoef": 0.0}
    assert metrics.spearman([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"spearman_corrcoef": 0.0}
    assert metrics.matthews([0, 1, 1], [1, 1, 1]) == {"matthews_corrcoef": 0.0}


def test_an_answer_that_is_no_label_is_wrong_in_f1():
    assert metrics.f1([1, 0], [-1, 0]) == {"f1": 0.0}
    assert metrics.f1([1, 0], [1, -1])["f1"] == pytest.approx(200 / 3)


def test_squad_takes_the_best_of_the_answers_and_forgives_articles_case_and_punctuation():
    assert metrics.squad([["New York City", "York"]], ["the york!"]) == {"em": 100.0, "f1": 100.0}


def test_where_squad_has_no_answer_saying_nothing_is_right():
    assert metrics.squad([[], []], ["", "York"])["em"] == 50


SUPERGLUE = {  # Lester et al. 2021, Table 3: the average of five prompts on T5-XXL is 90.5
    "boolq": 91.1, "cb": (99.3 + 99.0) / 2, "copa": 98.8, "multirc": (65.7 + 88.7) / 2, "record": (92.7 + 93.4) / 2,
    "rte": 92.6, "wic": 76.2, "wsc": 95.8,
}  # fmt: skip


def test_the_superglue_average_is_the_papers_and_wants_every_task():
    means = {f"superglue_{task}": mean for task, mean in SUPERGLUE.items()}
    assert metrics.averages(means) == {"superglue": pytest.approx(90.5, abs=0.05)}
    assert metrics.averages({f"{name}_prefixed": mean for name, mean in means.items()}) == metrics.averages(means)
    assert metrics.averages({name: mean for name, mean in means.items() if name != "superglue_wsc"}) == {}


def test_the_glue_average_counts_the_two_halves_of_mnli_once_and_wnli_where_it_is_given():
    means = {f"glue_{task}": 80.0 for task in ("cola", "sst2", "mrpc", "qqp", "stsb", "qnli", "rte")}
    means |= {"glue_mnli_matched": 60.0, "glue_mnli_mismatched": 20.0}
    assert metrics.averages(means) == {"glue": pytest.approx((7 * 80 + 40) / 8)}
    assert metrics.averages(means | {"glue_wnli": 8.0}) == {"glue": pytest.approx((7 * 80 + 40 + 8) / 9)}
    assert metrics.averages({name: mean for name, mean in means.items() if "mismatched" not in name}) == {}
