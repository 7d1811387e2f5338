"""A second start has the examples of the first without opening the task, and never those of a task that has changed."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from prompt_tuning import data, kept_tasks, made_from
from prompt_tuning.examples import Examples, Mixture
from prompt_tuning.vocabulary import Vocabulary

seqio = pytest.importorskip("seqio")

LENGTHS = {"inputs": 40, "targets": 10}
TASK = """
from prompt_tuning import metrics
from tasks import formats, registry, sources
from kept_labels import LABELS

read = sources.text_fields(("text",), ("0", "1"))
films = sources.local_only("films", read)
registry.add("kept_films", films, formats.classify(("text",), LABELS), [metrics.accuracy], LABELS)
"""
MODULES = ("kept_films_tasks", "kept_labels")


class Machine:
    """A working folder with a task of one's own, its data and a cache; `start` opens the task as if anew."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.vocabulary, self.patch, self.opened = folder, vocabulary, monkeypatch, 0
        self.data = folder / "spot" / "films"
        self.data.mkdir(parents=True)
        self.write("kept_labels.py", 'LABELS = ("bad", "good")\n')
        self.write("kept_films_tasks.py", TASK)
        self.write("spot/films/train.jsonl", '{"text": "a fine film", "label": "1"}\n{"text": "dull", "label": "0"}\n')
        self.write("spot/films/val.jsonl", '{"text": "it was a long day ' + "a b " * 20 + '", "label": "0"}\n')
        real, own = data.open_mixture, made_from.own_modules

        def counted(*arguments) -> Mixture:
            self.opened += 1
            return real(*arguments)

        monkeypatch.setattr(data, "open_mixture", counted)
        monkeypatch.setattr(made_from, "nothing_else_loaded", lambda: True)
        theirs = lambda found: {k: v for k, v in found.items() if k in MODULES or k.startswith("tasks")}
        monkeypatch.setattr(made_from, "own_modules", lambda roots=(): theirs(own(roots)))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("DATA_DIR", str(folder))
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)

    def write(self, name: str, text: str) -> None:
        """A file that has stood there for a while."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)
        os.utime(self.folder / name, (time.time() - 60,) * 2)

    def start(self, **changed) -> Mixture:
        for module in MODULES:
            sys.modules.pop(module, None)
        for file in self.folder.rglob("*.pyc"):
            file.unlink()  # a changed source may have its predecessor's age and size
        importlib.invalidate_caches()
        seqio.TaskRegistry.remove("kept_films")
        given = {"vocabulary": self.vocabulary, "lengths": LENGTHS, "module": "kept_films_tasks"} | changed
        return kept_tasks.open_mixture("kept_films", **given)

    def files(self) -> list[Path]:
        """Kept examples, those of the training split first."""
        return sorted((self.folder / "cache").rglob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)


@pytest.fixture
def machine(tmp_path, letters, monkeypatch) -> Machine:
    return Machine(tmp_path, letters, monkeypatch)


def plain(examples: Examples) -> tuple:
    ids = [examples.inputs[i].tolist() + examples.targets[i].tolist() for i in range(len(examples))]
    return examples.task, examples.split, ids, list(examples.texts), examples.truncated, examples.cut_targets


def loaded(mixture: Mixture) -> list[tuple]:
    (task,) = mixture.tasks
    return [plain(task.load(split)) for split in ("train", "validation", "train[:1]")]


def test_a_second_start_has_the_same_examples_and_opens_nothing(machine):
    first = machine.start()
    before = loaded(first)
    second = machine.start()
    assert loaded(second) == before and machine.opened == 1
    assert (second.name, second.rates) == (first.name, first.rates) == ("kept_films", (1.0,))
    told = lambda mixture: [(task.name, task.labels, task.splits) for task in mixture.tasks]
    assert told(second) == told(first) == [("kept_films", ("bad", "good"), ("train", "validation"))]
    examples = second.tasks[0].load("train")
    assert (examples.inputs.tokens.dtype, examples.inputs.starts.dtype) == (np.int32, np.int64)
    assert before[1][4] == 1, "the long text was cut"


def test_examples_are_those_of_the_task_itself(machine):
    machine.start().tasks[0].load("train")
    kept = machine.start()
    real = machine.start(lengths=LENGTHS | {"inputs": 41}).tasks[0].task  # which nothing is kept of
    assert type(real).__name__ == "SeqioTask" and plain(kept.tasks[0].load("train")) == plain(real.load("train"))


def test_a_score_is_the_tasks_own(machine):
    answers = ["good", "good"]
    first = machine.start().tasks[0]
    wanted = first.task.score(first.task.load("train"), answers)
    first.load("train")
    second = machine.start().tasks[0]
    examples = second.load("train")
    assert machine.opened == 1
    assert second.score(examples, answers) == wanted == {"accuracy": 50.0}
    assert machine.opened == 2, "a metric needs SeqIO"


def test_texts_and_streams_come_from_the_task_itself(machine):
    machine.start().tasks[0].load("train")
    task = machine.start().tasks[0]
    assert [text["targets_pretokenized"] for text in task.texts("train")] == ["good", "bad"]
    inputs, _ = next(task.stream("train", None))
    assert inputs.tolist() == task.load("train").inputs[0].tolist()


def replace(name: str, old: str, new: str):
    return lambda m: m.write(name, (m.folder / name).read_text().replace(old, new))


CHANGES = {
    "the data": replace("spot/films/train.jsonl", "fine", "poor"),
    "the data of another split": replace("spot/films/val.jsonl", "long", "fine"),
    "a file that is read instead": lambda m: m.write("spot/films/train.tsv", "text\tlabel\na poor film\t1\n"),
    "the task's module": replace("kept_films_tasks.py", '("text",), LABELS', '("text",), LABELS[::-1]'),
    "what its module imports": replace("kept_labels.py", "good", "fine"),
    "a module of that name found first": lambda m: m.write("kept_labels/__init__.py", 'LABELS = ("a", "b")\n'),
    "what is installed": lambda m: m.patch.setattr(made_from, "_installed_packages", lambda: ["seqio-99.dist-info"]),
    "the environment": lambda m: m.patch.setenv("TFDS_DATA_DIR", str(m.folder)),
    "the folder of the data": lambda m: m.patch.setenv("DATA_DIR", str(m.folder / "spot")),
    "this package": lambda m: m.patch.setattr(made_from, "PACKAGE", m.folder),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_task_is_opened_anew_after_a_change_of(machine, change):
    loaded(machine.start())
    change(machine)
    changed = loaded(machine.start())
    assert machine.opened == 2
    real = data.open_mixture("kept_films", machine.vocabulary, LENGTHS, "kept_films_tasks")
    assert changed == loaded(real), "and it has the examples of now"


def test_another_vocabulary_or_other_lengths_are_another_task(machine, home):
    loaded(machine.start())
    loaded(machine.start(lengths={"inputs": 20, "targets": 10}))
    copied = machine.folder / "copied.model"
    copied.write_bytes(Path(machine.vocabulary.path).read_bytes())
    loaded(machine.start(vocabulary=Vocabulary(copied)))
    assert machine.opened == 2, "the same vocabulary under another name is the same"
    loaded(machine.start(vocabulary=Vocabulary(home / "base" / "spiece.model")))
    assert machine.opened == 3


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "a digit of its description": lambda content: content.replace(b'truncated\\": 0', b'truncated\\": 7'),
    "something else": lambda content: b"<html>not found</html>" * 100,
}


@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_read_anew(machine, spoil):
    before = loaded(machine.start())
    files = [*machine.files(), *(machine.folder / "cache").rglob("task.json")]
    for file in files:
        spoiled = spoil(file.read_bytes())
        file.write_bytes(spoiled)
    assert loaded(machine.start()) == before and machine.opened == 2
    assert loaded(machine.start()) == before and machine.opened == 2, "and is whole again"


def test_a_file_of_another_split_or_program_is_not_taken(machine):
    before = loaded(machine.start())
    train, validation, first = machine.files()
    validation.write_bytes(train.read_bytes())
    save_file({"prompt": np.zeros(3, np.float32)}, first)
    assert loaded(machine.start()) == before and machine.opened == 2


def test_data_that_changes_while_it_is_read_is_not_kept(machine, monkeypatch):
    load = data.SeqioTask.load

    def slow(self, split):
        found = load(self, split)
        CHANGES["the data"](machine)
        return found

    monkeypatch.setattr(data.SeqioTask, "load", slow)
    assert "fine" in machine.start().tasks[0].load("train").texts[0]["inputs_pretokenized"]
    monkeypatch.setattr(data.SeqioTask, "load", load)
    assert not machine.files()
    assert "poor" in machine.start().tasks[0].load("train").texts[0]["inputs_pretokenized"]


REACHING = {
    "a file": "LABELS = tuple(open('labels.txt').read().split())\n",
    "the environment": "import os\nLABELS = ('bad', 'good')\n",
    "TensorFlow's files": "import tensorflow as tf\nREAD = tf.io.gfile.GFile\nLABELS = ('bad', 'good')\n",
    "the clock": "from datetime import datetime\nLABELS = ('bad', 'good')\n",
}


@pytest.mark.parametrize("source", REACHING.values(), ids=REACHING)
def test_a_module_that_looks_at_more_than_its_arguments_is_opened_each_time(machine, source):
    machine.write("labels.txt", "bad good")
    machine.write("kept_labels.py", source)
    for opened in (1, 2):
        machine.start().tasks[0].load("train")
        assert machine.opened == opened and not machine.files()


def test_a_source_that_does_not_tell_its_files_is_opened_each_time(machine):
    source = "import seqio\nfilms = seqio.TextLineDataSource({'train': 'x'})\n"
    machine.write("kept_films_tasks.py", TASK.replace('films = sources.local_only("films", read)\n', source))
    machine.start()
    machine.start()
    assert machine.opened == 2


def test_a_cache_that_cannot_be_written_keeps_nothing_and_says_nothing(machine, monkeypatch, capsys):
    (machine.folder / "cache").write_text("a file stands where the folder would")
    before = loaded(machine.start())
    assert loaded(machine.start()) == before and machine.opened == 2
    (machine.folder / "cache").unlink()
    loaded(machine.start())

    class Full(kept_tasks.replacing):
        def __enter__(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_tasks, "replacing", Full)
    CHANGES["the data"](machine)
    loaded(machine.start())
    assert capsys.readouterr() == ("", "")


def test_what_was_not_used_for_longest_goes_first(machine, monkeypatch):
    monkeypatch.setattr(kept_tasks, "MOST_BYTES", 10_000)
    machine.write("cache/prompt_tuning/tasks/.DS_Store", "of somebody else")
    for n in range(4):
        machine.start(lengths={"inputs": 20 + n, "targets": 10}).tasks[0].load("train")
    folders = list((machine.folder / "cache" / "prompt_tuning" / "tasks").glob("*/"))
    assert 1 <= len(folders) < 4
    machine.start(lengths={"inputs": 23, "targets": 10}).tasks[0].load("train")
    assert machine.opened == 4, "the last one is there"


def test_cut_targets_are_told_of_at_every_start(machine):
    for _ in range(2):
        task = machine.start(lengths={"inputs": 40, "targets": 10}).tasks[0]
        object.__setattr__(task, "labels", ())
        assert task.load("train").cut_targets == 0
    machine.write("kept_labels.py", 'LABELS = ("bad", "good")\n')
    machine.write("kept_films_tasks.py", TASK.replace(", LABELS)\n", ")\n"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="of kept_films, train, are longer than 2"):
            machine.start(lengths={"inputs": 40, "targets": 2}).tasks[0].load("train")
    assert machine.opened == 2


def test_a_prepared_set_of_tensorflow_datasets_is_known_by_its_version(tmp_path, monkeypatch):
    from tasks.sources import Source

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    splits = {"train": "train"}
    assert Source("a/b:1.0.0", splits).looked_at() is None, "what is not there yet"
    (tmp_path / "a" / "b" / "1.0.0").mkdir(parents=True)
    (tmp_path / "a" / "b" / "1.0.0" / "dataset_info.json").write_text("{}")
    assert Source("a/b:1.0.0", splits).looked_at() == [tmp_path / "a" / "b" / "1.0.0" / "dataset_info.json"]


def test_where_other_code_is_loaded_tasks_are_opened(monkeypatch):
    assert not made_from.nothing_else_loaded(), "these tests could have registered one"
    monkeypatch.setattr(made_from, "own_modules", dict)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", made_from.__file__, raising=False)
    assert made_from.nothing_else_loaded()
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert not made_from.nothing_else_loaded(), "a notebook can register tasks"


def test_a_second_start_imports_no_tensorflow(tmp_path, letters):
    glue = tmp_path / "glue" / "SST-2"
    glue.mkdir(parents=True)
    (glue / "train.tsv").write_text("sentence\tlabel\na fine film\t1\ndull\t0\n")
    (tmp_path / "start.py").write_text(f"""
import sys
from prompt_tuning import made_from, run, vocabulary
made_from.nothing_else_loaded = lambda: True
own = vocabulary.Vocabulary({letters.path!r})
task = run.Data(data_dir={str(tmp_path)!r}, lengths={LENGTHS!r}).open("glue_sst2", own).tasks[0]
print("\\n".join([" ".join(map(str, task.load("train").inputs.tokens)), str("tensorflow" in sys.modules)]))
""")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    start = lambda: subprocess.run(
        [sys.executable, "start.py"], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    (first, imported, _), (second, again, _) = start(), start()
    assert first == second and (imported, again) == ("True", "False")


def test_all_that_decides_what_a_task_gives_is_in_its_key(letters, tmp_path, monkeypatch):
    given = {"name": "a", "vocabulary": letters, "lengths": LENGTHS, "module": None, "data_dir": None}
    found = [made_from.key(**given)]
    tell = lambda **changed: found.append(made_from.key(**given | changed))
    others = {"name": "b", "module": "my_tasks", "data_dir": str(tmp_path), "lengths": LENGTHS | {"targets": 11}}
    for argument, other in others.items():
        tell(**{argument: other})
    tell(vocabulary=SimpleNamespace(path=letters.path, extra_ids=letters.extra_ids + 1))
    for variable in ("DATA_DIR", "TFDS_DATA_DIR", "HOME", "XDG_CONFIG_HOME", "PYTHONPATH"):
        monkeypatch.setenv(variable, f"/of/{variable}")
        tell()
    (tmp_path / "seqio-99.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    tell()
    monkeypatch.setattr(sys, "version", "4.0")
    tell()
    monkeypatch.chdir(tmp_path)
    tell()
    assert len(set(found)) == len(found) == 1 + 4 + 1 + 5 + 3
    assert made_from.key(**given) == found[-1]


def test_code_that_changed_after_the_start_may_not_be_what_was_loaded(tmp_path, monkeypatch):
    module = tmp_path / "late_tasks.py"
    module.write_text("LABELS = ('a', 'b')\n")
    monkeypatch.setattr(made_from, "own_modules", lambda roots: {"late_tasks": str(module)})
    monkeypatch.setattr(made_from, "_opened", set())
    changed = module.stat().st_mtime
    assert made_from.record("late_tasks", {}, changed) is None
    record = made_from.record("late_tasks", {}, changed + 1)
    assert record["modules"]["late_tasks"]["file"] == str(module)


def test_an_installed_module_counts_where_tasks_are_asked_of_it(tmp_path, monkeypatch):
    names = ("asked_tasks", "asked_tasks.more", "another")
    loaded = {name: SimpleNamespace(__file__=str(tmp_path / "site-packages" / f"{name}.py")) for name in names}
    monkeypatch.setattr(made_from, "sys", SimpleNamespace(modules=loaded))
    assert made_from.own_modules(["asked_tasks"]).keys() == {"asked_tasks", "asked_tasks.more"}


def test_the_task_that_was_not_used_for_longest_goes_first_and_never_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tasks, "MOST_BYTES", 250)
    for name, age in (("recent", 100), ("old", 300), ("oldest", 400), ("new", 500), ("unfinished", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("part" if name == "unfinished" else "task.json")).write_bytes(bytes(100))
        os.utime(tmp_path / name / next((tmp_path / name).iterdir()).name, (time.time() - age,) * 2)
    kept_tasks._forget_oldest(tmp_path / "new")
    assert {place.name for place in tmp_path.iterdir()} == {"recent", "new"}


def test_a_start_that_takes_what_is_kept_uses_it(tmp_path):
    told = {"made_from": {"modules": {}, "data": {}}}
    file = tmp_path / kept_tasks.MANIFEST
    file.write_text(json.dumps(kept_tasks._sealed(told)))
    os.utime(file, (time.time() - 1000,) * 2)
    assert kept_tasks._manifest(tmp_path) == told
    assert time.time() - file.stat().st_mtime < 100


def test_texts_are_found_by_every_index_a_list_has():
    rows = [{"a": n, "b": "ä" * n} for n in range(4)]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    starts = np.cumsum([0, *map(len, lines)])
    texts = kept_tasks.Texts(np.frombuffer(b"".join(lines), np.uint8), starts)
    assert [texts[i] for i in range(-4, 4)] == rows + rows and texts[1:3] == rows[1:3] and texts[::-2] == rows[::-2]
    for i in (4, -5):
        with pytest.raises(IndexError):
            texts[i]


SEEING = {
    "files by another name": "from tensorflow.io import gfile as found",
    "a package's chance": "from numpy.random import normal",
    "a package's chance, renamed": "import numpy.random as steady",
    "a method that reads": "LABELS = PLACE.read_text().split()",
    "what Python gives": "LABELS = eval('a')",
    "a package of whatever": "import pandas",
    "a part of a package of whatever": "from pandas.core import frame",
    "what is no Python": "LABELS = (",
}


@pytest.mark.parametrize("source", SEEING.values(), ids=SEEING)
def test_code_that_may_see_more_than_its_arguments_is_known_by_its_words(tmp_path, source):
    module = tmp_path / "own.py"
    module.write_text(source)
    assert not made_from._looks_at_arguments_only(module, {"own": str(module)})


def test_code_that_sees_its_arguments_only_may_import_what_is_looked_at_too(tmp_path):
    module = tmp_path / "own.py"
    module.write_text(
        "import re\nimport theirs.more\nfrom theirs import words\nfrom . import labels\nfrom .a import b\n"
    )
    assert made_from._looks_at_arguments_only(module, {"theirs": None, "theirs.more": None})
    assert not made_from._looks_at_arguments_only(module, {"others": None})
