"""Prompts come and go in a bank of fixed size: each text behind its own, nothing compiled again."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from prompt_tuning import layout, prompt_file
from prompt_tuning.errors import UserError
from prompt_tuning.predict import PromptTuned, Request
from prompt_tuning.prompt_file import Card, Prompt

TEXTS = ["review: a fine film about war", "review: a dull film about love", "review: a weak film"]
LABELS = ("negative", "positive")
SHAPE = layout.Shape(64, 32, (8, 16))


def prompt(length: int, seed: int, **card) -> Prompt:
    vectors = np.random.default_rng(seed).normal(size=(length, 16)).astype(np.float32)
    return Prompt(vectors, Card(name=f"p{seed}", labels=LABELS, input_length=32, **card))


@pytest.fixture(scope="module")
def tuned(home) -> PromptTuned:
    """Four slots of up to six vectors; two are taken."""
    opened = PromptTuned.open(str(home / "base"), 4, 6, batch_size=16, shape=SHAPE)
    opened.add(prompt(6, 1))
    opened.add(prompt(3, 2, placement="behind"))
    return opened


@pytest.fixture
def compiled() -> list[str]:
    """Grows by one with every program that XLA compiles."""
    events: list[str] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


def test_a_mixed_batch_answers_as_each_prompt_alone(home, tuned):
    alone = [
        PromptTuned.load(str(home / "base"), one).predict(TEXTS)
        for one in (prompt(6, 1), prompt(3, 2, placement="behind"))
    ]
    mixed = tuned.predict([t for t in TEXTS for _ in range(2)], prompt=["p1", "p2"] * 3)
    for i, answer in enumerate(mixed):
        expected = alone[i % 2][i // 2]
        assert answer.text == expected.text
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    written = tuned.predict(TEXTS * 2, decode=True, prompt=["p1"] * 3 + ["p2"] * 3)
    apart = [PromptTuned.load(str(home / "base"), prompt(6, 1)).predict(TEXTS, decode=True)]
    assert [a.text for a in written[:3]] == [a.text for a in apart[0]]


def test_prompts_are_added_and_removed_without_compiling(tuned, compiled):
    tuned.compile_ahead()
    assert compiled, "the count counts"
    compiled.clear()
    before = tuned.predict(TEXTS, prompt="p1")
    tuned.add(prompt(5, 3))
    tuned.add(prompt(2, 4))
    requests = [Request(f"{TEXTS[i % 3]}{' and war' * (i % 4)}", f"p{1 + i % 4}", decode=i % 5 == 0) for i in range(90)]
    assert len(tuned.answer(requests)) == 90
    assert tuned.answer([Request(TEXTS[0], "p4", labels=("a", "war", "love"))])[0].probabilities.keys() == {
        "a",
        "war",
        "love",
    }
    tuned.remove("p3")
    tuned.remove("p4")
    assert [a.probabilities for a in tuned.predict(TEXTS, prompt="p1")] == [a.probabilities for a in before]
    assert compiled == []


def test_a_freed_slot_answers_as_if_nothing_had_stood_there(home, tuned):
    tuned.add(prompt(6, 5))
    tuned.remove("p5")
    tuned.add(prompt(2, 6))
    found = tuned.predict(TEXTS, prompt="p6")
    tuned.remove("p6")
    expected = PromptTuned.load(str(home / "base"), prompt(2, 6)).predict(TEXTS)
    for a, b in zip(found, expected, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_a_bank_keeps_the_prompts_it_began_with(tuned):
    before = tuned.bank
    vectors = before.vectors.copy()
    tuned.add(prompt(4, 7))
    tuned.remove("p7")
    np.testing.assert_array_equal(before.vectors, vectors)
    np.testing.assert_array_equal(tuned.bank.vectors, vectors)
    assert tuned.bank.entries == before.entries


def test_a_long_text_is_cut_to_the_row_and_a_long_answer_list_refused(tuned):
    assert len(tuned.predict(["review: " + "a dull film about love " * 50], prompt="p1")) == 1
    with pytest.raises(UserError, match="room for 32"):
        tuned.answer([Request("x", "p1", labels=("a fine film about love and war",) * 8)])


def test_what_does_not_fit_is_refused_and_changes_nothing(home, tuned):
    before = tuned.bank
    wide = Prompt(np.ones((2, 8), np.float32), Card(name="wide"))
    other = dataclasses.replace(prompt(2, 8), card=Card(name="other", base_digest="0" * 64))
    odd = dataclasses.replace(prompt(2, 8), card=Card(name="odd", placement="above"))
    foreign = dataclasses.replace(prompt(2, 8), card=Card(name="foreign", labels=("日本",)))
    refused = [(wide, "8 wide"), (other, "other weights"), (prompt(7, 8), "up to 6"), (prompt(2, 1), "loaded already"),
               (odd, "'above'"), (foreign, "cannot spell")]  # fmt: skip
    for one, word in refused:
        with pytest.raises(UserError, match=word):
            tuned.add(one)
    assert tuned.bank is before
    with pytest.raises(UserError, match="Did you mean 'p1'"):
        tuned.predict(TEXTS, prompt="p11")
    with pytest.raises(UserError, match="name the one"):
        tuned.predict(TEXTS)
    full = PromptTuned.load(str(home / "base"), [prompt(2, 1), prompt(2, 2)])
    with pytest.raises(UserError, match="Remove a prompt"):
        full.add(prompt(2, 3))


def test_a_prompt_is_named_by_its_card_or_else_its_file(home, tmp_path: Path, tuned):
    prompt_file.save_npy(tmp_path / "mine.npy", prompt(2, 9).vectors)
    assert tuned.add(tmp_path / "mine.npy", labels=LABELS) == "mine"
    assert tuned.prompts["mine"].labels == LABELS
    tuned.remove("mine")
