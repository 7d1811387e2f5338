"""A prompt against training the whole model, on a task that comes along; in short."""

import dataclasses
import re
import sys

import numpy as np
import pytest
from conftest import TINY, Signalling, random_params

from prompt_tuning import base, cli, configure, quickstart, tiny
from prompt_tuning.run import Run, open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random base over the shipped vocabulary."""
    folder = tmp_path_factory.mktemp("quick") / "base"
    base.save_t5x(random_params(dataclasses.replace(TINY, vocab_size=8128)), folder, 0, np.float32)
    (folder / "spiece.model").write_bytes(tiny.VOCABULARY.read_bytes())
    return folder


def short(monkeypatch):
    """Runs of a few steps instead of the recipes' hundreds."""
    whole = quickstart._configured
    cut = lambda *told: dataclasses.replace(whole(*told), train_steps=4, eval_period=2, eval_batch_size=250)
    monkeypatch.setattr(quickstart, "_configured", cut)


def test_quickstart_compares_four_ways_and_says_what_it_wrote(folder, tmp_path, monkeypatch, capsys):
    short(monkeypatch)
    out = tmp_path / "q"
    assert cli.main(["quickstart", "--base", str(folder), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    for row in ("majority class", "frozen model", "frozen model + prompt", "model tuning"):
        assert row in told
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    (prompt,) = (out / "prompt" / "prompts").glob("*.safetensors")
    assert str(prompt) in told and prompt.stat().st_size < 20_000
    assert cli.main(["infer", "--prompt", str(prompt), "sentence: Where have you been so long"]) == 0
    assert '"prediction"' in capsys.readouterr().out


@pytest.mark.parametrize("words", [" 2/4 ", "(100.0000%)"], ids=["prompt", "model"])
def test_a_quickstart_that_is_stopped_goes_on_when_it_is_typed_again(folder, tmp_path, monkeypatch, words):
    short(monkeypatch)
    command = ["quickstart", "--base", str(folder), "--out", str(tmp_path)]
    out = Signalling(words)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(command) == 0
    assert "stopped at step" in out.text and "majority class" not in out.text
    assert ("2/2" in out.text) == ("100" in words)
    assert cli.main(command) == 0
    assert "majority class" in out.text and "goes on" not in out.text.split("1/2")[-1]


def test_a_task_that_does_not_come_along_is_named(capsys):
    assert cli.main(["quickstart", "--task", "demo_acceptabilty"]) == 2
    assert "'demo_acceptability'" in capsys.readouterr().err


def test_the_majority_class_of_a_balanced_task_is_half(folder, tmp_path):
    names = {"MODEL_DIR": str(tmp_path), "INITIAL_CHECKPOINT_PATH": str(folder)}
    configure.parse([quickstart.PROMPT], [f"{name} = {value!r}" for name, value in names.items()])
    assert quickstart.majority_class(open_run(Run())) == 50.0


@pytest.mark.slow
def test_the_quickstart_as_it_is_typed_shows_a_prompt_that_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quickstart"]) == 0
    rows = dict(
        re.findall(
            r"^ *(majority class|frozen model(?: \+ prompt)?|model tuning) +([\d.]+) %", capsys.readouterr().out, re.M
        )
    )
    majority, prompt, model = (
        float(rows[name]) for name in ("majority class", "frozen model + prompt", "model tuning")
    )
    assert prompt - majority > (model - majority) / 2 > 10
