"""Prompt tuning in Python does what the command line does."""

import json
import re
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import optax
import pytest

import prompt_tuning
from prompt_tuning import infer, notebook, prompt_file
from prompt_tuning.errors import UserError
from prompt_tuning.inits import random_uniform
from prompt_tuning.notebook import score, tune
from prompt_tuning.predict import PromptTuned

ROWS = [{"text": f"win {i} now", "label": 1} if i % 2 else {"text": f"see you at {i}", "label": 0} for i in range(24)]
SMS = {
    "name": "sms", "inputs": "message: {text}", "target": "label", "labels": ("ham", "spam"),
    "train": ROWS, "validation": iter(ROWS[:10]),
}  # fmt: skip
FEW = {"TRAIN_STEPS": 4, "EVAL_PERIOD": 2, "BATCH_SIZE": 4, "PROMPT_LENGTH": 3}


def test_rows_in_python_train_the_prompt_that_a_task_file_trains(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]))
    lines = ['name = "sms"', 'inputs = "message: {text}"', 'target = "label"', 'labels = ["ham", "spam"]']
    (tmp_path / "sms.toml").write_text("\n".join([*lines, 'train = "rows.jsonl"', 'validation = "few.jsonl"']))
    by_rows = tune("tiny", SMS, tmp_path / "rows", **FEW)
    by_file = tune("tiny", tmp_path / "sms.toml", tmp_path / "file", **FEW)
    assert by_rows.bank.names == by_file.bank.names == ("sms",)
    np.testing.assert_array_equal(by_rows.bank.vectors, by_file.bank.vectors)
    assert by_rows.prompts["sms"].card == by_file.prompts["sms"].card
    (answer,) = by_rows.predict("message: win 3 now")
    assert list(answer.probabilities) == ["ham", "spam"]


def test_every_slot_comes_back_and_a_second_call_goes_on(tmp_path):
    task, names = SMS | {"validation": ROWS[:10]}, FEW | {"GRID": {"seed": [0, 1]}, "PROMPT_INIT": random_uniform}
    first = tune("tiny", task, tmp_path, **names)
    again = tune("tiny", task, tmp_path, **names)
    assert first.bank.names == again.bank.names == ("sms-seed0", "sms-seed1")
    np.testing.assert_array_equal(first.bank.vectors, again.bank.vectors)
    more = tune("tiny", task, tmp_path, **names | {"TRAIN_STEPS": 6})
    assert prompt_file.load(tmp_path / "numpy_checkpoints/checkpoint_6/sms-seed1" / prompt_file.BARE)
    assert more.prompts["sms-seed1"].card.init == "random_uniform"


def test_each_prompt_is_scored_as_the_run_scored_it(tmp_path):
    task, names = SMS | {"validation": ROWS[:10]}, FEW | {"GRID": {"seed": [0, 1], "length": [2, 3]}}
    tuned = tune("tiny", task, tmp_path, **names)
    found = score(tuned, task)
    assert {name: [m["accuracy"]] for name, m in found.items()} == {
        name: [entry.card.score] for name, entry in tuned.prompts.items()
    }
    right = [a.text == ("ham", "spam")[r["label"]] for a, r in zip(_asked(tuned, ROWS[:7]), ROWS, strict=False)]
    assert score(tuned, task | {"test": ROWS}, "test[:7]")["sms-seed1-length3"]["accuracy"] == 100 * np.mean(right)
    tuned.remove("sms-seed0-length2")
    assert score(tuned, task) == {name: each for name, each in found.items() if name != "sms-seed0-length2"}
    with pytest.raises(UserError, match=r"has no split .tset.*split=.train\[:200\]"):
        score(tuned, task, "tset")
    with pytest.raises(UserError, match=r"ranks ham, spam, but sms asks for no, yes too, .* load it with labels="):
        score(tuned, task | {"labels": ["no", "yes"]})
    with pytest.raises(UserError, match=r"What is scored is .*; found 'sms'"):
        score("sms", task)
    with pytest.raises(UserError, match=r"task is \[\{'text': [^;]*; it is a task's name"):
        score(tuned, ROWS)


def _asked(tuned, rows):
    return tuned.predict([f"message: {row['text']}" for row in rows], prompt="sms-seed1-length3")


def test_another_run_does_not_change_what_an_earlier_one_answers(tmp_path):
    task, texts = SMS | {"validation": ROWS[:10]}, [f"message: {row['text']}" for row in ROWS[:4]]
    one = tune("tiny", task, tmp_path / "a", DECODER="@sample", RANDOM_SEED=3, **FEW)
    before = [answer.text for answer in one.predict(texts, decode=True)]
    tune("tiny", task, tmp_path / "b", DECODER="@beam_search", **FEW)
    assert [answer.text for answer in one.predict(texts, decode=True)] == before


def test_rows_that_come_once_may_be_read_twice(tmp_path):
    once = SMS | {"train": iter(ROWS), "validation": iter(ROWS[:10])}
    assert tune("tiny", once, tmp_path, EVAL_FEATURE_LENGTHS=None, **FEW).only == "sms"


def test_names_go_before_a_gin_file(tmp_path):
    tuned = tune("tiny", "demo_acceptability", tmp_path, gin_files=["runs/quickstart.gin"], **FEW)
    assert tuned.prompts[tuned.only].card.task == "demo_acceptability"
    assert tuned.bank.vectors.shape[1] == FEW["PROMPT_LENGTH"]


def test_scanned_layers_answer_as_layers_one_by_one(tmp_path):
    task, plain = SMS | {"validation": ROWS[:10]}, FEW | {"DROPOUT_RATE": 0.0}
    one, other = (tune("tiny", task, tmp_path / str(scan), SCAN_LAYERS=scan, **plain) for scan in (False, True))
    texts = [f"message: {row['text']}" for row in ROWS]
    for a, b in zip(one.predict(texts), other.predict(texts), strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-3)


def test_an_interrupted_run_is_saved_and_goes_on(tmp_path):
    task = SMS | {"validation": ROWS[:10]}
    interrupts = iter([True])

    def interrupted(answerer, params, questions):
        if next(interrupts, False):
            signal.raise_signal(signal.SIGINT)
        return infer.rank(answerer, params, questions)

    with pytest.raises(KeyboardInterrupt):
        tune("tiny", task, tmp_path, PREDICT=interrupted, **FEW)
    assert tune("tiny", task, tmp_path, PREDICT=interrupted, **FEW).only == "sms"


@pytest.mark.parametrize(
    ("task", "names", "said"),
    [
        (SMS, {"TRAIN_STEP": 3}, "Nothing uses the name TRAIN_STEP. Did you mean 'TRAIN_STEPS'"),
        (SMS, {"train_steps": 3}, "Did you mean 'TRAIN_STEPS'"),
        (SMS, {"TRAIN_STEPS": "many"}, "TRAIN_STEPS is 'many'; it is a whole number from 1.\\Z"),
        (SMS, {"GRID": [0, 1]}, "it is a table of lists"),
        (SMS, {"LEARNING_RATE": float("nan")}, "LEARNING_RATE is nan; it is a number from 0"),
        (SMS, {"LEARNING_RATE": float("inf")}, "LEARNING_RATE is inf"),
        (SMS, {"gin_files": "runs/sst2_small.gin"}, "gin_files is 'runs/sst2_small.gin'; it is a list of texts"),
        (SMS | {"name": ""}, {}, "name is ''; it is a word"),
        (SMS | {"name": None}, {}, "name is None"),
        (SMS | {"train": [{"text": "\ud800", "label": 0}]}, {}, r"train\[0\]: the inputs .* is not UTF-8"),
        (SMS | {"lables": []}, {}, "unknown setting 'lables'. Did you mean 'labels'"),
        ({1: "x"}, {}, "1 is none of them"),
        (SMS | {"train": []}, {}, "train is a file, or a list of files, or of rows .* found an empty list"),
        (SMS | {"train": 7}, {}, "train is a file, or .* found 7"),
        (SMS | {"train": [*ROWS, {"text": "x"}]}, {}, r"train\[24\]: no column 'label'"),
        (SMS | {"train": [{"text": "x", "label": float("nan")}]}, {}, r"train\[0\]: the column 'label' is empty"),
        (SMS | {"train": [{"text": "x", "label": 3}]}, {}, r"train\[0\]: label '3'; task knows 'ham', 'spam'"),
        (SMS, {"TUNING": "@ModelTuning()"}, "TUNING trains the whole model"),
        (SMS, {"PROMPT_INIT": "@random_unifrom"}, "Did you mean 'random_uniform'"),
        ("demo_acceptability", {"TASK_FILE": "x.toml"}, "TASK_FILE is what tune"),
        (7, {}, "task is 7"),
        (SMS, {"GRID": {"task": ["demo_question"]}}, "The task is a dict, and .* GRID or SLOTS names another, demo_qu"),
        (SMS, {"PROMPT_INIT": lambda start: 0}, r"cannot be called with \(start, rng=...\): got an unexpected keyword"),
        (
            SMS,
            {"PROMPT_INIT": lambda start, *, rng: np.zeros((3, 7))},
            r"made an array of \[3, 7\]; .* here \[3, 128\]",
        ),
        (SMS, {"PROMPT_INIT": lambda start, *, rng: np.full((3, 128), np.nan)}, "a prompt is finite numbers"),
        (SMS, {"PROMPT_INIT": lambda start, *, rng: "spam"}, "made 'spam'; a prompt is"),
        (SMS, {"OPTIMIZER": optax.adamw(1e-3)}, "an optimizer that has its learning rate already"),
        (SMS, {"OPTIMIZER": lambda: optax.sgd(0.1)}, r"cannot be called with a learning rate \(too many positional"),
        (SMS, {"OPTIMIZER": lambda rate: 3}, "makes 3 of a learning rate, and no optimizer"),
        (SMS, {"PROMPT_INIT": np.zeros}, "The init zeros cannot be called"),
        ({"inputs": "{text}", "target": "label", "train": ROWS}, {}, "has no split 'validation'"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, task, names, said):
    task = task | {"validation": ROWS[:2]} if isinstance(task, dict) and "validation" in task else task
    with pytest.raises(UserError, match=said):
        tune("tiny", task, tmp_path, **FEW | names)


@pytest.mark.parametrize("folder", ["file", "file/below", None, 7])
def test_a_folder_that_cannot_be_one_is_named(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file|folder is (None|7); it is text"):
        tune("tiny", SMS | {"validation": ROWS[:2]}, tmp_path / folder if isinstance(folder, str) else folder, **FEW)


def test_what_refers_to_a_function_may_stand_inside_a_table(tmp_path):
    task, inits = SMS | {"validation": ROWS[:10]}, ["@sampled_vocabulary", "@class_labels"]
    names = FEW | {"TRAIN_STEPS": 2, "GRID": {"init": inits, "seed": [3]}}
    tuned = tune("tiny", types.MappingProxyType(task), tmp_path, **names)
    assert tuned.bank.names == ("sms-sampled_vocabulary", "sms-class_labels")
    assert repr(tuned) == "PromptTuned(tiny: sms-sampled_vocabulary, sms-class_labels)"
    with pytest.raises(UserError, match="Texts to answer are a str or several; found 5"):
        tuned.predict(5)


def test_a_table_of_pandas_is_told_what_its_rows_are():
    class Table:  # what tells one; pandas itself is no dependency
        iloc = None

    with pytest.raises(
        UserError, match=re.escape("train is a pandas table; give its rows: table.to_dict(orient='records')")
    ):
        tune("tiny", SMS | {"train": Table()}, "nowhere")


def test_public_names_are_there_and_importing_them_takes_no_jax():
    assert dir(prompt_tuning) == sorted(prompt_tuning.__all__)
    assert all(callable(getattr(prompt_tuning, name)) for name in prompt_tuning.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'tuner'"):
        _ = prompt_tuning.tuner
    code = "import sys, prompt_tuning; assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_settings_of_numpy_and_paths_are_kept_as_plain_values(tmp_path):
    task, one = SMS | {"validation": ROWS[:10]}, np.int64(1)
    names = {"TRAIN_STEPS": 2 * one, "EVAL_PERIOD": one, "BATCH_SIZE": np.int32(4), "PACKING": np.bool_(True)}
    names |= {"PROMPT_LENGTH": 3 * one, "TASK_FEATURE_LENGTHS": {"inputs": 32 * one, "targets": 8 * one}}
    grid = {"seed": np.arange(2), "learning_rate": (np.float32(0.25),)}
    tuned = tune("tiny", task, tmp_path / "a", GRID=grid, **names)
    assert [type(entry.card.seed) for entry in tuned.prompts.values()] == [int, int]
    start = {"PROMPT_INIT": "@from_file", "PROMPT_FILE": tmp_path / "a/prompts/sms-seed1.safetensors"}
    assert tune("tiny", task, tmp_path / "b", **names | start).only == "sms"
    ranged = tune("tiny", task, tmp_path / "c", GRID={"init": [start["PROMPT_FILE"]], "seed": range(1)}, **names)
    assert len(ranged.prompts) == 1
    assert PromptTuned.load(None, start["PROMPT_FILE"], batch_size=4 * one).only == "sms-seed1"


FREE = {"name": "free", "inputs": "{text}", "target": "label", "train": ROWS, "validation": ROWS[:10]}


@pytest.mark.parametrize(
    ("task", "names", "said"),
    [
        (FREE, {}, """Type **{"class_labels.words": ['yes', 'no']} to start from these words"""),
        (FREE, {"PROMPT_INIT": "@random_uniform", "PREDICT": "@rank"}, 'Type PREDICT="@write", or set CLASS_LABELS.'),
        ({k: v for k, v in FREE.items() if k != "validation"}, {}, 'type EVAL_SPLIT="train[:200]"'),
        ("demo_nothing", {}, 'needs TASK_FILE="FILE.toml", or MIXTURE_OR_TASK_MODULE=NAME of the module'),
        (FREE, {"adafactor.momentom": 0.9}, "Did you mean 'momentum'?"),
        (FREE, {"adafacto.momentum": 0.9}, "Did you mean 'adafactor'"),
    ],
)
def test_what_to_type_is_said_as_python_takes_it(tmp_path, task, names, said):
    with pytest.raises(UserError, match=re.escape(said)):
        tune("tiny", task, tmp_path, **FEW | names)


def test_parameters_without_a_name_of_their_own_are_set_too(tmp_path):
    tuned = tune("tiny", FREE, tmp_path, **FEW, **{"class_labels.words": ["yes", "no"], "rank.content_free": []})
    assert tuned.prompts["free"].card.init == "{'class_labels': {'words': ['yes', 'no']}}"


def test_a_device_with_too_little_memory_is_said_in_python_too(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(notebook.training, "train", full)
    with pytest.raises(UserError, match=re.escape("(ROWS_AT_ONCE=16), if backward computes layers again (REMAT=True)")):
        tune("tiny", SMS | {"validation": ROWS[:2]}, tmp_path, **FEW)
