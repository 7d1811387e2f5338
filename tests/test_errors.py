"""Ordinary mistakes: one paragraph that says what to type, exit code 2, nothing half-written."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import flags

from prompt_tuning import cli, configure, device, prompt_file


def complaint(capsys, argv: list[str]) -> str:
    """What the command says about a mistake, on standard error."""
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("prompt-tuning: ") and "Traceback" not in said
    return said


MISTAKES = {
    "a base that is not there": ({"INITIAL_CHECKPOINT_PATH": "/nowhere/t5"}, "There is no folder /nowhere/t5"),
    "no base": ({"INITIAL_CHECKPOINT_PATH": None}, "--gin.INITIAL_CHECKPOINT_PATH"),
    "no task": ({"TASK_FILE": None}, "--gin.MIXTURE_OR_TASK_NAME"),
    "an unknown task": ({"TASK_FILE": None, "MIXTURE_OR_TASK_NAME": "superglue_bolq"}, "superglue_boolq"),
    "two tasks": ({"MIXTURE_OR_TASK_NAME": "superglue_cb"}, "names another, superglue_cb. Leave one out"),
    "an unknown module": ({"TASK_FILE": None, "MIXTURE_OR_TASK_NAME": "x", "MIXTURE_OR_TASK_MODULE": "nix"}, "'nix'"),
    "an unknown split": ({"EVAL_SPLIT": "validaton"}, "validation"),
    "an unknown name": ({"BATCH_SIZ": 3}, "'BATCH_SIZE'"),
    "an unknown parameter": ({"adafactor.step_origins": 3}, "'step_origin'"),
    "an unknown configurable": ({"adafctor.step_origin": 3}, "'adafactor'"),
    "an unknown init": ({"PROMPT_INIT": "@class_label"}, "'class_labels'"),
    "a name with another's meaning": ({"PROMPT_INIT": "class_labels"}, "a function"),
    "a prompt that is too long": ({"PROMPT_LENGTH": 513}, "1 to 512"),
    "a function's bare name": ({"PREDICT": "write"}, "Type @write."),
    "a way to answer that takes too little": ({"PREDICT": "@linear_warmup"}, "cannot be called with (answerer, params"),
    "a decoder's bare name": ({"DECODER": "greedy", "PREDICT": "@write"}, "Type @greedy."),
    "labels in one word": ({"CLASS_LABELS": "wrong,right"}, "a list of texts"),
    "a patience that is no number": ({"PATIENCE": "x"}, "PATIENCE is 'x'; it is a whole number from 1, or None"),
    "a switch that is none": ({"PACKING": "no"}, "True or False"),
    "a split that is a number": ({"EVAL_SPLIT": 3}, "EVAL_SPLIT is 3; it is text"),
    "a folder that is a number": ({"MODEL_DIR": 3}, "MODEL_DIR is 3; it is a place on this machine"),
    "a folder in a bucket": ({"MODEL_DIR": "gs://bucket/run"}, "MODEL_DIR is 'gs://bucket/run'; it is a place on this"),
    "a vocabulary in a bucket": ({"VOCABULARY_FILE": "gs://t5-data/spiece.model"}, "is mounted first (gcsfuse"),
    "devices that are no number": ({"MODEL_PARALLEL": "a"}, "MODEL_PARALLEL is 'a'"),
    "a slot that is called elsewhere": ({"SLOTS": [{"name": "../a"}]}, "leave out what leads elsewhere"),
    "no prompt": ({"PROMPT_LENGTH": 0}, "1 to 512"),
    "a seed below 0": ({"RANDOM_SEED": -1}, "a whole number from 0"),
    "a seed of more than 32 bits": ({"RANDOM_SEED": 2**32}, "to 4,294,967,295"),
    "a seed that is a switch": ({"GRID": {"seed": [True]}}, "The seed of a slot is True"),
    "more devices than heads": ({"MODEL_PARALLEL": 8}, "does not divide this model's 2 heads"),
    "a batch of nothing": ({"BATCH_SIZE": 0}, "whole number from 1"),
    "a base of another size": ({"T5Config.emb_dim": 512}, "emb_dim is 16 and not 512"),
    "a label the vocabulary cannot spell": ({"CLASS_LABELS": ["positive", "negative", "日本"]}, "cannot spell"),
    "labels that nothing is right in": ({"CLASS_LABELS": ["bad", "positive"]}, "asks for negative too"),
    "a task without metrics": ({"TASK_FILE": None, "MIXTURE_OR_TASK_NAME": "text_prefix_lm"}, "@PromptPretraining()"),
    "an unknown field of a slot": ({"GRID": {"sed": [1]}}, "'seed'"),
    "slots and a grid": ({"GRID": {"seed": [1]}, "SLOTS": [{"seed": 1}]}, "Set one of them"),
    "a prompt file that is not there": ({"PROMPT_INIT": "@from_file", "PROMPT_FILE": "/no/p.npy"}, "/no/p.npy"),
    "lengths without targets": ({"TASK_FEATURE_LENGTHS": {"inputs": 5}}, "TASK_FEATURE_LENGTHS"),
    "held-out lengths that are none": ({"EVAL_FEATURE_LENGTHS": 512}, "EVAL_FEATURE_LENGTHS is 512"),
    "a step origin that is no number": ({"STEP_ORIGIN": "abc"}, "STEP_ORIGIN is 'abc'; it is a number"),
    "a weight decay that is no number": ({"WEIGHT_DECAY": "abc"}, "WEIGHT_DECAY is 'abc'"),
    "a text that is none": ({"PROMPT_INIT": "@text", "PROMPT_TEXT": 42}, "PROMPT_TEXT is 42; it is text"),
    "a prompt file that nothing starts from": ({"PROMPT_FILE": "p.npy"}, "no prompt starts from it"),
    "a text that nothing starts from": ({"PROMPT_TEXT": "classify"}, "Type --gin.PROMPT_INIT=@text"),
    "a label twice": ({"CLASS_LABELS": ["positive", "negative", "positive"]}, "each stands there once"),
    "no prompt file": ({"PROMPT_INIT": "@from_file"}, "PROMPT_FILE is None; it is a place on this machine"),
    "nothing to sample from": ({"sampled_vocabulary.population": 0}, "sampled_vocabulary.population is 0"),
    "a scale that is none": ({"PROMPT_INIT": "@random_uniform", "random_uniform.scale": "x"}, "scale is 'x'"),
    "a fallback by its bare name": ({"class_labels.fallback": "random_uniform"}, "Type @random_uniform."),
    "no examples to evaluate on": ({"Pretraining.eval_examples": 0, "TUNING": "@Pretraining()"}, "eval_examples is 0"),
    "a tuning that is not made": ({"TUNING": "@ModelTuning"}, "TUNING is"),
    "a dropout rate that is no number": ({"DROPOUT_RATE": "low"}, "DROPOUT_RATE is 'low'"),
    "slots that are no tables": ({"SLOTS": ["a"]}, "list of tables"),
    "a grid that is no table": ({"GRID": {"seed": 1}}, "table of lists"),
    "a learning rate that is no number": ({"LEARNING_RATE": "fast"}, "LEARNING_RATE"),
}  # fmt: skip


@pytest.mark.parametrize("settings, expected", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained_and_nothing_is_written(home, tmp_path, capsys, settings, expected):
    assert expected in complaint(capsys, ["train", *flags(home, tmp_path / "run", **settings)])
    assert not (tmp_path / "run").exists()


def task_file(home: Path, folder: Path, rows: str, **changes: str) -> Path:
    settings = (home / "task.toml").read_text().replace('"train.jsonl"', '"rows.jsonl"')
    for old, new in changes.items():
        settings = settings.replace(f"{old} =", f"{new} =")
    (folder / "rows.jsonl").write_text(rows)
    (folder / "dev.jsonl").write_text('{"text": "a fine film", "label": "positive"}\n')
    (folder / "task.toml").write_text(settings)
    return folder / "task.toml"


@pytest.mark.parametrize(
    "rows, expected",
    [
        ("", "rows.jsonl"),
        ('{"text": "a fine film"}\n', "label"),
        ('{"text": "a fine film", "label": "positive"}\n{"text": "a du\n', "rows.jsonl:2"),
        ('{"text": "a fine film", "label": "possitive"}\n', "possitive"),
    ],
    ids=["an empty file", "a missing column", "a cut line", "a wrong label"],
)
def test_bad_data_is_named_with_its_file(home, tmp_path, capsys, rows, expected):
    path = task_file(home, tmp_path, rows)
    said = complaint(capsys, ["train", *flags(home, tmp_path / "run", TASK_FILE=path)])
    assert expected in said and "rows.jsonl" in said
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_stands_where_nobody_knows_is_not_scored(home, tmp_path, capsys):
    card = prompt_file.Card(task="films", labels=("negative", "positive"), placement="in_the_middle")
    path = tmp_path / "prompt.safetensors"
    prompt_file.save_safetensors(path, prompt_file.Prompt(np.zeros((5, 16), np.float32), card))
    assert "'in_the_middle'" in complaint(capsys, ["eval", "--prompts", str(path), *flags(home, tmp_path / "run")])


def test_a_home_folder_may_be_written_as_a_tilde(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    prompt_file.save_npy(tmp_path / "prompt.npy", np.zeros((5, 16), np.float32))
    (tmp_path / "mine.gin").write_text("WEIGHT_DECAY = 0.0\n")
    settings = {
        "PROMPT_INIT": "@from_file",
        "PROMPT_FILE": "~/prompt.npy",
        "JAX_CACHE_DIR": "~/cache",
        "TRAIN_STEPS": 1,
    }
    assert cli.main(["train", *flags(home, "~/run", **settings), "--gin_file=~/mine.gin"]) == 0
    assert (tmp_path / "run" / "curves.png").is_file()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")


def test_a_prompt_of_another_width_or_length_is_refused(home, tmp_path, capsys):
    for shape, expected in (((5, 8), "8 wide"), ((7, 16), "--gin.PROMPT_LENGTH=7")):
        prompt_file.save_npy(tmp_path / "prompt.npy", np.zeros(shape, np.float32))
        settings = {"PROMPT_INIT": "@from_file", "PROMPT_FILE": tmp_path / "prompt.npy"}
        assert expected in complaint(capsys, ["train", *flags(home, tmp_path / "run", **settings)])


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", *flags(home, folder, TRAIN_STEPS=3)]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_checkpoint_of_another_configuration_is_refused(home, trained, capsys):
    before = snapshot(trained)
    said = complaint(capsys, ["train", *flags(home, trained, BATCH_SIZE=5)])
    assert "batch_size was 4 and is 5" in said
    assert "step_origin was 0 and is 9" in complaint(capsys, ["train", *flags(home, trained, STEP_ORIGIN=9)])
    assert snapshot(trained) == before


def test_a_checkpoint_of_another_base_is_refused(home, trained, tmp_path, capsys):
    from conftest import TINY, random_params

    from prompt_tuning import base

    base.save_t5x(random_params(dataclasses.replace(TINY, vocab_size=192), seed=1), tmp_path / "base", 7, np.float32)
    shutil.copy(home / "base" / "spiece.model", tmp_path / "base")
    before = snapshot(trained)
    said = complaint(capsys, ["train", *flags(home, trained, INITIAL_CHECKPOINT_PATH=tmp_path / "base")])
    assert "another base" in said
    other = flags(home, tmp_path / "run", INITIAL_CHECKPOINT_PATH=tmp_path / "base")
    assert "another base" in complaint(capsys, ["eval", *other, "--prompts", str(trained)])
    assert snapshot(trained) == before
    prompt = str(trained / "prompts" / "films.safetensors")
    assert "other weights" in complaint(capsys, ["infer", "--prompt", prompt, "--base", str(tmp_path / "base"), "x"])


def test_evaluation_before_training_says_so(home, tmp_path, capsys):
    assert "Train first" in complaint(capsys, ["eval", *flags(home, tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_wrong_commands_and_inputs_of_infer_are_explained(trained, tmp_path, capsys):
    assert "'train'" in complaint(capsys, ["trian"])
    prompt = str(trained / "prompts" / "films.safetensors")
    assert "nothing to answer" in complaint(capsys, ["infer", "--prompt", prompt])
    assert "no prompt file" in complaint(capsys, ["infer", "--prompt", "/no.npy", "x"])
    (tmp_path / "in.jsonl").write_text('{"text": "fine"}\n{"txt": "x"}\n')
    assert "line 2" in complaint(capsys, ["infer", "--prompt", prompt, "--input", str(tmp_path / "in.jsonl")])
    said = complaint(capsys, ["infer", "--prompt", prompt, "--labels", "spam", "message: hi"])
    assert "Texts stand before --labels" in said
    (tmp_path / "in.csv").write_text("id,txt\n1,fine\n")
    assert "has no 'text'" in complaint(capsys, ["infer", "--prompt", prompt, "--input", str(tmp_path / "in.csv")])
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "prompt-tuning import" in complaint(capsys, ["infer", "--prompt", str(tmp_path), "x"])
    assert "prompt-tuning import" in complaint(capsys, ["eval", "--prompts", str(tmp_path)])
    (tmp_path / "t5x" / "checkpoint_9").mkdir(parents=True)
    assert "is a T5X checkpoint" in complaint(capsys, ["infer", "--prompt", str(tmp_path / "t5x"), "x"])
    assert "is a T5X checkpoint" in complaint(capsys, ["eval", "--prompts", str(tmp_path / "t5x")])
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY garbage")
    assert "not a readable .npy" in complaint(capsys, ["infer", "--prompt", str(tmp_path / "broken.npy"), "x"])


def test_a_gin_file_that_is_not_there_offers_the_nearest(home, tmp_path, capsys):
    said = complaint(capsys, ["train", "--gin_file=runs/sst_small.gin", *flags(home, tmp_path / "run")])
    assert "'runs/sst2_small.gin'" in said


def test_a_full_disk_is_said_and_what_was_saved_stays(home, tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.name == "posix" and shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]).returncode:
        pytest.skip("a small file system can be mounted only as root")
    try:
        argv = ["train", *flags(home, disk / "run", TRAIN_STEPS=400, EVAL_PERIOD=2)]
        assert cli.main(argv) == 2
        said = capfd.readouterr().err
        assert "No space left" in said or "is full" in said
        kept = sorted(int(p.name) for p in (disk / "run" / "checkpoints").iterdir() if p.name.isdigit())
        assert kept, "the first checkpoints are still there"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(
    "argv, said",
    [
        ("train --process_count 0 --process_index 0", "'0', and takes a whole number from 1"),
        ("infer --prompt p --batch_size 1.5 x", "'1.5', and takes a whole number from 1"),
        ("serve --prompts p --port 99999", "'99999', and takes a whole number from 0 to 65535"),
        ("serve --prompts p --window_ms nan", "'nan', and takes a number from 0"),
        ("serve --prompts p --writers 0", "'0', and takes a whole number from 1"),
        ("data show x --vocabulary v --examples -1", "'-1', and takes a whole number from 0"),
        ("data show x --vocabulary v --lengths 0 5", "'0', and takes a whole number from 1"),
        ("library search lib p --top x", "'x', and takes a whole number from 1"),
        ("interpret p --neighbours 1", "'1', and takes a whole number from 2 to 100"),
        ("import p --out q --target_length 0", "'0', and takes a whole number from 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_those_that_do(capsys, argv, said):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv.split())
    assert said in capsys.readouterr().err


def test_a_name_of_gin_without_its_prefix_is_told_how_to_be_typed(capsys):
    assert "Type --gin.TRAIN_STEPS=3." in complaint(capsys, ["train", "--TRAIN_STEPS=3"])


def failing(number: int):
    """A command that ends in this error of the system."""

    def run(argv):
        raise OSError(number, os.strerror(number), "here", None, "there")

    return "", run


def test_an_error_of_the_system_says_what_helps(monkeypatch, capsys):
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        monkeypatch.setitem(cli.COMMANDS, "try", failing(number))
        assert "(there). Nothing that was saved before is lost: free the disk" in complaint(capsys, ["try"])
    for number in (errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EACCES):
        monkeypatch.setitem(cli.COMMANDS, "try", failing(number))
        said = complaint(capsys, ["try"])
        assert "(there). Name another file or folder" in said and "disk" not in said


def test_an_optimizer_and_an_init_of_your_own_come_with_a_gin_file(home, tmp_path, monkeypatch, capsys):
    settings = flags(home, tmp_path / "run", OPTIMIZER="@my_sgd", LEARNING_RATE=0.01, TRAIN_STEPS=2)
    assert "'my_sgd'. What there is stands in gin/defaults.gin. Functions" in complaint(capsys, ["train", *settings])
    (tmp_path / "mine.py").write_text(
        "import gin, jax, optax\n"
        "my_sgd = gin.configurable('my_sgd')(lambda rate, momentum: optax.sgd(rate, momentum))\n"
        "draw = lambda start, scale, *, rng: scale * jax.random.normal(rng, (start.length, start.features))\n"
        "my_init = gin.configurable('my_init')(draw)\n"
    )
    (tmp_path / "mine.gin").write_text(
        "import mine\nmy_sgd.momentum = 0.9\nPROMPT_INIT = @my_init\nmy_init.scale = 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = [*settings, f"--gin_file={tmp_path / 'mine.gin'}", "--gin.EVAL_PERIOD=1"]
    assert cli.main(["train", *mine, "--gin.TRAIN_STEPS=1"]) == 0
    said = complaint(capsys, ["train", *mine, "--gin.my_sgd.momentum=0.5"])
    assert "my_sgd: momentum was 0.9 and is 0.5" in said
    assert cli.main(["train", *mine]) == 0


def test_too_little_memory_says_what_needs_less(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "try", ("", lambda argv: jax.device_put(jnp.zeros((1 << 50,)))))
    said = complaint(capsys, ["try"])
    assert "memory is too small: Out of memory allocating 4503599627370496 bytes" in said and "ROWS_AT_ONCE" in said


def test_a_step_that_does_not_fit_is_not_begun(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device, "memory", lambda: 1000)
    said = complaint(capsys, ["train", *flags(home, tmp_path / "run")])
    assert re.search(r"too small: a step of \d+ rows needs [\d.]+ \wiB, and there are 1000 B\. Less", said), said


@pytest.mark.parametrize("printing", ["print('answer')", "print('answer' * 10**6)", "terminal.console().print('row')"])
def test_a_reader_that_leaves_ends_the_command_quietly(printing):
    code = (
        "import sys, time; from prompt_tuning import cli, terminal;"
        f"run = lambda argv: time.sleep(0.5) or {printing} or 0;"
        "cli.COMMANDS['try'] = '', run; sys.exit(cli.main(['try']))"
    )
    process = subprocess.Popen([os.sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_help_and_version_answer_without_jax(capsys):
    code = "import sys; from prompt_tuning import cli; cli.main(['--help']); assert 'jax' not in sys.modules"
    assert subprocess.run([os.sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    assert cli.main(["--version"]) == 0
    assert json.dumps(capsys.readouterr().out.strip())


def test_what_looks_like_no_reference_is_text():
    texts = ["runs/a@20", "md/user@host", "score: @home", "mail (@home)"]
    references = ["@rank", "[@a, @b]", "{'init': @a}", "%LEARNING_RATE"]
    assert [configure.binding(f"X={text}") for text in texts] == [f"X = {text!r}" for text in texts]
    assert [configure.binding(f"X={given}") for given in references] == [f"X = {given}" for given in references]
