"""What docs/from_t5x.md tells a user of T5X to type does here what it says."""

import re
import shlex
import string
from pathlib import Path

import numpy as np
import pytest
from conftest import flags, reviews

from prompt_tuning import base, cli

DOCUMENT = (Path(__file__).parents[1] / "docs" / "from_t5x.md").read_text()
THEIRS = (  # the flags of the authors' sst2-demo.sh
    "gin_search_paths", "gin_file", "gin.CLASS_LABELS", "gin.MODEL_DIR", "gin.MIXTURE_OR_TASK_NAME",
    "gin.MIXTURE_OR_TASK_MODULE", "gin.TASK_FEATURE_LENGTHS", "gin.INITIAL_CHECKPOINT_PATH", "gin.TRAIN_STEPS",
    "gin.USE_CACHED_TASKS", "tfds_data_dir",
)  # fmt: skip


def demo() -> list[str]:
    """The flags of the first script in the document, `${MODEL_DIR}` and the like not yet filled in."""
    script = re.search(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    assert script is not None
    words = shlex.split(script[1])
    assert words[words.index("-m") + 1] == "prompt_tuning.train"
    return [word for word in words if word.startswith("--")]


def test_the_authors_demo_runs_with_the_lines_that_the_document_changes(home, tmp_path, capsys):
    for name, count in (("train", 40), ("dev", 8)):
        rows = [f"{row['text']}\t{int(row['label'] == 'positive')}" for row in reviews(count, 3)]
        file = tmp_path / "glue" / "SST-2" / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    names = {"MODEL_DIR": tmp_path / "run", "PRETRAINED_MODEL": home / "base"}
    typed = [string.Template(word).substitute(names) for word in demo()]
    smaller = {
        "VOCABULARY_FILE": home / "base" / "spiece.model", "DATA_DIR": tmp_path, "PROMPT_LENGTH": 5, "BATCH_SIZE": 4,
        "TRAIN_STEPS": 2, "JAX_CACHE_DIR": home / "cache",
    }  # fmt: skip
    assert cli.main(["train", *typed, *(f"--gin.{name}={value}" for name, value in smaller.items())]) == 0
    config = (tmp_path / "run" / "config.gin").read_text()
    assert "adafactor.step_origin" in config and "STEP_ORIGIN = 1100000" in config
    prompt = np.load(tmp_path / "run" / "numpy_checkpoints" / "checkpoint_2" / "encoder.prompt.prompt.prompt")
    assert prompt.shape == (5, 16)


def test_every_flag_of_the_authors_demo_is_kept_or_explained():
    kept = {word.partition("=")[0].removeprefix("--") for word in demo()}
    table = DOCUMENT.partition("| theirs | here | why |")[2].partition("\n\n")[0]
    for flag in THEIRS:
        assert flag in kept or f"`--{flag}" in table, flag


def test_steps_that_seem_to_count_the_bases_too_are_pointed_out(home, tmp_path, capsys):
    place = base.save_t5x(base.load_base(home / "base").params, tmp_path, 1)
    names = {"INITIAL_CHECKPOINT_PATH": place, "VOCABULARY_FILE": home / "base" / "spiece.model"}
    for steps, said in ((1, False), (2, True)):
        flagged = flags(home, tmp_path / f"run{steps}", **names, TRAIN_STEPS=steps, EVAL_PERIOD=steps)
        assert cli.main(["train", *flagged]) == 0
        assert ("as T5X counts, type --gin.TRAIN_STEPS=1" in " ".join(capsys.readouterr().out.split())) == said


THEIR_NAMES = {
    "--gin.USE_CACHED_TASKS=False": "USE_CACHED_TASKS is T5X's; here leave it out",
    "--gin.train.use_orbax=False": "train is T5X's; here the names of a run are in gin/defaults.gin",
    "--gin.utils.SaveCheckpointConfig.period=5": "type --gin.EVAL_PERIOD",
    "--gin.infer_eval/utils.DatasetConfig.split='x'": "type --gin.EVAL_SPLIT",
    "--tfds_data_dir=x": "the variable TFDS_DATA_DIR",
    "--gin.TOP_K=3": "`prompt-tuning spot` alone",
}


@pytest.mark.parametrize("flag, expected", THEIR_NAMES.items())
def test_a_name_of_another_program_is_told_what_it_is_here(home, tmp_path, capsys, flag, expected):
    assert cli.main(["train", *flags(home, tmp_path / "run"), flag]) == 2
    assert expected in capsys.readouterr().err


def test_the_module_of_the_authors_tasks_is_not_needed(home, tmp_path, capsys):
    names = {
        "MIXTURE_OR_TASK_NAME": "taskless_glue_sst2_v200_examples",
        "MIXTURE_OR_TASK_MODULE": "prompt_tuning.data.glue",
    }
    assert cli.main(["train", *flags(home, tmp_path / "run", TASK_FILE=None, **names)]) == 2
    assert "leave MIXTURE_OR_TASK_MODULE out" in capsys.readouterr().err
