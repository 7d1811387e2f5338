"""prompt-tuning export | import: a prompt leaves, comes back, and runs where this package is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import cli, export, layout, prompt_file, stablehlo
from prompt_tuning.bank import PLACEMENTS
from prompt_tuning.base import load_base
from prompt_tuning.predict import PromptTuned
from prompt_tuning.prompt_file import Card, Prompt

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_stablehlo.py"
VECTORS = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
LABELS = ("fine", "dull", "war")
TEXTS = ["review: a fine film about war", "review: dull", "review: a weak film about love and rain"]


@pytest.fixture
def source(home, tmp_path) -> Path:
    card = Card(name="films", task="films", labels=("negative", "positive"), base=str(home / "base"), step=3)
    prompt_file.save_safetensors(tmp_path / "films.safetensors", Prompt(VECTORS, card))
    return tmp_path / "films.safetensors"


def complaint(capsys, *argv: str | Path) -> str:
    assert cli.main([str(word) for word in argv]) == 2
    return capsys.readouterr().err


def test_export_takes_the_format_from_the_ending_or_the_flag(source, tmp_path):
    for out, flags in [
        ("p.npy", ()),
        ("q.safetensors", ()),
        ("peft", ("--format", "peft")),
        ("tree", ("--format", "t5x")),
    ]:
        assert cli.main(["export", str(source), "--out", str(tmp_path / out), *flags]) == 0
        np.testing.assert_array_equal(export.load(tmp_path / out).vectors, VECTORS)


def test_a_t5x_tree_holds_the_base_too_where_one_is_named(home, source, tmp_path):
    arguments = ["--format", "t5x", "--base", str(home / "base"), "--out", str(tmp_path / "both")]
    assert cli.main(["export", str(source), *arguments]) == 0
    assert load_base(tmp_path / "both").digest == load_base(home / "base").digest
    np.testing.assert_array_equal(export.load(tmp_path / "both").vectors, VECTORS)


def test_a_run_folder_stands_for_its_only_prompt(source, tmp_path, capsys):
    (tmp_path / "run" / "prompts").mkdir(parents=True)
    prompt_file.save_safetensors(tmp_path / "run" / "prompts" / "a.safetensors", export.load(source))
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "a.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), VECTORS)
    prompt_file.save_safetensors(tmp_path / "run" / "prompts" / "b.safetensors", export.load(source))
    assert "b.safetensors" in complaint(capsys, "export", tmp_path / "run", "--out", tmp_path / "b.npy")


def test_import_writes_a_card_that_infer_needs_no_flags_for(home, tmp_path, capsys):
    np.save(tmp_path / "theirs.npy", VECTORS)
    out = tmp_path / "ours.safetensors"
    told = ["--base", str(home / "base"), "--labels", "negative", "positive", "--task", "films", "--input_length", "32"]
    assert cli.main(["import", str(tmp_path / "theirs.npy"), "--out", str(out), *told]) == 0
    base = load_base(home / "base")
    assert prompt_file.load(out).card == Card(
        name="ours",
        task="films",
        labels=("negative", "positive"),
        placement="front",
        base=base.path,
        base_digest=base.digest,
        input_length=32,
    )
    capsys.readouterr()
    assert cli.main(["infer", "--prompt", str(out), TEXTS[0]]) == 0
    assert json.loads(capsys.readouterr().out)["probabilities"].keys() == {"negative", "positive"}


def test_import_keeps_what_the_source_knows_and_no_flag_says(source, tmp_path):
    assert cli.main(["export", str(source), "--out", str(tmp_path / "peft"), "--format", "peft"]) == 0
    assert cli.main(["import", str(tmp_path / "peft"), "--out", str(tmp_path / "b.safetensors"), "--task", "x"]) == 0
    card = prompt_file.load(tmp_path / "b.safetensors").card
    assert (card.name, card.task, card.labels, card.step) == ("films", "x", ("negative", "positive"), 3)


def test_mistakes_say_what_to_type(home, source, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.ones((2, 8), np.float32))
    other = Prompt(VECTORS, Card(base=str(home / "base"), base_digest="0" * 64, labels=("a",)))
    prompt_file.save_safetensors(tmp_path / "other.safetensors", other)
    new = tmp_path / "new.safetensors"
    for argv, word in [
        (("export", source, "--out", tmp_path / "p"), "--format NAME: npy"),
        (("export", source, "--out", tmp_path / "p", "--format", "stablehl"), "'stablehlo'"),
        (("export", source, "--out", source), "exists already"),
        (("export", tmp_path / "wide.npy", "--out", tmp_path / "p", "--format", "stablehlo"), "--base PATH"),
        (("export", tmp_path / "other.safetensors", "--out", tmp_path / "p", "--format", "stablehlo"), "another base"),
        (("import", tmp_path / "wide.npy", "--out", tmp_path / "p.npy"), "add .safetensors"),
        (("import", tmp_path / "wide.npy", "--out", source), "exists already"),
        (("import", tmp_path / "wide.npy", "--out", new, "--base", home / "base"), "8 wide"),
        (("import", tmp_path / "other.safetensors", "--out", new, "--base", home / "base"), "other weights"),
        (("import", source, "--out", new, "--base", home / "base", "--labels", "日本"), "cannot spell"),
        (("import", tmp_path / "none.npy", "--out", new), "no prompt file"),
    ]:
        assert word in complaint(capsys, *argv)
    assert not new.exists() and not (tmp_path / "p").exists()


def test_a_program_gives_the_same_probabilities_where_this_package_is_not(source, tmp_path):
    arguments = ["--format", "stablehlo", "--out", str(tmp_path / "program"), "--input_length", "32"]
    assert cli.main(["export", str(source), *arguments, "--labels", *LABELS]) == 0
    assert len({path.stat().st_mode for path in (tmp_path / "program").iterdir()}) == 1  # all for whoever reads one
    alone = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__');"
        "assert not {'prompt_tuning', 'flax', 'tensorflow'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", alone, str(SCRIPT), str(tmp_path / "program"), *TEXTS]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, check=True)
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    expected = PromptTuned.load(None, source, LABELS).predict(TEXTS)
    assert [row["text"] for row in rows] == TEXTS
    for row, answer in zip(rows, expected, strict=True):
        assert row["prediction"] == answer.text
        assert row["probabilities"] == pytest.approx(answer.probabilities, rel=1e-4)
        assert row["score"] == pytest.approx(answer.score, abs=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_program_lays_out_its_rows_as_the_host_does(placement):
    texts = [np.array(ids, np.int32) for ids in ([5, 1], [7, 8, 9, 1], [1], [])]
    items = [layout.Item(ids, [np.array([3, 1], np.int32)], 0, 0, 3, PLACEMENTS[placement]) for ids in texts]
    expected = layout.pack(items, layout.Shape(8, 2, (4,), per_row=1), 3)
    order = [int(np.flatnonzero((expected.encoder_segments == n + 1).any(1))[0]) for n in range(len(texts))]
    tokens = np.zeros((4, 5), np.int32)
    for row, ids in zip(tokens, texts, strict=True):
        row[: len(ids)] = ids
    rows = stablehlo.rows(jnp.asarray(tokens), 3, placement, expected)
    there = expected.encoder_segments[order] > 0
    np.testing.assert_array_equal(rows.encoder_segments > 0, there)
    for name in ("encoder_tokens", "prompt_rows", "encoder_positions"):
        np.testing.assert_array_equal(
            np.where(there, getattr(rows, name), 0), np.where(there, getattr(expected, name)[order], 0)
        )
