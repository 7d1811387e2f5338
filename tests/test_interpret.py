"""What a prompt lies near: neighbours, clusters, label words and norms, in a table, a picture and JSON."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import full

from prompt_tuning import cli, interpret, prompt_file, slots
from prompt_tuning.base import load_base
from prompt_tuning.inits import Start, class_labels
from prompt_tuning.prompt_file import Card, Prompt
from prompt_tuning.vocabulary import Vocabulary

LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def table(home) -> np.ndarray:
    return np.asarray(load_base(home / "base").params["token_embedder"]["embedding"])


@pytest.fixture(scope="module")
def vocabulary(home) -> Vocabulary:
    return Vocabulary(home / "base" / "spiece.model")


def test_the_nearest_piece_of_an_embedding_is_itself_whatever_its_length(table, vocabulary):
    ids = [5, 9, 30]
    found = interpret.read(Prompt(table[ids] * np.float32(7)), table, vocabulary)
    assert [p.neighbours[0] for p in found.positions] == [vocabulary.piece(i) for i in ids]
    for position, id in zip(found.positions, ids, strict=True):
        assert position.cosines[0] == pytest.approx(1) and list(position.cosines) == sorted(position.cosines)[::-1]
        assert position.norm == pytest.approx(7 * np.linalg.norm(table[id]), rel=1e-5)
        assert position.norm_before is None
    assert found.distinct == 3


def test_neighbours_are_those_of_every_cosine_computed(table, vocabulary):
    vectors = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    found = interpret.read(Prompt(vectors), table, vocabulary, count=7)
    own = table[: vocabulary.size]
    for vector, position in zip(vectors, found.positions, strict=True):
        cosines = [float(vector @ row / np.linalg.norm(vector) / np.linalg.norm(row)) for row in own]
        order = np.argsort(cosines)[::-1][:7]
        assert list(position.neighbours) == [vocabulary.piece(int(i)) for i in order]
        unit = [own[i] / np.linalg.norm(own[i]) for i in order]
        pairs = [unit[a] @ unit[b] for a in range(7) for b in range(a)]
        assert position.tightness == pytest.approx(np.mean(pairs), abs=1e-5)


def test_a_planted_cluster_is_found_and_random_vectors_form_none(table, vocabulary):
    rng, planted = np.random.default_rng(0), table.copy()
    planted[40:45] = table[39] + rng.normal(size=(5, 16), scale=0.05)
    noise = rng.normal(size=(100, 16))
    prompt = Prompt(np.concatenate([planted[39:40], noise]).astype(np.float32))
    found = interpret.read(prompt, planted, vocabulary)
    assert found.clustered[0] == 0 and found.positions[0].tightness > 0.9
    assert len(found.clustered) <= 8, "some noise lies near the planted cluster, 1 in 100 elsewhere"


def test_label_words_are_found_by_the_label_or_its_long_pieces(table, vocabulary):
    ids = vocabulary.encode("positive")
    assert interpret.label_words("positive", vocabulary) >= {"positive"}
    longest = max(ids, key=lambda i: len(vocabulary.piece(i)))
    word = interpret.word_of(vocabulary.piece(longest))
    assert len(word) >= interpret.SHORTEST_WORD
    found = interpret.read(Prompt(table[[7, longest]], Card(labels=LABELS)), table, vocabulary, count=2)
    assert 1 in found.label_hits["positive"] and word in found.positions[1].label_words


def test_the_prompt_before_training_is_drawn_again(table, vocabulary):
    slot = slots.Slot(length=6, seed=3, init=class_labels)
    start = Start(6, 16, lambda ids: table[ids], vocabulary, LABELS)
    drawn = slots.start_bank([slot], [start])[0]
    card = Card(init="class_labels", seed=3, labels=LABELS)
    np.testing.assert_array_equal(interpret.first_prompt(card, 6, table, vocabulary), drawn)
    for unknown in ({"init": "from_file"}, {"init": ""}, {"seed": None}, {"labels": ()}):
        assert interpret.first_prompt(dataclasses.replace(card, **unknown), 6, table, vocabulary) is None


def test_the_command_shows_a_table_and_writes_a_picture_and_json(home, table, tmp_path, capsys):
    card = Card(name="[/films]", task="[bold]mine", labels=LABELS, base=str(home / "base"), init="class_labels", seed=0)
    trained = np.random.default_rng(1).normal(size=(5, 16), scale=3).astype(np.float32)
    prompt_file.save_safetensors(tmp_path / "p.safetensors", Prompt(trained, card))
    assert cli.main(["interpret", str(tmp_path / "p.safetensors"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "[/films] [bold]mine" in said and "norm before" in said and "positive: near" in said
    found = json.loads((tmp_path / "out" / "interpret.json").read_text())
    assert len(found["positions"]) == 5 and len(found["positions"][0]["neighbours"]) == 5
    before = [p["norm_before"] for p in found["positions"]]
    others = ["--labels", "film", "love", "--out", str(tmp_path / "out")]
    assert cli.main(["interpret", str(tmp_path / "p.safetensors"), *others]) == 0
    found = json.loads((tmp_path / "out" / "interpret.json").read_text())
    assert [p["norm_before"] for p in found["positions"]] == before, "it began as it was trained"
    with full(100):
        assert cli.main(["interpret", str(tmp_path / "p.safetensors"), "--out", str(tmp_path / "out")]) == 2
    assert json.loads((tmp_path / "out" / "interpret.json").read_text()) == found, "the disk had no room for another"
    np.save(tmp_path / "first.npy", trained / 2)
    arguments = ["--before", str(tmp_path / "first.npy"), "--neighbours", "3", "--out", str(tmp_path / "out")]
    assert cli.main(["interpret", str(tmp_path / "p.safetensors"), *arguments]) == 0
    found = json.loads((tmp_path / "out" / "interpret.json").read_text())
    assert [p["norm_before"] * 2 for p in found["positions"]] == pytest.approx([p["norm"] for p in found["positions"]])
    assert [p["norm_before"] for p in found["positions"]] != before
    assert (tmp_path / "out" / "interpret.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_say_what_to_type(home, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.ones((2, 8), np.float32))
    np.save(tmp_path / "fine.npy", np.ones((2, 16), np.float32))
    base = ("--base", str(home / "base"))
    for argv, word in [
        (("wide.npy",), "--base PATH"),
        (("wide.npy", *base), "8 wide"),
        (("fine.npy", *base, "--before", str(tmp_path / "wide.npy")), "began as"),
        (("fine.npy", *base, "--out", str(tmp_path / "fine.npy")), "is a file, and --out takes a folder"),
    ]:
        assert cli.main(["interpret", str(tmp_path / argv[0]), *argv[1:]]) == 2
        assert word in capsys.readouterr().err
