"""Objectives without labels: what they hide from a text, and how they ask for it."""

import collections

import numpy as np
import pytest

from prompt_tuning import tiny
from prompt_tuning.vocabulary import Vocabulary

pytest.importorskip("tensorflow")

from prompt_tuning.data import open_mixture
from tasks.pretraining import MERGE


def write(folder, lines: list[str]) -> str:
    (folder / "corpus").mkdir()
    (folder / "corpus" / "train.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture
def corpus(tmp_path) -> str:
    return write(tmp_path, ["the quick brown fox jumps over the lazy dog"] * 40 + ["", "x"])


def test_prefix_lm_splits_each_document_in_two(corpus, letters):
    task = open_mixture("text_prefix_lm", letters, {"inputs": 32, "targets": 32}, data_dir=corpus).tasks[0]
    examples = task.load("train")
    document = letters.encode("the quick brown fox jumps over the lazy dog")
    whole = [[*examples.inputs[i][:-1], *examples.targets[i][:-1]] for i in range(2)]
    assert whole == [document[:31], document[31:]]
    assert len({len(examples.inputs[i]) for i in range(0, len(examples), 2)}) > 5  # the place is drawn anew each time


def test_deshuffling_moves_some_tokens_a_few_places(corpus, letters):
    task = open_mixture("text_deshuffling", letters, {"inputs": 32, "targets": 32}, data_dir=corpus).tasks[0]
    examples = task.load("train")
    shuffled, text = examples.inputs[0][:-1].tolist(), examples.targets[0][:-1].tolist()
    assert text == letters.encode("the quick brown fox jumps over the lazy dog")[:31]
    assert sorted(shuffled) == sorted(text)
    out_of_place = [np.mean(examples.inputs[i] != examples.targets[i]) for i in range(len(examples))]
    assert 0.2 < np.mean(out_of_place) < 0.8
    first = [i for i in range(len(examples)) if examples.targets[i][0] == text[0]]
    assert all(text[0] in examples.inputs[i][:5] for i in first)


def test_repair_tells_every_word_that_is_out_of_place_or_gone(tmp_path):
    text = "He went to the house and sat in the chair by the fire and told of the war."
    folder, words = write(tmp_path, [text] * 2 * MERGE), Vocabulary(tiny.FOLDER / "spiece.model")
    task = open_mixture("text_repair", words, {"inputs": 64, "targets": 32}, data_dir=folder).tasks[0]
    examples, document = task.load("train"), words.encode(text)
    merged = -(-MERGE * len(document) // 63)
    intact, swapped, dropped = 0, 0, 0
    for i in range(len(examples)):
        shown, told = examples.inputs[i][:-1].tolist(), examples.targets[i][:-1].tolist()
        start = 63 * (i % merged) % len(document)
        whole = (document * 6)[start : start + 63]
        if len(shown) < 50:
            continue  # the end of what was joined
        gone = collections.Counter(whole) - collections.Counter(shown)
        assert not gone - collections.Counter(told) and not collections.Counter(shown) - collections.Counter(whole)
        assert (shown == whole) == (not told)
        intact, swapped, dropped = intact + (not told), swapped + (bool(told) and not gone), dropped + bool(gone)
    assert 0.2 < intact / len(examples) < 0.5 and swapped > 5 and dropped > 5


def test_span_corruption_can_be_undone(corpus, letters):
    task = open_mixture("text_span_corruption", letters, {"inputs": 64, "targets": 32}, data_dir=corpus).tasks[0]
    examples = task.load("train")
    sentinels = range(letters.size - 100, letters.size)
    fills: dict[int, list[int]] = {}
    for token in examples.targets[0][:-1]:
        if token in sentinels:
            current = fills.setdefault(int(token), [])
        else:
            current.append(int(token))
    restored = [t for token in examples.inputs[0][:-1] for t in fills.get(int(token), [int(token)])]
    document = letters.encode("the quick brown fox jumps over the lazy dog")
    assert restored == (document * 3)[: len(restored)]
    assert examples.inputs.lengths[0] == 64
    missing = sum(map(len, fills.values()))
    assert missing == round(len(restored) * 0.15)
