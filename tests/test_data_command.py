"""`prompt-tuning data` lists tasks, shows one as the model sees it, and says which official files are missing."""

import json
import string
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sentencepiece
from conftest import full

from prompt_tuning import data_command, prepare
from prompt_tuning.errors import UserError

ROOT = Path(__file__).parents[1]
CB = [
    {"premise": "a long premise " * 40, "hypothesis": "h", "label": "neutral", "idx": 0},
    {"premise": "short", "hypothesis": "h", "label": "neutral", "idx": 1},
    {"premise": "short", "hypothesis": "i", "label": "entailment", "idx": 2},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a vocabulary, as a base is one."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "corpus.txt").write_text((string.ascii_letters + " _0123456789.:,[/]\n") * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=100, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DATA_DIR", raising=False)


def data_dir(tmp_path: Path) -> str:
    folder = tmp_path / "superglue/CB"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CB))
    return str(tmp_path)


def test_list_names_each_task_with_its_answers_and_metrics(capsys):
    assert data_command.main(["list", "superglue*"]) == 0
    printed = capsys.readouterr().out
    assert "entailment, contradiction, neutral" in printed
    assert "mean_class_f1, accuracy" in printed
    assert "super_glue/cb:1.0.2" in printed
    assert "superglue_and_dpr" in printed
    assert "_prefixed" not in printed


def test_list_of_nothing_says_so():
    with pytest.raises(UserError, match="No task or mixture matches 'nothing"):
        data_command.main(["list", "nothing*"])


def test_show_prints_sizes_majority_lengths_and_examples(capsys, tmp_path, model):
    arguments = ["show", "superglue_cb", "--data_dir", data_dir(tmp_path), "--vocabulary", str(model)]
    assert data_command.main([*arguments, "--lengths", "100", "20"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "train 3 neutral 66.7 %" in printed
    assert "33.3 %" in printed  # of the inputs are cut
    assert "hypothesis: h premise: short" in printed
    assert "</s>" in printed


def test_show_of_a_task_file_needs_no_tensorflow(tmp_path, model):
    (tmp_path / "train.csv").write_text("text,label\ngood,1\nbad,0\n")
    task = tmp_path / "mine.toml"
    task.write_text('inputs = "text: {text}"\ntarget = "label"\nlabels = ["no", "yes"]\ntrain = "train.csv"\n')
    code = (
        "import sys; from prompt_tuning.data_command import main; "
        f"main(['show', '--task_file', {str(task)!r}, '--vocabulary', {str(model)!r}]); "
        "assert 'tensorflow' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "text: good" in run.stdout
    assert "yes 50.0 %" in run.stdout
    assert data_command.main(["show", "--task_file", str(task), "--vocabulary", "tiny"]) == 0


def test_show_prints_brackets_in_labels_as_they_are(capsys, tmp_path, model):
    (tmp_path / "train.csv").write_text("text,label\ngood,1\nbad,0\nworse,0\n")
    task = tmp_path / "mine.toml"
    task.write_text('inputs = "{text}"\ntarget = "label"\nlabels = ["[/no]", "[b]"]\ntrain = "train.csv"\n')
    assert data_command.main(["show", "--task_file", str(task), "--vocabulary", str(model)]) == 0
    printed = capsys.readouterr().out
    assert "answers: [/no], [b]" in printed and "[/no] 66.7 %" in printed


def test_show_of_a_mixture_prints_its_rates(capsys, model):
    data_command.main(["show", "superglue", "--vocabulary", str(model)])
    printed = capsys.readouterr().out
    assert "superglue_record" in printed
    assert "0.7532" in printed  # 138,854 of 184,351


def test_show_without_a_name_asks_for_one(model):
    with pytest.raises(UserError, match="Give the name of a task, or --task_file"):
        data_command.main(["show", "--vocabulary", str(model)])


# ---------------------------------------------------------------- prepare


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """Two sets that can be had without a network; returns the folder to prepare."""
    archive = tmp_path / "CB.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("train.jsonl", "val.jsonl", "test.jsonl"):
            opened.writestr(f"CB/{name}", "".join(json.dumps(row) + "\n" for row in CB))
    pairs = tmp_path / "pairs.txt"
    row = "{}\t{}\t{}\tfirst sentence\tsecond sentence\n"
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    pairs.write_text(header + row.format(1, 10, 11) + row.format(0, 20, 21))
    (tmp_path / "ids.tsv").write_text("20\t21\n")
    sets = [
        prepare.Published("superglue/CB", prepare.JSONL, (archive.as_uri(),), ("test.jsonl",)),
        prepare.Published("glue/MRPC", prepare.TABLES, (pairs.as_uri(), (tmp_path / "ids.tsv").as_uri())),
    ]
    monkeypatch.setattr(prepare, "SETS", sets)
    return tmp_path / "data"


def test_prepare_downloads_unpacks_and_verifies(published, capsys):
    assert data_command.main(["prepare", "--data_dir", str(published), "--verify"]) == 1
    assert "missing train.jsonl, missing val.jsonl" in capsys.readouterr().out
    assert data_command.main(["prepare", "--data_dir", str(published)]) == 0
    assert "whole" in capsys.readouterr().out
    assert (published / "superglue/CB/test.jsonl").is_file()
    assert sorted(p.name for p in (published / "superglue/CB").iterdir()) == ["test.jsonl", "train.jsonl", "val.jsonl"]
    train, dev = ((published / "glue/MRPC" / f).read_text().splitlines() for f in prepare.TABLES)
    assert [line.split("\t")[1] for line in train[1:]] == ["10"]
    assert [line.split("\t")[1] for line in dev[1:]] == ["20"]
    assert train[0].split("\t")[0] == "Quality"


def test_prepare_notices_a_changed_file_and_loses_none(published, capsys):
    data_command.main(["prepare", "--data_dir", str(published)])
    with (published / "superglue/CB/val.jsonl").open("a") as file:
        file.write("{}\n")
    assert data_command.main(["prepare", "CB", "--data_dir", str(published)]) == 1
    assert "changed val.jsonl" in capsys.readouterr().out


def test_checksums_that_the_disk_has_no_room_for_leave_those_of_other_sets(published, capsys):
    data_command.main(["prepare", "CB", "--data_dir", str(published)])
    before = (published / prepare.SUMS).read_bytes()
    with full(len(before) + 1), pytest.raises(OSError, match="File too large"):
        data_command.main(["prepare", "MRPC", "--data_dir", str(published)])
    assert (published / prepare.SUMS).read_bytes() == before


def test_prepare_lists_what_could_not_be_had_and_where_it_is(published, capsys, monkeypatch):
    gone = (published / "nowhere.zip").as_uri()
    monkeypatch.setattr(prepare, "SETS", [prepare.Published("glue/RTE", prepare.TABLES, (gone,))])
    assert data_command.main(["prepare", "--data_dir", str(published)]) == 1
    printed = capsys.readouterr().out
    assert "could not download" in printed
    assert gone in printed
    assert not list((published / "glue/RTE").iterdir())


def test_a_download_with_another_checksum_is_refused(published, capsys, monkeypatch):
    url = prepare.SETS[0].urls[0]
    monkeypatch.setattr(prepare, "published_sums", lambda: {url: "0" * 64})
    assert data_command.main(["prepare", "CB", "--data_dir", str(published)]) == 1
    assert "expects 000000" in capsys.readouterr().out
    assert not (published / "superglue/CB/train.jsonl").exists()


def test_the_published_checksums_cover_every_zip():
    sums = prepare.published_sums()
    assert [u for p in prepare.SETS for u in p.urls if u.endswith(".zip") and u not in sums] == []


def test_an_unknown_set_offers_the_nearest():
    with pytest.raises(UserError, match=r"No set is called 'Boolq'.*'BoolQ'"):
        data_command.main(["prepare", "Boolq", "--data_dir", "x"])


def test_a_bare_name_means_every_set_of_that_name():
    folders = lambda *names: [p.folder for p in prepare._chosen(names)]
    assert folders("RTE") == ["superglue/RTE", "glue/RTE"] == folders("glue/RTE", "RTE")
    assert folders("superglue/RTE") == ["superglue/RTE"]
    assert len(folders()) == 19
    with pytest.raises(UserError, match="'RTE'"):
        folders("rte")


@pytest.mark.parametrize("content, said", [(b"\n0123\n", ":2 is '0123'"), (b"\xff\xfe\n", "is no text")])
def test_damaged_checksums_are_named(tmp_path, content, said):
    (tmp_path / prepare.SUMS).write_bytes(content)
    with pytest.raises(UserError, match=said):
        data_command.main(["prepare", "--verify", "--data_dir", str(tmp_path)])
