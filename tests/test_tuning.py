"""The whole model is trained by the same loop: on a task, or on text without labels."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import configured, flags, full, reviews

from prompt_tuning import base, batches, cli, prompt_file, split, task_file, tuning
from prompt_tuning.examples import Examples, Ragged
from prompt_tuning.run import Frozen, open_run

SIZES = {
    "vocab_size": 192, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24, "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}  # fmt: skip


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of plain text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus").mkdir()
    for name, count, seed in (("train", 400, 0), ("validation", 40, 1)):
        lines = ["; ".join(row["text"] for row in reviews(6, 100 * seed + i)) for i in range(count)]
        (folder / "corpus" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def pretraining(home, text, model_dir, **names) -> list[str]:
    settings = {
        "TUNING": "@Pretraining()", "MIXTURE_OR_TASK_NAME": "text_span_corruption", "TASK_FILE": None,
        "DATA_DIR": text, "INITIAL_CHECKPOINT_PATH": None, "VOCABULARY_FILE": home / "base" / "spiece.model",
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 12}, "LEARNING_RATE": 0.02, "WEIGHT_DECAY": 0.0,
        "DROPOUT_RATE": 0.0, "adafactor.multiply_by_parameter_scale": True, "BATCH_SIZE": 8,
        "Pretraining.eval_examples": 16,
    }  # fmt: skip
    sizes = {f"T5Config.{name}": size for name, size in SIZES.items()}
    return flags(home, model_dir, **(settings | sizes | names))


def test_model_tuning_learns_a_task_and_leaves_a_base_that_can_be_opened(home, tmp_path):
    settings = flags(
        home, tmp_path, TUNING="@ModelTuning()", LEARNING_RATE=0.02, TRAIN_STEPS=40, EVAL_PERIOD=20, BATCH_SIZE=16,
        **{"adafactor.multiply_by_parameter_scale": True},
    )  # fmt: skip
    assert cli.main(["train", *settings]) == 0
    losses = [r["loss"]["films"] for r in records(tmp_path) if "loss" in r]
    assert losses[-1] < losses[0] - 0.3
    tuned, before = base.load_base(tmp_path / "base"), base.load_base(home / "base")
    assert tuned.vocabulary is not None and tuned.step in (20, 40)
    assert split.count(tuned.params) == split.count(before.params) and tuned.digest != before.digest
    best = max(r["eval"]["films"]["accuracy"] for r in records(tmp_path) if "eval" in r)
    assert cli.main(["eval", *settings]) == 0
    assert json.loads((tmp_path / "eval.jsonl").read_text())["metrics"]["films"]["accuracy"] == pytest.approx(best)


def test_a_vocabulary_that_the_disk_has_no_room_for_leaves_the_one_beside_earlier_models(home, tmp_path):
    (tmp_path / "base").mkdir()
    beside = tmp_path / "base" / "spiece.model"
    beside.write_bytes(b"as it was")
    vocabulary = SimpleNamespace(path=home / "base" / "spiece.model")
    opened = SimpleNamespace(run=SimpleNamespace(folder=tmp_path), vocabulary=vocabulary)
    with full(100), pytest.raises(OSError, match="File too large"):
        tuning.save_model(opened, {}, 3)
    assert beside.read_bytes() == b"as it was"


def test_a_model_is_pretrained_on_text_and_adapted_further(home, text, tmp_path):
    assert cli.main(["train", *pretraining(home, text, tmp_path / "a", TRAIN_STEPS=40, EVAL_PERIOD=20)]) == 0
    losses = [r["eval"]["text_span_corruption"]["validation_loss"] for r in records(tmp_path / "a") if "eval" in r]
    assert losses[-1] < losses[0] < 6
    adapt = {"MIXTURE_OR_TASK_NAME": "text_prefix_lm", "INITIAL_CHECKPOINT_PATH": tmp_path / "a" / "base"}
    adapt |= {"TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 32}}
    assert cli.main(["train", *pretraining(home, text, tmp_path / "b", TRAIN_STEPS=10, EVAL_PERIOD=5, **adapt)]) == 0
    assert base.load_base(tmp_path / "b" / "base").step == 50


def test_prompts_learn_text_side_by_side_as_each_alone(home, text, tmp_path):
    on_text = {
        "TUNING": "@PromptPretraining()", "MIXTURE_OR_TASK_NAME": "text_prefix_lm", "TASK_FILE": None, "DATA_DIR": text,
        "PROMPT_INIT": "@sampled_vocabulary", "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 32}, "BATCH_SIZE": 8,
        "PromptPretraining.eval_examples": 16, "DROPOUT_RATE": 0.0,
    }  # fmt: skip
    given = lambda folder, **more: flags(home, tmp_path / folder, **on_text, **more)
    assert cli.main(["train", *given("both", GRID={"seed": [0, 1]}, TRAIN_STEPS=20, EVAL_PERIOD=10)]) == 0
    assert cli.main(["train", *given("alone", RANDOM_SEED=1, TRAIN_STEPS=10, EVAL_PERIOD=10)]) == 0
    assert cli.main(["train", *given("alone", RANDOM_SEED=1, TRAIN_STEPS=20, EVAL_PERIOD=10)]) == 0  # goes on
    step = lambda *folders: np.load(tmp_path.joinpath(*folders, "encoder.prompt.prompt.prompt"))
    beside = step("both", "numpy_checkpoints", "checkpoint_20", "text_prefix_lm-seed1")
    np.testing.assert_allclose(step("alone", "numpy_checkpoints", "checkpoint_20"), beside, atol=2e-3)
    losses = [r["eval"]["text_prefix_lm-seed0"]["validation_loss"] for r in records(tmp_path / "both") if "eval" in r]
    assert losses[1] < losses[0]
    card = prompt_file.load(tmp_path / "both" / "prompts" / "text_prefix_lm-seed0.safetensors").card
    assert card.score == pytest.approx(-losses[1]) and card.labels == () and "loss" in card.metric


def test_a_resumed_stream_passes_over_what_was_read_once(home, text, tmp_path):
    feed = batches.StreamedData(open_run(configured(pretraining(home, text, tmp_path))))
    opened: list[int] = []
    real = feed.tasks[0][0].stream
    read_on = lambda split, seed, start=0: opened.append(start) or real(split, seed, start)
    feed.tasks = [[SimpleNamespace(stream=read_on)]]
    shape = feed.plan()
    first = feed.batch(40, shape)  # what the ledger tells of
    with contextlib.closing(batches.prefetched(lambda step: feed.batch(step, shape), 40, 43)) as read:
        found = [batch for _, batch, _ in read]
    np.testing.assert_array_equal(found[0].encoder_tokens, first.encoder_tokens)
    assert len(found) == 3 and opened == [0, 40 * 8]


def test_the_model_of_an_earlier_run_is_not_taken_for_this_ones(home, tmp_path, capsys):
    settings = flags(home, tmp_path, TUNING="@ModelTuning()", TRAIN_STEPS=1, EVAL_PERIOD=1)
    assert cli.main(["train", *settings]) == 0 == cli.main(["train", *settings])
    shutil.rmtree(tmp_path / "checkpoints")
    assert cli.main(["train", *settings]) == 2
    assert "base holds the model of an earlier run" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "base")
    assert cli.main(["train", *settings]) == 0


@pytest.mark.parametrize("longest", [12, 20, None])
def test_held_out_texts_are_cut_where_they_are_told(home, tmp_path, longest):
    data = json.dumps({"text": "good " * 30, "label": "positive"})
    (tmp_path / "task.toml").write_text((home / "task.toml").read_text())
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(data)
    lengths = {} if longest == 12 else {"EVAL_FEATURE_LENGTHS": longest and {"inputs": longest, "targets": 8}}
    lengths |= {"TASK_FEATURE_LENGTHS": {"inputs": 12, "targets": 8}, "TASK_FILE": tmp_path / "task.toml"}
    opened = open_run(configured(flags(home, tmp_path, **lengths)))
    ((task, examples, _),) = opened.held_out()[0]
    whole = len(opened.vocabulary.encode(examples.texts[0]["inputs_pretokenized"])) + 1
    assert whole > 20 and len(examples.inputs[0]) == (longest or whole)
    assert len(opened.mixtures[0].tasks[0].load("train").inputs[0]) == 12
    assert (task is opened.mixtures[0].tasks[0]) == (longest == 12)  # nothing is read twice for nothing


def test_tasks_that_are_evaluated_together_are_not_read_again_for_their_rates(home, tmp_path, monkeypatch):
    for name in ("a", "b"):
        told = (home / "task.toml").read_text().replace('"films"', f'"{name}"')
        (tmp_path / f"{name}.toml").write_text(
            told.replace('= "train', f'= "{home}/train').replace('"dev', f'"{home}/dev')
        )
    given = flags(home, tmp_path, TASK_FILE=None, MIXTURE_OR_TASK_NAME=f"{tmp_path}/a.toml+{tmp_path}/b.toml",
                  EVAL_FEATURE_LENGTHS=None)  # fmt: skip
    opened = open_run(configured(given))
    read: list[str] = []
    real = task_file.FileTask.load
    monkeypatch.setattr(task_file.FileTask, "load", lambda task, split: read.append(split) or real(task, split))
    assert [held.task.name for held in opened.held_out()[0]] == ["a", "b"] and set(read) == {"validation"}


@pytest.mark.parametrize("split, said", [("train", "nothing to train on"), ("validation", "holds no text")])
def test_an_empty_corpus_is_named_before_anything_is_trained(home, text, tmp_path, capsys, split, said):
    (tmp_path / "corpus").mkdir()
    for name in ("train", "validation"):
        lines = "" if name == split else (text / "corpus" / f"{name}.txt").read_text()
        (tmp_path / "corpus" / f"{name}.txt").write_text(lines)
    assert cli.main(["train", *pretraining(home, text, tmp_path / "run", DATA_DIR=tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_the_first_examples_of_a_text_are_evaluated_on_alone(home, text, tmp_path):
    opened = open_run(configured(pretraining(home, text, tmp_path, EVAL_SPLIT="validation[:5]")))
    assert len(batches.StreamedData(opened, "validation[:5]").first(16)) == 5


def test_a_loss_is_shown_as_one_and_a_negative_metric_as_it_is():
    assert tuning.Pretraining().shown(-5.25) == 5.25 and tuning.PromptTuning().shown(-2.0) == -2.0


def test_a_killed_pretraining_resumes_to_the_bit(home, text, tmp_path):
    def start(folder):
        mixture = {"MIXTURE_OR_TASK_NAME": "text_span_corruption_and_repair", "TRAIN_STEPS": 9}
        command = [sys.executable, "-m", "prompt_tuning.train", *pretraining(home, text, folder, **mixture)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"XLA_FLAGS": ""})

    assert start(tmp_path / "whole").wait() == 0
    process, saved = start(tmp_path / "killed"), tmp_path / "killed" / "checkpoints" / "3" / "commit_success.txt"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(tmp_path / "killed").wait() == 0
    whole, killed = (base.load_base(tmp_path / name / "base") for name in ("whole", "killed"))
    assert whole.digest == killed.digest


def test_several_whole_models_at_once_are_refused(home, tmp_path, capsys):
    assert cli.main(["train", *flags(home, tmp_path, TUNING="@ModelTuning()", GRID={"seed": [0, 1]})]) == 2
    assert "one of its own" in capsys.readouterr().err


def test_a_task_file_is_no_stream_of_text(home, tmp_path, capsys):
    assert cli.main(["train", *flags(home, tmp_path, TUNING="@Pretraining()")]) == 2
    assert "text_span_corruption" in capsys.readouterr().err


def test_a_model_sharded_over_devices_pretrains_as_on_one(home, text, tmp_path):
    for parallel in (1, 4):
        names = {"MODEL_PARALLEL": parallel, "TRAIN_STEPS": 4, "EVAL_PERIOD": 4, "T5Config.num_heads": 4}
        assert cli.main(["train", *pretraining(home, text, tmp_path / str(parallel), **names)]) == 0
    one, four = (records(tmp_path / str(n))[-1]["eval"]["text_span_corruption"]["validation_loss"] for n in (1, 4))
    np.testing.assert_allclose(one, four, rtol=1e-4)


def test_an_error_in_the_thread_that_lays_out_batches_is_the_trainers(capsys):
    def make(n: int) -> int:
        return 1 // (2 - n)

    found: list = []

    def take() -> None:
        try:
            found.extend(batch for _, batch, _ in batches.prefetched(make, 0, 9))
        except ZeroDivisionError as error:
            found.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and isinstance(found[-1], ZeroDivisionError)


def test_the_thread_that_lays_out_batches_ends_with_a_run_that_stops_early():
    with contextlib.closing(batches.prefetched(lambda n: n, 0, 1000)) as read:
        assert next(read)[0] == 0
    assert "layout" not in {thread.name for thread in threading.enumerate()}


def test_the_digest_of_training_data_tells_its_inputs_targets_and_their_bounds_apart():
    def digest(inputs: list[list[int]], targets: list[list[int]]) -> str:
        feed = object.__new__(batches.TrainingData)
        feed.sets = [[Examples("a", "train", Ragged.of(inputs), Ragged.of(targets), [{}] * len(inputs))]]
        return feed.digest

    inputs, targets = [[5, 6], [7]], [[8], [9]]
    others = [([[5], [6, 7]], targets), ([[5, 6], [4]], targets), (inputs, [[8], [4]]), (inputs[::-1], targets)]
    assert digest(inputs, targets) == digest(inputs, targets)
    assert len({digest(inputs, targets), *(digest(*other) for other in others)}) == 5


def test_weights_that_are_trained_are_float32_and_frozen_ones_as_asked(home):
    frozen = Frozen(str(home / "base"), dtype="bfloat16")
    for trained, dtype in ((True, "float32"), (False, "bfloat16")):
        base, _, _ = frozen.open(trained)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(base.params)} == {dtype}
