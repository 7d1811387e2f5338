"""The official files that stand beside the project: counts, majority classes, first examples (facts 1.12)."""

import collections
from pathlib import Path

import pytest

from prompt_tuning.data import open_mixture
from prompt_tuning.vocabulary import Vocabulary

SHARED = Path(__file__).parents[1].parent / "shared"
pytestmark = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="the official files stand beside the project only where it is developed"
)
# task, split, examples, majority answer, its percentage, the beginning of the first example
REAL = [
    ("superglue_boolq", "validation", 3270, "True", 62.2, "passage: Ethanol fuel -- All biomass goes through"),
    ("superglue_cb", "train", 250, "contradiction", 47.6, "hypothesis: the language was peeled down premise: It was"),
    ("superglue_cb", "validation", 56, "contradiction", 50.0, "hypothesis: Valence was helping premise: Valence the"),
    ("superglue_copa", "train", 400, "choice2", 51.2, "choice1: The sun was rising. choice2: The grass was cut."),
    ("superglue_copa", "validation", 100, "choice1", 55.0, "choice1: The toilet filled with water. choice2: Water"),
    ("superglue_multirc", "train", 27243, "False", 55.9, "question: What did the high-level effort to persuade"),
    ("superglue_multirc", "validation", 4848, "False", 57.2, "question: Would the mass of a baseball affect how"),
    ("superglue_record", "train", 44, None, None, "query: Speaking after the game, Mourinho said: 'The important"),
    ("superglue_record", "validation", 46, None, None, "query: They will sew our lips, but we will chant, 'Long live"),
    ("superglue_rte", "train", 2490, "entailment", 50.2, "hypothesis: Weapons of Mass Destruction Found in Iraq."),
    ("superglue_rte", "validation", 277, "entailment", 52.7, "hypothesis: Christopher Reeve had an accident. premise"),
    ("superglue_wic", "train", 5428, "False", 50.0, "sentence1: Do you want to come over to my place later?"),
    ("superglue_wic", "validation", 638, "False", 50.0, "sentence1: An emerging professional class. sentence2: Apo"),
    ("superglue_wsc", "train", 259, None, None, "The pony behaved well, sir, and showed no vice; but at last he"),
    ("superglue_wsc", "validation", 104, None, None, "Bernard , who had not told the government official that he"),
    ("glue_cola", "train", 8551, "acceptable", 70.4, "sentence: Our friends won't buy this analysis, let alone the"),
    ("glue_cola", "validation", 1043, "acceptable", 69.1, "sentence: The sailors rode the breeze clear of the rock"),
    ("glue_sst2", "train", 67349, "positive", 55.8, "sentence: hide new secretions from the parental units "),
    ("glue_sst2", "validation", 872, "positive", 50.9, "sentence: it 's a charming and often affecting journey . "),
    ("glue_mrpc", "train", 3667, "equivalent", 67.4, "sentence1: Amrozi accused his brother , whom he called"),
    ("glue_mrpc", "validation", 408, "equivalent", 68.4, "sentence1: He said the foodservice pie business doesn 't"),
    ("glue_stsb", "train", 5749, "0.0", 6.4, "sentence1: A plane is taking off. sentence2: An air plane is"),
    ("glue_stsb", "validation", 1500, "0.0", 9.4, "sentence1: A man with a hard hat is dancing. sentence2: A ma"),
]  # MRPC's training file has one row less than the 3,668 of the paper


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(SHARED / "models/flan_t5_small/spiece.model")


@pytest.mark.parametrize(
    ("name", "split", "count", "answer", "percent", "first"), REAL, ids=[f"{r[0]}-{r[1]}" for r in REAL]
)
def test_an_official_file_loads_whole(name, split, count, answer, percent, first, vocabulary):
    task = open_mixture(name, vocabulary, data_dir=str(SHARED / "data")).tasks[0]
    examples = task.load(split)
    assert len(examples) == len(examples.inputs) == len(examples.targets) == count
    assert examples.texts[0]["inputs_pretokenized"].startswith(first)
    truth = [t["targets_pretokenized"] for t in examples.texts]
    if answer is not None:
        common, times = collections.Counter(truth).most_common(1)[0]
        assert common == answer
        assert 100 * times / count == pytest.approx(percent, abs=0.06)
    scores = task.score(examples, truth)
    assert len(scores) >= 1
    if name != "superglue_wsc":  # where the referent on trial may be the wrong one
        assert all(value == pytest.approx(100) for value in scores.values())


def test_wsc_says_false_of_most_referents_on_trial(vocabulary):
    task = open_mixture("superglue_wsc", vocabulary, data_dir=str(SHARED / "data")).tasks[0]
    examples = task.load("validation")
    assert task.score(examples, ["nobody at all"] * len(examples))["accuracy"] == pytest.approx(63.5, abs=0.05)


def test_long_paragraphs_are_counted_as_cut(vocabulary):
    task = open_mixture("superglue_multirc", vocabulary, data_dir=str(SHARED / "data")).tasks[0]
    assert task.load("validation").truncated == 666
