"""Metrics agree with the reference's, on 240 random predictions each (scripts/record_metrics.py)."""

import json
from pathlib import Path

import pytest

from prompt_tuning import metrics
from prompt_tuning.errors import UserError

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


def test_a_constant_prediction_has_no_correlation_and_counts_as_zero():
    assert metrics.pearson([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"pearson_corrcoef": 0.0}
    assert metrics.spearman([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"spearman_corrcoef": 0.0}
    assert metrics.matthews([0, 1, 1], [1, 1, 1]) == {"matthews_corrcoef": 0.0}


def test_an_answer_that_is_no_label_is_wrong_in_f1():
    assert metrics.f1([1, 0], [-1, 0]) == {"f1": 0.0}
    assert metrics.f1([1, 0], [1, -1])["f1"] == pytest.approx(200 / 3)


def test_squad_takes_the_best_of_the_answers_and_forgives_articles_case_and_punctuation():
    assert metrics.squad([["New York City", "York"]], ["the york!"]) == {"em": 100.0, "f1": 100.0}


SUPERGLUE = {  # Lester et al. 2021, Table 3: the average of five prompts on T5-XXL is 90.5
    "superglue_boolq": {"accuracy": 91.1},
    "superglue_cb": {"accuracy": 99.3, "mean_3class_f1": 99.0},
    "superglue_copa": {"accuracy": 98.8},
    "superglue_multirc": {"exact_match": 65.7, "f1": 88.7},
    "superglue_record": {"em": 92.7, "f1": 93.4},
    "superglue_rte": {"accuracy": 92.6},
    "superglue_wic": {"accuracy": 76.2},
    "superglue_wsc": {"accuracy": 95.8},
}


def test_the_superglue_average_is_the_papers():
    assert metrics.superglue_average(SUPERGLUE) == pytest.approx(90.5, abs=0.05)


def test_the_superglue_average_names_what_is_missing():
    with pytest.raises(UserError, match="missing: wic, wsc"):
        metrics.superglue_average({k: v for k, v in SUPERGLUE.items() if not k.endswith(("wic", "wsc"))})


def test_the_glue_average_counts_the_two_halves_of_mnli_once_and_no_wnli():
    scores = {f"glue_{t}": {"m": 80.0} for t in ("cola", "sst2", "mrpc", "qqp", "stsb", "qnli", "rte")}
    scores |= {"glue_mnli_matched": {"accuracy": 60.0}, "glue_mnli_mismatched": {"accuracy": 20.0}}
    assert metrics.glue_average(scores) == pytest.approx((7 * 80 + 40) / 8)
