"""Prompts come and go in a bank of fixed size: each text behind its own, nothing compiled again."""

import contextlib
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import cli, decode, infer, layout, prompt_file
from prompt_tuning.errors import UserError
from prompt_tuning.predict import PromptTuned, Request
from prompt_tuning.prompt_file import Card, Prompt
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model

TEXTS = ["review: a fine film about war", "review: a dull film about love", "review: a weak film"]
LABELS = ("love", "war", "a")  # none so long that its likelihood vanishes beside the others'
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
    mixed = tuned.predict([t for t in TEXTS for _ in range(2)], prompt=["p1", "p2"] * 3)
    alone = [tuned.predict(TEXTS, prompt=name) for name in ("p1", "p2")]
    alone.append(PromptTuned.load(str(home / "base"), prompt(6, 1)).predict(TEXTS))
    for found, expected in ((mixed[::2], alone[0]), (mixed[1::2], alone[1]), (mixed[::2], alone[2])):
        for a, b in zip(found, expected, strict=True):
            assert a.text == b.text and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
            assert a.score == pytest.approx(b.score, abs=1e-4)
    assert alone[0][0].probabilities != pytest.approx(alone[1][0].probabilities, abs=1e-3)
    written = tuned.predict(TEXTS * 2, decode=True, prompt=["p1"] * 3 + ["p2"] * 3)
    apart = [answer for name in ("p1", "p2") for answer in tuned.predict(TEXTS, decode=True, prompt=name)]
    assert [a.text for a in written] == [a.text for a in apart]


def test_each_prompt_of_a_mixed_batch_is_calibrated_by_its_own_prior(tuned):
    nothing = ["review:", "review: a film"]
    mixed = tuned.predict(TEXTS[:1] * 2, prompt=["p1", "p2"], content_free=nothing)
    alone = [tuned.predict(TEXTS[:1], prompt=name, content_free=nothing)[0] for name in ("p1", "p2")]
    for a, b in zip(mixed, alone, strict=True):
        assert a.prior == pytest.approx(b.prior, abs=1e-5)
    assert alone[0].prior != pytest.approx(alone[1].prior, abs=1e-3)


def test_the_score_of_a_calibrated_answer_is_its_likelihood(tuned):
    for text in TEXTS:
        (answer,) = tuned.predict([text], prompt="p1", content_free=["review:"])
        (alone,) = tuned.answer([Request(text, "p1", labels=(answer.text,))])
        assert answer.score == pytest.approx(alone.score, abs=1e-4)


def test_a_prompt_without_labels_writes_as_does_one_that_is_given_none(home, tuned):
    bare = Prompt(prompt(4, 5).vectors)
    for one, labels in ((bare, None), (prompt(4, 5), [])):
        name = tuned.add(one, "free", labels)
        assert tuned.prompts[name].labels == ()
        assert tuned.predict(TEXTS[:1], prompt=name)[0].probabilities == {}
        tuned.remove(name)


def test_a_text_has_the_tokens_that_its_prompt_was_trained_on_or_those_that_a_row_has_room_for(tuned, monkeypatch):
    tuned.add(dataclasses.replace(prompt(6, 5), card=Card(name="p5", labels=LABELS)))
    lengths: list[int] = []
    count = lambda questions: lengths.extend(len(q.inputs) for q in questions)
    monkeypatch.setattr(infer, "rank", lambda *args: count(args[2]) or [None] * len(args[2]))
    tuned.predict(["review: " + "a dull film about love " * 50] * 2, prompt=["p1", "p5"])
    tuned.remove("p5")
    assert lengths == [32, SHAPE.row_length - 6]


def test_an_answer_may_be_as_long_as_those_a_prompt_was_trained_on(home, monkeypatch):
    lengths: list[int] = []
    monkeypatch.setattr(infer, "_decode", lambda *args: lengths.append(args[5]) or 1 / 0)
    for target_length, expected in ((None, 62), (4, 62), (80, 80)):
        one = PromptTuned.load(str(home / "base"), prompt(6, 1, target_length=target_length))
        with contextlib.suppress(ZeroDivisionError):
            one.predict(TEXTS, decode=True)
        assert lengths.pop() == expected and not lengths
    both = PromptTuned.load(str(home / "base"), [prompt(6, 1), prompt(6, 2, target_length=80)])
    assert list(both.prompts) == ["p1", "p2"]


@pytest.fixture
def asking(home, tmp_path) -> list[str]:
    """`prompt-tuning infer` with a prompt."""
    prompt_file.save_safetensors(tmp_path / "p.safetensors", prompt(6, 1, base=str(home / "base")))
    return ["infer", "--prompt", str(tmp_path / "p.safetensors")]


def test_a_line_is_a_text_whatever_characters_are_in_it(asking, tmp_path, capsys):
    texts = ["a film\u2028about love", "a \x0c war \x85 film", "rain"]
    plain, rows = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    plain.write_text("\n".join(texts), "utf-8")
    rows.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8-sig")
    for file in (plain, rows):
        assert cli.main([*asking, "--input", str(file)]) == 0
        assert [json.loads(line)["text"] for line in capsys.readouterr().out.split("\n")[:-1]] == texts
    plain.write_bytes(b"a film\ncaf\xe9\n")
    assert cli.main([*asking, "--input", str(plain)]) == 2
    assert "texts.txt:2: byte 4" in capsys.readouterr().err
    assert cli.main([*asking, "caf\udce9"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["texts.json", "texts.JSONL", "texts.csv", "texts.tsv"])
def test_texts_stand_in_columns_as_those_of_a_task_do(asking, tmp_path, capsys, name):
    rows = [{"n": str(n), "text": text} for n, text in enumerate(TEXTS)]
    mark = "," if name.endswith("csv") else "\t"
    table = "".join(mark.join(row) + "\n" for row in [["n", "text"], *([*r.values()] for r in rows)])
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(lines if "json" in name.lower() else table)
    assert cli.main([*asking, "--input", str(tmp_path / name)]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == TEXTS


def test_what_a_notebook_may_hand_in(home):
    base = str(home / "base")
    tuned = PromptTuned.load(base, prompt(4, 1))
    one = tuned.predict(TEXTS[0])
    assert one == tuned.predict(iter(TEXTS[:1])) == tuned.predict(np.array(TEXTS[:1])) and len(one) == 1
    assert tuned.predict([]) == []
    assert tuned.predict(TEXTS, prompt=(name for name in ["p1"] * 3)) == tuned.predict(TEXTS)
    ranked = lambda labels: tuned.answer([Request(TEXTS[0], "p1", labels=labels)])
    assert ranked(["a", "b"]) == ranked(("a", "b"))
    vectors = prompt(4, 1).vectors
    for mistake, said in (
        (lambda: tuned.predict([3]), "A text to answer is a str; found 3"),
        (lambda: tuned.predict(["\ud800"]), "not UTF-8"),
        (lambda: tuned.predict(TEXTS, prompt=["p1"]), "3 texts and the names of 1 prompts"),
        (lambda: PromptTuned.load(base, prompt(4, 1), "yes"), "labels is 'yes'; it is a list of texts"),
        (lambda: PromptTuned.load(base, prompt(4, 1), ["film", "film"]), "each stands there once"),
        (lambda: PromptTuned.load(base, []), "There is no prompt to load"),
        (lambda: PromptTuned.load(base, prompt(4, 1).vectors), "found a ndarray"),
        (lambda: PromptTuned.load(base, prompt(4, 1), batch_size=0), "batch_size is 0; it is a whole number from 1"),
        (lambda: PromptTuned.open(base, -1), "slots is -1"),
        (lambda: tuned.predict(TEXTS, prompt=3), "prompt is the name of one, or a name for each text; found 3"),
        (lambda: tuned.predict("a", prompt=[None]), "There is no prompt None"),
        (lambda: tuned.predict("a", content_free="b"), "content_free is 'b'; it is a list of texts, .*'yes'\\].\\Z"),
        (lambda: tuned.answer(["a"]), "A request is Request\\(text, prompt\\); found 'a'"),
        (lambda: tuned.answer([Request("a", "p1", labels="ab")]), "labels is 'ab'; it is a list of texts"),
        (lambda: PromptTuned.load(base, prompt_file.Prompt(vectors.tolist())), "are a list of \\[4, 16\\]"),
        (lambda: PromptTuned.load(base, prompt_file.Prompt(vectors[0])), "are a ndarray of \\[16\\]"),
        (lambda: PromptTuned.load(base, prompt_file.Prompt(np.full((2, 16), np.inf))), "not finite"),
    ):
        with pytest.raises(UserError, match=said):
            mistake()


def test_answers_go_where_a_link_leads_and_to_no_folder(asking, tmp_path, capsys, monkeypatch):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    assert cli.main([*asking, "--output", str(link), "a film"]) == 0
    assert link.is_symlink() and json.loads(target.read_text())["text"] == "a film"
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        assert cli.main([*asking, "--output", str(tmp_path / "pipe"), "a film"]) == 0
        assert read.result() == target.read_text() and (tmp_path / "pipe").is_fifo()
    capsys.readouterr()
    assert cli.main([*asking, "--output", "-", "a film"]) == 0
    assert capsys.readouterr().out == target.read_text()
    monkeypatch.setattr(PromptTuned, "load", None)
    assert cli.main([*asking, "--output", str(tmp_path), "a film"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert cli.main([*asking, "--output", str(tmp_path / ("a" * 250)), "a film"]) == 2
    assert f"File name too long ({tmp_path / ('a' * 250)}). Name another" in capsys.readouterr().err
    target.write_text("a film")
    assert cli.main([*asking, "--input", str(link), "--output", str(target)]) == 2
    assert "is the --input too" in capsys.readouterr().err and target.read_text() == "a film"


def test_answers_that_fail_leave_those_that_were_there(asking, tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text("old")
    arguments = ["--base", str(tmp_path / "nowhere"), "--output", str(tmp_path / "answers.jsonl"), "a film"]
    assert cli.main([*asking, *arguments]) == 2
    assert (tmp_path / "answers.jsonl").read_text() == "old" and not list(tmp_path.glob(".*.part"))


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
        tuned.answer([Request("x", "p1", labels=tuple("a fine film" + " and war" * n for n in range(8)))])


def test_a_text_that_is_cut_ends_as_those_trained_on_do(home):
    card = Card(name="p1", labels=LABELS, input_length=8)
    tuned = PromptTuned.load(str(home / "base"), dataclasses.replace(prompt(3, 1), card=card))
    text = "review: a fine film about war and rain"
    inputs, cut = tuned.vocabulary.tokenise([text], 8)
    assert cut == 1
    assert tuned._question(tuned.bank, tuned.now.answerer, Request(text, "p1")).inputs.tolist() == inputs[0].tolist()


def test_what_does_not_fit_is_refused_and_changes_nothing(home, tuned):
    before = tuned.bank
    wide = Prompt(np.ones((2, 8), np.float32), Card(name="wide"))
    other = dataclasses.replace(prompt(2, 8), card=Card(name="other", base_digest="0" * 64))
    odd = dataclasses.replace(prompt(2, 8), card=Card(name="odd", placement="above"))
    foreign = dataclasses.replace(prompt(2, 8), card=Card(name="foreign", labels=("日本",)))
    wordy = prompt(2, 8, target_length=80)
    refused = [(wide, "8 wide"), (other, "other weights"), (prompt(7, 8), "up to 6"), (prompt(2, 1), "loaded already"),
               (odd, "'above'"), (foreign, "cannot spell"), (wordy, "up to 80 tokens")]  # fmt: skip
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


def test_infer_answers_each_line_behind_the_prompt_it_names(home, tmp_path, capsys):
    for seed in (1, 2):
        prompt_file.save_safetensors(tmp_path / f"{seed}.safetensors", prompt(4, seed))
    (tmp_path / "mixed.jsonl").write_text(
        "".join(json.dumps({"text": t, "prompt": f"p{1 + i % 2}"}) + "\n" for i, t in enumerate(TEXTS))
    )
    files = [word for seed in (1, 2) for word in ("--prompt", str(tmp_path / f"{seed}.safetensors"))]
    arguments = [*files, "--base", str(home / "base"), "--input", str(tmp_path / "mixed.jsonl")]
    assert cli.main(["infer", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["p1", "p2", "p1"]
    both = PromptTuned.load(str(home / "base"), [prompt(4, 1), prompt(4, 2)])
    for row, answer in zip(rows, both.predict(TEXTS, prompt=["p1", "p2", "p1"]), strict=True):
        assert row["probabilities"] == answer.probabilities
    (tmp_path / "mixed.jsonl").write_text(json.dumps({"text": "no prompt"}))
    assert cli.main(["infer", *arguments]) == 2
    assert "name the one to use" in capsys.readouterr().err
    prompt_file.save_safetensors(tmp_path / "1 again.safetensors", prompt(4, 1))
    assert cli.main(["infer", *arguments, "--prompt", str(tmp_path / "1 again.safetensors")]) == 2
    assert "2 of these prompts are called 'p1'. Give each a name of its own" in capsys.readouterr().err


def test_what_is_sampled_comes_from_the_seed(home):
    opened = PromptTuned.open(str(home / "base"), 1, 3)
    answerer = infer.Answerer(
        Model(opened.base.config, 1, 3), (Slot(length=3),), ((),), opened.vocabulary, opened.mesh, target_length=8
    )
    params = opened.base.params | {"prompt": {"bank": jnp.asarray(prompt(3, 1).vectors)[None]}}
    asked = [infer.Question(np.array([5, 6, 7, 1], np.int32), 0)] * 8
    draw = lambda seed: [a.text for a in infer.write(answerer, params, asked, decode.sample, seed)]
    assert draw(1) == draw(1) != draw(2)
    assert len(set(draw(1))) > 1, "examples do not share what they draw"


def test_what_is_sampled_for_a_slot_does_not_depend_on_the_others(home):
    opened = PromptTuned.open(str(home / "base"), 2, 3)
    slots = (Slot(length=3), Slot(length=3))
    answerer = infer.Answerer(
        Model(opened.base.config, 2, 3), slots, ((), ()), opened.vocabulary, opened.mesh, target_length=8
    )
    bank = jnp.stack([jnp.asarray(prompt(3, seed).vectors) for seed in (1, 2)])
    params = opened.base.params | {"prompt": {"bank": bank}}
    asked = [infer.Question(np.array([5, 6, n, 1], np.int32), slot) for n in range(7, 12) for slot in (1, 0)]
    drawn = lambda asked: [a.text for q, a in zip(asked, infer.write(answerer, params, asked, decode.sample, 3), strict=True) if q.slot == 0]  # fmt: skip # noqa: E501
    assert drawn(asked) == drawn([question for question in asked if question.slot == 0])


def test_a_written_answer_is_as_long_as_its_own_prompt_was_trained_to_write(home):
    short, long = prompt(3, 1), prompt(3, 2, target_length=90)
    ask = lambda *loaded: PromptTuned.load(str(home / "base"), loaded).predict(TEXTS[0], decode=True, prompt="p1")[0]
    alone, beside = ask(short), ask(short, long)
    assert alone.text == beside.text and alone.score == pytest.approx(beside.score, rel=1e-4)


def test_a_card_may_hold_numpys_numbers(tmp_path):
    card = prompt_file.Card(name="a", seed=np.int64(3), score=np.float32(87.5))
    prompt_file.save_safetensors(tmp_path / "a.safetensors", prompt_file.Prompt(np.ones((2, 4), np.float32), card))
    read = prompt_file.load(tmp_path / "a.safetensors").card
    assert (read.seed, read.score) == (3, 87.5) and type(read.seed) is int


def test_a_prompt_is_named_by_its_card_or_else_its_file(home, tmp_path: Path, tuned):
    prompt_file.save_npy(tmp_path / "mine.npy", prompt(2, 9).vectors)
    assert tuned.add(tmp_path / "mine.npy", labels=LABELS) == "mine"
    assert tuned.prompts["mine"].labels == LABELS
    tuned.remove("mine")
