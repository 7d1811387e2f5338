"""A run from a gin configuration: it learns, resumes to the bit, and its files are what a person expects."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import configured, flags
from matplotlib import axes

from prompt_tuning import (
    base,
    cli,
    configure,
    device,
    examples,
    layout,
    optim,
    prompt_file,
    report,
    split,
    task_file,
    train,
)
from prompt_tuning.checkpoint import Best, Checkpointer
from prompt_tuning.errors import UserError
from prompt_tuning.over_prompts import over_prompts
from prompt_tuning.prompt_file import Prompt
from prompt_tuning.run import Run, open_run
from prompt_tuning.slots import Slot


def run(home: Path, model_dir: Path, command: str = "train", **names) -> int:
    return cli.main([command, *flags(home, model_dir, **names)])


def final_prompt(model_dir: Path, step: int, slot: str = "") -> np.ndarray:
    path = model_dir / "numpy_checkpoints" / f"checkpoint_{step}" / slot / "encoder.prompt.prompt.prompt"
    return np.load(path, allow_pickle=False)


def records(model_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_prompts_metrics_configuration_and_small_checkpoints(home, tmp_path, capsys):
    assert run(home, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "trainable  80 parameters" in out and "6/6" in out
    assert final_prompt(tmp_path / "run", 6).shape == (5, 16)
    prompt = prompt_file.load(tmp_path / "run" / "prompts" / "films.safetensors")
    assert prompt.card.labels == ("negative", "positive") and prompt.card.step in (3, 6)
    steps = [r["step"] for r in records(tmp_path / "run")]
    assert steps == sorted(steps) and steps[-1] == 6
    config = (tmp_path / "run" / "config.gin").read_text()
    assert "PROMPT_LENGTH = 5" in config
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    saved = sum(f.stat().st_size for f in (tmp_path / "run" / "checkpoints" / "6").rglob("*") if f.is_file())
    assert saved < 100_000


def test_the_configuration_that_a_run_leaves_scores_it_and_starts_another_like_it(home, tmp_path):
    assert run(home, tmp_path / "run", TRAIN_STEPS=1, EVAL_PERIOD=1) == 0
    config = f"--gin_file={tmp_path / 'run' / 'config.gin'}"
    assert cli.main(["eval", config]) == 0
    assert cli.main(["train", config, f"--gin.MODEL_DIR={tmp_path / 'like'}"]) == 0
    assert (final_prompt(tmp_path / "like", 1) == final_prompt(tmp_path / "run", 1)).all()


def test_a_run_goes_on_under_the_configuration_that_it_left(home, tmp_path, capsys):
    assert run(home, tmp_path / "run", TRAIN_STEPS=1, EVAL_PERIOD=1) == 0
    config = f"--gin_file={tmp_path / 'run' / 'config.gin'}"
    assert cli.main(["train", config, "--gin.TRAIN_STEPS=2"]) == 0
    assert "at step 1 of 2" in capsys.readouterr().out
    assert cli.main(["train", config, "--gin.TRAIN_STEPS=3", "--gin.adafactor.clipping_threshold=2.0"]) == 2
    assert "'clipping_threshold': 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "quick"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", False),
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", True),
        ("vendor_id : AuthenticAMD\nflags : avx2", False),
        (None, False),
    ],
)
def test_which_cpus_multiply_bfloat16_faster(monkeypatch, tmp_path, told, quick):
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    if told:
        device.CPUINFO.write_text(told)
    assert device.multiplies_bfloat16() == quick


@pytest.mark.parametrize("quick", [True, False])
def test_a_cpu_that_multiplies_bfloat16_quickly_says_so_until_it_is_asked_to(
    home, tmp_path, capsys, monkeypatch, quick
):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: quick)
    assert run(home, tmp_path / "a", TRAIN_STEPS=1) == 0
    assert ("quicker  --gin.FROZEN_DTYPE=bfloat16" in capsys.readouterr().out) == quick
    assert run(home, tmp_path / "b", TRAIN_STEPS=1, FROZEN_DTYPE="bfloat16") == 0
    assert "quicker" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat61", "int8"])
def test_a_type_that_weights_cannot_have_is_answered_in_a_line(home, tmp_path, capsys, dtype):
    assert run(home, tmp_path, FROZEN_DTYPE=dtype) != 0
    error = capsys.readouterr().err
    assert f"FROZEN_DTYPE is '{dtype}'; it is float32, bfloat16" in error and "Traceback" not in error


@pytest.mark.parametrize("quick", [True, False])
def test_bfloat16_trains_about_the_same_prompt(home, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: quick)
    factors = jnp.bfloat16 if quick else jnp.float32
    assert device.types("bfloat16") == {"dtype": jnp.float32, "factors": factors}
    settings = {"TRAIN_STEPS": 20, "EVAL_PERIOD": 20, "LOG_PERIOD": 10, "BATCH_SIZE": 8}
    for dtype in ("float32", "bfloat16"):
        assert run(home, tmp_path / dtype, FROZEN_DTYPE=dtype, **settings) == 0
    exact, near = ([r["loss"]["films"] for r in records(tmp_path / d) if "loss" in r] for d in ("float32", "bfloat16"))
    assert near != exact
    np.testing.assert_allclose(near, exact, rtol=0.05)


def test_training_lowers_the_loss(home, tmp_path):
    assert run(home, tmp_path, TRAIN_STEPS=60, EVAL_PERIOD=60, LOG_PERIOD=10, BATCH_SIZE=16) == 0
    losses = [r["loss"]["films"] for r in records(tmp_path) if "loss" in r]
    assert losses[-1] < losses[0] - 0.1


def on_one_device(home: Path, model_dir: Path) -> subprocess.Popen:
    """A run of nine steps as its own process; on one device, since sums over pretended ones come in any order."""
    command = [sys.executable, "-m", "prompt_tuning.train", *flags(home, model_dir, TRAIN_STEPS=9)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"XLA_FLAGS": ""})


def test_a_killed_run_resumes_to_the_bit(home, tmp_path):
    assert on_one_device(home, tmp_path / "whole").wait() == 0
    process = on_one_device(home, tmp_path / "killed")
    saved = tmp_path / "killed" / "checkpoints" / "3" / "commit_success.txt"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert on_one_device(home, tmp_path / "killed").wait() == 0
    np.testing.assert_array_equal(final_prompt(tmp_path / "killed", 9), final_prompt(tmp_path / "whole", 9))
    plain = lambda model_dir: [(r["step"], r.get("loss"), r.get("eval")) for r in records(model_dir)]
    assert plain(tmp_path / "killed") == plain(tmp_path / "whole")


def test_sigterm_saves_and_stops(home, tmp_path):
    stopped: list[float] = []

    class AfterFirstLine:
        def write(self, text: str) -> int:
            if "first step after" in text and not stopped:
                stopped.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)
            return len(text)

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    old, sys.stdout = sys.stdout, AfterFirstLine()
    try:
        assert run(home, tmp_path, TRAIN_STEPS=5000, EVAL_PERIOD=5000) == 0
    finally:
        sys.stdout = old
    step = Checkpointer(tmp_path).latest
    assert step is not None and step <= 2, "the running step, and not one more"
    assert len(stopped) == 1 and time.monotonic() - stopped[0] < 60


def test_three_slots_of_a_grid_equal_three_runs(home, tmp_path):
    grid = {"seed": [0, 1], "length": [5, 3]}
    assert run(home, tmp_path / "bank", GRID=grid) == 0
    for seed, length in ((0, 5), (1, 3)):
        assert run(home, tmp_path / f"{seed}", RANDOM_SEED=seed, PROMPT_LENGTH=length) == 0
        together = final_prompt(tmp_path / "bank", 6, f"films-seed{seed}-length{length}")
        np.testing.assert_allclose(together, final_prompt(tmp_path / f"{seed}", 6), rtol=2e-3, atol=2e-3)


def test_packing_off_gives_the_same_prompt(home, tmp_path):
    assert run(home, tmp_path / "packed", DROPOUT_RATE=0.0) == 0
    assert run(home, tmp_path / "padded", DROPOUT_RATE=0.0, PACKING=False) == 0
    np.testing.assert_allclose(final_prompt(tmp_path / "packed", 6), final_prompt(tmp_path / "padded", 6), atol=2e-3)


def test_a_failing_metric_costs_no_step(home, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as broken:
        broken.setattr(task_file, "_score", lambda *of: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(home, tmp_path)
    assert "step 3 is saved but could not be evaluated" in capsys.readouterr().out
    assert run(home, tmp_path) == 0
    assert "resumes  at step 3 of 6" in capsys.readouterr().out
    assert [r["step"] for r in records(tmp_path) if "eval" in r] == [3, 6]


def test_a_metric_that_is_no_number_is_said_and_is_no_reason_for_a_best_step(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(task_file, "_score", lambda *of: {"odd": math.nan})
    assert run(home, tmp_path) == 0
    out = capsys.readouterr().out
    assert "no number, so no step to be the best" in out and "numpy_checkpoints has them all" in out
    assert not (tmp_path / "prompts").exists() and final_prompt(tmp_path, 6).shape == (5, 16)
    assert [r["eval"]["films"] for r in records(tmp_path) if "eval" in r] == [{"odd": None}] * 2
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_of_many_slots_the_best_are_named_in_the_picture(home, tmp_path, monkeypatch):
    legends = []
    legend = axes.Axes.legend
    monkeypatch.setattr(axes.Axes, "legend", lambda self, *a, **k: legends.append(legend(self, *a, **k)) or legends[-1])
    scores = {f"slot{n:02}": {"accuracy": float(n)} for n in range(12)}
    lines = [{"step": 1, "loss": dict.fromkeys(scores, 1.0)}, {"step": 1, "eval": scores}]
    lines.append({"step": 2, "eval": {name: {"accuracy": None} for name in scores}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.curves(tmp_path) == tmp_path / "curves.png"
    assert [text.get_text() for text in legends[0].get_texts()] == [f"slot{n:02}" for n in range(11, 3, -1)]
    assert legends[0].get_title().get_text() == "best 8 of 12"


def test_early_stopping_stops(home, tmp_path, capsys):
    assert run(home, tmp_path, TRAIN_STEPS=600, EVAL_PERIOD=1, PATIENCE=2, LEARNING_RATE=1e-9) == 0
    assert "stopping early" in capsys.readouterr().out
    assert records(tmp_path)[-1]["step"] < 10


def test_patience_waits_for_the_slot_that_got_better_last():
    best = Best({}, np.zeros(2), np.array([10, 30]))
    left = [train._out_of_patience(Run(patience=2, eval_period=10), best, step) for step in (30, 40, 50)]
    assert left == [False, False, True]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"EVAL_SPLIT": "train"}, "eval_split was validation and is train"),
        ({"EVAL_FEATURE_LENGTHS": None}, {"EVAL_FEATURE_LENGTHS": "%TASK_FEATURE_LENGTHS"}, "eval_lengths was {}"),
        ({"PREDICT": "@write"}, {"PREDICT": "@rank"}, "predict was {'write'"),
        ({"SCHEDULE": "@quick/linear_warmup"}, {"SCHEDULE": "@slow/linear_warmup"}, "slow/linear_warmup"),
        ({"quick/linear_warmup.steps": 1}, {"quick/linear_warmup.steps": 2}, "steps was 1 and is 2"),
    ],
)
def test_a_run_that_would_go_on_as_another_is_refused(home, tmp_path, capsys, before, after, said):
    scoped = {"SCHEDULE": "@quick/linear_warmup", "quick/linear_warmup.steps": 1, "slow/linear_warmup.steps": 9}
    assert run(home, tmp_path, TRAIN_STEPS=3, **scoped | before) == 0
    assert run(home, tmp_path, TRAIN_STEPS=6, **scoped | before | after) == 2
    assert said in capsys.readouterr().err
    assert run(home, tmp_path, TRAIN_STEPS=6, **scoped | before) == 0


def test_a_run_does_not_go_on_with_other_examples_and_does_with_another_log(home, tmp_path, capsys):
    task = tmp_path / "task.toml"
    told = (home / "task.toml").read_text().replace('"train.jsonl"', f'"{home / "train.jsonl"}"')
    task.write_text(told.replace('"dev.jsonl"', f'"{home / "dev.jsonl"}"'))
    assert run(home, tmp_path / "run", TASK_FILE=task, TRAIN_STEPS=3) == 0
    assert run(home, tmp_path / "run", TASK_FILE=task, TRAIN_STEPS=6, LOG_PERIOD=1) == 0
    task.write_text(task.read_text().replace("review:", "a review:"))
    assert run(home, tmp_path / "run", TASK_FILE=task, TRAIN_STEPS=9) == 2
    assert "the training examples are others" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_scores(home, tmp_path, capsys):
    """Whatever the best step was chosen by: held-out examples, the decoder where answers are written, calibration."""
    free = [line for line in (home / "task.toml").read_text().splitlines() if not line.startswith("labels")]
    told = "\n".join(free).replace('"train.jsonl"', f'"{home / "train.jsonl"}"')
    (tmp_path / "dev.jsonl").write_text((home / "dev.jsonl").read_text())
    (tmp_path / "task.toml").write_text(told)
    names = {"TASK_FILE": tmp_path / "task.toml", "PROMPT_INIT": "@random_uniform", "EVAL_PERIOD": 1}
    assert run(home, tmp_path / "run", **names, TRAIN_STEPS=1) == 0
    assert run(home, tmp_path / "run", **names, TRAIN_STEPS=2, DECODER="@sample") == 2
    assert "decoder was greedy and is sample" in capsys.readouterr().err
    (tmp_path / "dev.jsonl").write_text((home / "train.jsonl").read_text())
    assert run(home, tmp_path / "run", **names, TRAIN_STEPS=2) == 2
    assert "the held-out examples are others" in capsys.readouterr().err
    assert run(home, tmp_path / "ranked", TRAIN_STEPS=1, EVAL_PERIOD=1) == 0
    assert run(home, tmp_path / "ranked", TRAIN_STEPS=2, EVAL_PERIOD=1, DECODER="@sample") == 0, "nothing is written"
    assert run(home, tmp_path / "ranked", TRAIN_STEPS=3, EVAL_PERIOD=1, **{"rank.content_free": ["review: "]}) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('metric = "accuracy"', 'metric = "macro_f1"', "metrics: films was ['accuracy'] and is ['macro_f1']"),
        ('["negative", "positive"]', '["positive", "negative"]', "labels: films was ['negative', 'positive']"),
    ],
    ids=["metric", "order of labels"],
)
def test_a_run_does_not_go_on_with_another_task_file(home, tmp_path, capsys, old, new, said):
    told = (home / "task.toml").read_text().replace(' = "train', f' = "{home}/train').replace('"dev', f'"{home}/dev')
    (tmp_path / "task.toml").write_text(told)
    assert run(home, tmp_path / "run", TASK_FILE=tmp_path / "task.toml", TRAIN_STEPS=3) == 0
    (tmp_path / "task.toml").write_text(told.replace(old, new))
    assert run(home, tmp_path / "run", TASK_FILE=tmp_path / "task.toml", TRAIN_STEPS=6) == 2
    assert said in capsys.readouterr().err


def test_a_prompt_of_a_grid_that_is_not_typed_again_is_looked_for_by_its_names(home, tmp_path, capsys):
    assert run(home, tmp_path / "run", GRID={"seed": [0, 1]}) == 0
    assert cli.main(["eval", *flags(home, tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "which holds films-seed0, films-seed1. Type the GRID" in said and "--prompts" in said
    with pytest.raises(UserError, match="2 prompts: films-seed0, films-seed1"):
        prompt_file.find(tmp_path / "run" / "prompts")
    assert prompt_file.find(f"{tmp_path}/run/prompts:films-seed1").name == "films-seed1.safetensors"


def test_a_mixture_goes_on_with_its_rates(home, tmp_path, capsys, monkeypatch):
    for name, file in (("a", "train"), ("b", "dev")):
        lines = f'name = "{name}"\ninputs = "review: {{text}}"\ntarget = "label"\nlabels = ["negative", "positive"]\n'
        (tmp_path / f"{name}.toml").write_text(
            lines + f'train = "{home}/{file}.jsonl"\nvalidation = "{home}/dev.jsonl"'
        )
    names = {"TASK_FILE": None, "MIXTURE_OR_TASK_NAME": f"{tmp_path}/a.toml+{tmp_path}/b.toml", "EVAL_PERIOD": 1}
    assert run(home, tmp_path / "run", **names, TRAIN_STEPS=1) == 0
    real = examples.proportional
    monkeypatch.setattr(
        "prompt_tuning.run.proportional", lambda parts: dataclasses.replace(real(parts), rates=(0.5, 0.5))
    )
    assert run(home, tmp_path / "run", **names, TRAIN_STEPS=2) == 2
    assert "rates: " in (said := capsys.readouterr().err) and "is 0.5" in said


def test_two_tasks_of_one_name_are_no_mixture(home, tmp_path, capsys):
    (tmp_path / "task.toml").write_text((home / "task.toml").read_text().replace(' = "train', f' = "{home}/train'))
    both = f"{tmp_path}/task.toml+{home}/task.toml"
    assert run(home, tmp_path / "run", TASK_FILE=None, MIXTURE_OR_TASK_NAME=both) == 2
    assert "two tasks called 'films'" in capsys.readouterr().err


def test_a_split_that_no_task_of_a_mixture_has_is_named(home, tmp_path, capsys):
    (tmp_path / "other.toml").write_text(
        (home / "task.toml").read_text().replace('"films"', '"other"').replace(' = "train', f' = "{home}/train')
    )
    both = f"{tmp_path}/other.toml+{home}/task.toml"
    assert run(home, tmp_path / "run", TASK_FILE=None, MIXTURE_OR_TASK_NAME=both, EVAL_SPLIT="validaton") == 2
    assert "has no split 'validaton'" in capsys.readouterr().err


def test_a_prompt_is_scored_where_it_stood(home, tmp_path, capsys):
    assert run(home, tmp_path / "run", PROMPT_PLACEMENT="@behind") == 0
    vectors = prompt_file.load(tmp_path / "run").vectors
    prompt_file.save_npy(tmp_path / "bare.npy", vectors)
    behind = lambda *prompts: cli.main(
        ["eval", *prompts, *flags(home, tmp_path / "scored", PROMPT_PLACEMENT="@behind")]
    )
    assert behind("--prompts", str(tmp_path / "run")) == 0 == behind("--prompts", str(tmp_path / "bare.npy"))
    carded, bare = map(json.loads, (tmp_path / "scored" / "eval.jsonl").read_text().splitlines())
    assert [*carded["metrics"].values()] == [*bare["metrics"].values()]
    opened = open_run(
        over_prompts(configured(flags(home, tmp_path, PROMPT_PLACEMENT="@behind")), [("p", Prompt(vectors))])
    )
    assert opened.slots[0].placement.__name__ == layout.behind.__name__
    assert cli.main(["eval", *flags(home, tmp_path / "run")]) == 2
    assert "--gin.PROMPT_PLACEMENT=@behind" in capsys.readouterr().err


def test_a_task_file_is_called_what_it_likes_and_its_prompt_stays_in_the_folder(home, tmp_path):
    for file in ("train.jsonl", "dev.jsonl"):
        (tmp_path / file).write_text((home / file).read_text())
    task, victim = tmp_path / "task.toml", tmp_path / "victim"
    task.write_text((home / "task.toml").read_text().replace('"films"', f'"{victim}"'))
    assert run(home, tmp_path / "run", TASK_FILE=task, TRAIN_STEPS=3) == 0
    assert not victim.with_suffix(".safetensors").exists()
    (made,) = (tmp_path / "run" / "prompts").iterdir()
    assert prompt_file.load(made).card.task == str(victim)
    named = [{"name": "my_prompt_a", "seed": 1}, {"name": "my_prompt_b", "seed": 2}]
    assert run(home, tmp_path / "named", SLOTS=named, TRAIN_STEPS=3) == 0
    assert {file.stem for file in (tmp_path / "named" / "prompts").iterdir()} == {"my_prompt_a", "my_prompt_b"}


def test_slots_of_a_grid_show_their_own_learning_rates(home, tmp_path, capsys):
    assert run(home, tmp_path, GRID={"learning_rate": [0.3, 0.1]}) == 0
    assert records(tmp_path)[0]["learning_rate"] == pytest.approx({"films-lr0.3": 0.3, "films-lr0.1": 0.1})
    assert " 0.1 to 0.3 " in capsys.readouterr().out


def test_a_prompt_from_a_file_is_evaluated_until_a_run_has_trained_it(home, tmp_path, capsys):
    assert run(home, tmp_path / "source") == 0
    from_file = {"PROMPT_INIT": "@from_file", "PROMPT_FILE": tmp_path / "source"}
    for step, trains in (("file", False), ("3", True)):
        assert not trains or run(home, tmp_path / "target", **from_file) == 0
        assert run(home, tmp_path / "target", "eval", **from_file) == 0
        assert json.loads((tmp_path / "target" / "eval.jsonl").read_text().splitlines()[-1])["step"] == [step]


def test_prompts_of_one_name_are_told_apart_however_their_paths_are_written(home, tmp_path, capsys, monkeypatch):
    assert run(home, tmp_path / "one") == run(home, tmp_path / "two") == 0
    monkeypatch.chdir(tmp_path)
    task = ["--gin.TASK_FILE=" + str(home / "task.toml"), "--gin.INITIAL_CHECKPOINT_PATH=" + str(home / "base")]
    assert cli.main(["eval", *task, "--gin.PROMPT_LENGTH=5", "--prompts", "one", str(tmp_path / "two")]) == 0
    out = capsys.readouterr().out
    assert "one/prompts/films.safetensors" in out and "two/prompts/films.safetensors" in out


def test_evaluation_repeats_the_best_score_and_infer_answers(home, tmp_path, capsys):
    assert run(home, tmp_path) == 0
    best = prompt_file.load(tmp_path / "prompts" / "films.safetensors").card.score
    assert run(home, tmp_path, "eval") == 0
    line = json.loads((tmp_path / "eval.jsonl").read_text())
    assert line["metrics"]["films"]["accuracy"] == pytest.approx(best)
    capsys.readouterr()
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "review: a fine film about war"}\n{"text": "review: a dull film about love"}\n')
    prompt = str(tmp_path / "prompts" / "films.safetensors")
    assert cli.main(["infer", "--prompt", prompt, "--input", str(texts)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    for row in rows:
        assert row["prediction"] in row["probabilities"] and row["prompt"] == "films"
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert cli.main(["infer", "--prompt", prompt, "--decode", "review: a fine film"]) == 0
    assert json.loads(capsys.readouterr().out)["probabilities"] == {}


def test_writing_and_ranking_are_both_scored(home, tmp_path):
    assert run(home, tmp_path) == 0
    for predict in ("@rank", "@write"):
        assert run(home, tmp_path, "eval", PREDICT=predict) == 0
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 2


def test_frozen_base_is_untouched_by_a_run(home, tmp_path):
    before = split.digest(base.load_base(home / "base").params)
    assert run(home, tmp_path) == 0
    assert split.digest(base.load_base(home / "base").params) == before


SETTINGS = {  # each with the paper's value (Lester et al. 2021, §3.2), and another
    "LEARNING_RATE": (0.3, 0.7), "DROPOUT_RATE": (0.1, 0.2), "Z_LOSS": (1e-4, 1e-3), "WEIGHT_DECAY": (1e-5, 1e-2),
    "BATCH_SIZE": (32, 7), "PROMPT_LENGTH": (100, 9), "TRAIN_STEPS": (30_000, 8), "STEP_ORIGIN": (0, 5),
}  # fmt: skip


@pytest.mark.parametrize("given", [0, 1], ids=["the paper's", "others"])
def test_a_run_is_the_papers_where_nothing_else_is_set(given):
    expected = {name: values[given] for name, values in SETTINGS.items()}
    configure.parse(bindings=[f"{name} = {value}" for name, value in expected.items()] if given else [])
    run, slot, optimizer = Run(), Slot(), configure.bound(optim.adafactor)
    assert (run.optimizer, run.schedule) == (optim.adafactor, optim.constant_schedule)
    found = {
        "LEARNING_RATE": slot.learning_rate, "DROPOUT_RATE": run.dropout_rate, "Z_LOSS": run.z_loss,
        "WEIGHT_DECAY": optimizer["weight_decay_rate"], "BATCH_SIZE": run.batch_size, "PROMPT_LENGTH": slot.length,
        "TRAIN_STEPS": run.train_steps, "STEP_ORIGIN": optimizer["step_origin"],
    }  # fmt: skip
    assert found == expected


def test_gin_files_are_included_from_the_folders_given_and_later_from_these_no_more(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.gin").write_text("BATCH_SIZE = 7\n")
    (tmp_path / "a.gin").write_text("include 'inside.gin'\n")
    configure.parse([str(tmp_path / "a.gin")], search_paths=[str(tmp_path / "folder")])
    with pytest.raises(UserError, match=r"inside\.gin"):
        configure.parse([str(tmp_path / "a.gin")])


def test_gin_files_compose_in_any_order(tmp_path):
    (tmp_path / "a.gin").write_text("BATCH_SIZE = 7\n")
    files = ["prompts/random_uniform.gin", "models/t5_1_1_small.gin", "runs/sst2_small.gin", str(tmp_path / "a.gin")]
    import gin

    import prompt_tuning.train  # noqa: F401

    configure.parse(files)
    forward = gin.config_str()
    configure.parse(files[::-1])
    assert gin.config_str() == forward
    configure.parse()
