"""A task is a TOML file, and every mistake in it or in its data is named with file and line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from prompt_tuning import metrics
from prompt_tuning.errors import UserError
from prompt_tuning.task_file import Description, open_task_file
from prompt_tuning.vocabulary import Vocabulary

LENGTHS = {"inputs": 64, "targets": 8}
NLI = """
inputs = "hypothesis: {hypothesis} premise: {premise}"
target = "label"
labels = ["entailment", "neutral"]
train = "train.jsonl"
"""
ROWS = [
    {"hypothesis": "the film is thin", "premise": "a thin plot", "label": "entailment"},
    {"hypothesis": "it rains", "premise": "a good film", "label": "neutral"},
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vocabulary")
    lines = [
        "hypothesis: premise: sentence: entailment neutral negative positive",
        "abcdefghijklmnopqrstuvwxyz TF {}0123.",
    ]
    (folder / "corpus.txt").write_text("\n".join(lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tiny"), vocab_size=80, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return Vocabulary(folder / "tiny.model", extra_ids=10)


@pytest.fixture
def write(tmp_path, vocabulary):
    """Writes a task file and its data; returns the opened task."""

    def write(toml: str = NLI, lengths=LENGTHS, **files):
        files = files or {"train.jsonl": "".join(json.dumps(r) + "\n" for r in ROWS)}
        for name, content in files.items():
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "nli.toml").write_text(toml)
        return open_task_file(tmp_path / "nli.toml", vocabulary, lengths).tasks[0]

    return write


def test_the_template_makes_the_text_and_the_file_names_the_task(write, vocabulary):
    task = write()
    examples = task.load("train")
    assert (task.name, task.labels, task.splits) == ("nli", ("entailment", "neutral"), ("train",))
    assert examples.texts[0]["inputs_pretokenized"] == "hypothesis: the film is thin premise: a thin plot"
    assert examples.inputs[0].tolist() == [*vocabulary.encode(examples.texts[0]["inputs_pretokenized"]), 1]
    assert [vocabulary.decode(t) for t in (examples.targets[0], examples.targets[1])] == ["entailment", "neutral"]


def test_bytes_are_text_in_utf_8(vocabulary):
    task = lambda text: Description({"inputs": "a {text}", "target": "{text}", "train": [{"text": text}]}).open(vocabulary, LENGTHS)  # fmt: skip # noqa: E501
    (text,) = task("zoë".encode()).tasks[0].texts("train")
    assert text["inputs_pretokenized"] == "a zoë"
    with pytest.raises(UserError, match=r"train\[0\]: byte 3 of the column 'text' is not UTF-8"):
        task("zoë".encode("latin1")).tasks[0].texts("train")
    with pytest.raises(UserError, match="which is no text"):
        task(("a", "b")).tasks[0].texts("train")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_examples(write, tmp_path, ending):
    columns, cells = list(ROWS[0]), [list(r.values()) for r in ROWS]
    files = {
        "jsonl": "".join(json.dumps(r) + "\n" for r in ROWS),
        "csv": ",".join(columns) + "\r\n" + "".join(",".join(f'"{c}"' for c in row) + "\r\n" for row in cells),
        "tsv": "\t".join(columns) + "\n" + "".join("\t".join(row) + "\n" for row in cells),
        "parquet": b"",
    }
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
        files["parquet"] = (tmp_path / "x.parquet").read_bytes()
    task = write(NLI.replace("train.jsonl", f"train.{ending}"), **{f"train.{ending}": files[ending]})
    assert [t["inputs_pretokenized"] for t in task.load("train").texts] == [
        f"hypothesis: {r['hypothesis']} premise: {r['premise']}" for r in ROWS
    ]


def test_labels_may_be_numbers_or_a_table_from_the_columns_values(write):
    toml = 'inputs = "sentence: {s}"\ntarget = "y"\nlabels = %s\ntrain = "t.jsonl"\n'
    rows = '{"s": "good", "y": %s}\n{"s": "bad", "y": %s}\n'
    for labels, values in (
        ('["negative", "positive"]', ("1", "0")),
        ('["negative", "positive"]', ("true", "false")),
        ('["negative", "positive"]', ("1.0", "0.0")),
        ('{0 = "negative", 1 = "positive"}', ("1.0", "0.0")),
        ('{false = "negative", true = "positive"}', ("true", "false")),
        ('{"-" = "negative", "+" = "positive"}', ('"+"', '"-"')),
    ):
        examples = write(toml % labels, **{"t.jsonl": rows % values}).load("train")
        assert [t["targets_pretokenized"] for t in examples.texts] == ["positive", "negative"]


SENTENCE = 'inputs = "sentence: {s}"\ntarget = "y"\nlabels = %s\ntrain = "t.jsonl"\n'


def test_labels_that_are_numbers_or_truths_stand_for_themselves_alone(write):
    for labels, value, expected in (
        (["1", "2"], 1, "1"),
        (["2", "1"], 1, "1"),
        (["True", "False"], True, "True"),
        (["True", "False"], False, "False"),
    ):
        task = write(SENTENCE % json.dumps(labels), **{"t.jsonl": json.dumps({"s": "good", "y": value})})
        assert [t["targets_pretokenized"] for t in task.load("train").texts] == [expected]
    with pytest.raises(UserError, match=r"label '0'; .* knows '1', '2'"):
        write(SENTENCE % '["1", "2"]', **{"t.jsonl": '{"s": "good", "y": 0}'}).load("train")
    with pytest.raises(UserError, match=r"label 'good'; .* knows '0', '1'"):
        write(SENTENCE % '{0 = "bad", 1 = "good"}', **{"t.jsonl": '{"s": "good", "y": "good"}'}).load("train")


def test_several_files_of_one_split_are_read_one_after_another(write):
    files = {f"{n}.jsonl": json.dumps(row) for n, row in enumerate(ROWS)}
    task = write(NLI.replace('"train.jsonl"', '["1.jsonl", "0.jsonl"]'), **files)
    assert [t["targets_pretokenized"] for t in task.load("train").texts] == ["neutral", "entailment"]
    assert len(task.load("train[:1]")) == 1


def test_a_brace_that_is_written_twice_is_a_brace_of_the_text(write):
    task = write(NLI.replace("hypothesis:", "{{hypothesis}}"))
    text = task.load("train").texts[0]["inputs_pretokenized"]
    assert text == "{hypothesis} the film is thin premise: a thin plot"


def test_a_correlation_takes_an_answer_without_a_number_as_minus_one(write):
    toml = (SENTENCE + 'metric = "pearson"\n').replace("labels = %s\n", "")
    rows = "".join(json.dumps({"s": "good", "y": y}) + "\n" for y in (1, 2, 3))
    task = write(toml, **{"t.jsonl": rows})
    found = task.score(task.load("train"), ["1", "2.0", "good"])
    assert found == task.score(task.load("train"), ["1", "2.0", "infinity"])
    assert found == metrics.pearson([1.0, 2.0, 3.0], [1.0, 2.0, -1.0]) != metrics.pearson([1, 2, 3], [1, 2, 0])


def test_blanks_around_a_free_answer_make_it_no_other(write):
    row = {"hypothesis": "a", "premise": "b", "label": " thin"}
    task = write(NLI.replace('labels = ["entailment", "neutral"]\n', ""), **{"train.jsonl": json.dumps(row)})
    examples = task.load("train")
    assert task.score(examples, ["thin "]) == {"accuracy": 100} != task.score(examples, ["th in"])


def test_long_inputs_are_cut_and_counted_and_still_end(write):
    examples = write(lengths={"inputs": 5, "targets": 8}).load("train")
    assert examples.truncated == 2
    assert examples.inputs.lengths.tolist() == [5, 5]
    assert examples.inputs[0][-1] == 1


def test_metrics_count_a_text_that_is_no_label_as_wrong(write):
    task = write(NLI.replace("train =", 'metric = ["accuracy", "macro_f1"]\ntrain ='))
    examples = task.load("train")
    assert task.score(examples, ["entailment", "neutral"]) == {"accuracy": 100.0, "mean_2class_f1": 100.0}
    assert task.score(examples, ["entailment", "nonsense"]) == {"accuracy": 50.0, "mean_2class_f1": 50.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"hypothesis": "a", "premise": "b", "label": "neutral"}\n{"hypothesis": "a", "pre',
            r"jsonl:2: not JSON.*truncated",
        ),
        ('{"hypothesis": "a", "premise": "b", "label": "neutrl"}', r"jsonl:1: label 'neutrl'.*mean 'neutral'"),
        (b'{"hypothesis": "caf\xe9", "premise": "b", "label": "neutral"}', r"jsonl:1: byte 20 .*0xe9.* not UTF-8"),
        ('\n{"hypothesis": "", "premise": "b", "label": "neutral"}', r"jsonl:2: the column 'hypothesis' is empty"),
        ('{"hypothesis": "a", "premis": "b", "label": "neutral"}', r"jsonl:1: no column 'premise'.*mean 'premis'"),
        ("3", r"jsonl:1: expected a JSON object .* found int"),
        ('[{"hypothesis": "a"}]', r"jsonl:1: expected a JSON object .* found a list. `jq -c"),
        ('[\n  {"hypothesis": "a"}\n]', r"jsonl:1: expected a JSON object .* found a list. `jq -c"),
        ("", "holds no examples"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(write, content, message):
    with pytest.raises(UserError, match=message):
        write(**{"train.jsonl": content}).load("train")


def test_a_row_of_another_width_is_named_with_file_and_line(write):
    with pytest.raises(UserError, match=r"train\.tsv:3: 2 columns where 3"):
        write(
            NLI.replace("jsonl", "tsv"),
            **{"train.tsv": "hypothesis\tpremise\tlabel\na\tb\tneutral\na\tneutral\n"},
        ).load("train")


def test_a_quote_that_ends_inside_a_cell_is_named_with_file_and_line(write):
    with pytest.raises(UserError, match=r"train\.csv:2: not CSV"):
        write(
            NLI.replace("jsonl", "csv"),
            **{"train.csv": 'hypothesis,premise,label\na,"b" c,neutral\n'},
        ).load("train")


def test_a_cell_may_hold_a_long_text(write):
    long = "thin " * 30_000
    task = write(NLI.replace("jsonl", "csv"), **{"train.csv": f'hypothesis,premise,label\n"{long}",b,neutral\n'})
    assert long in task.load("train").texts[0]["inputs_pretokenized"]


SQUAD = NLI.replace('labels = ["entailment", "neutral"]\n', "") + 'metric = "squad"\n'


def test_a_list_of_answers_is_trained_on_by_its_first_and_scored_by_all(write):
    row = {"hypothesis": "a", "premise": "b", "label": ["thin", "a thin plot"]}
    task = write(SQUAD, **{"train.jsonl": json.dumps(row)})
    examples = task.load("train")
    assert examples.texts[0]["targets_pretokenized"] == "thin"
    assert task.score(examples, ["a thin plot"])["em"] == task.score(examples, ["thin"])["em"] == 100
    assert task.score(examples, ["a film"])["em"] == 0


@pytest.mark.parametrize(
    "toml, row, message",
    [
        (NLI, {"label": ["neutral"]}, "'label' holds .'neutral'., which is no text"),
        (NLI, {"label": "neutral", "premise": {"a": 1}}, "'premise' holds"),
        (SQUAD, {"label": []}, "a list of answers holds texts"),
        (SQUAD, {"label": ["thin", 3]}, "a list of answers holds texts"),
    ],
)
def test_a_column_that_is_no_text_is_refused(write, toml, row, message):
    with pytest.raises(UserError, match=message):
        write(toml, **{"train.jsonl": json.dumps({"hypothesis": "a", "premise": "b"} | row)}).load("train")


def test_two_columns_of_one_name_are_refused(write):
    content = "hypothesis\tpremise\tlabel\tpremise\na\tb\tneutral\tc\n"
    with pytest.raises(UserError, match=r"train\.tsv:1: two columns are called 'premise'"):
        write(NLI.replace("jsonl", "tsv"), **{"train.tsv": content}).load("train")


def test_the_first_examples_of_a_split_can_be_had_alone(write):
    assert len(write().load("train[:1]")) == 1
    with pytest.raises(UserError, match=r"no split 'validation'.*EVAL_SPLIT=.train\[:200\]"):
        write().load("validation")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (NLI.replace("labels", "label"), "unknown setting 'label'.*'labels'"),
        (NLI.replace('target = "label"', ""), "target is missing"),
        (NLI.replace("{hypothesis}", "x").replace("{premise}", "y"), "names no column"),
        (NLI.replace('train = "train.jsonl"', ""), "names no data"),
        (
            NLI.replace('"neutral"', '"neutral", "none"') + 'metric = "f1"',
            "f1 is of the second of two labels, and there are 3; macro_f1",
        ),
        (NLI + 'metric = "acuracy"', "unknown metric 'acuracy'.*'accuracy'"),
        (NLI.replace('"neutral"', '"中立"'), "cannot spell the label '中立'"),
        (NLI.replace('"neutral"', '"neutral", "neutral "'), "labels 'neutral' and 'neutral ' .* are the same pieces"),
        (NLI.replace('"neutral"', '"entailment"'), "labels should be a list of different texts"),
        (NLI.replace("labels", "# labels") + 'metric = "pearson"', "jsonl:1: the target 'entailment' is no number"),
        ("inputs = ", "not TOML"),
        (NLI.replace("train.jsonl", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (NLI.replace("train.jsonl", "train.xlsx"), "does not exist"),
    ],
)
def test_a_mistake_in_the_task_file_says_what_to_write(write, toml, message):
    with pytest.raises(UserError, match=message):
        write(toml).load("train")


def test_data_given_as_a_task_file_is_refused_with_an_example(write, tmp_path, vocabulary):
    write()
    with pytest.raises(UserError, match=r"train\.jsonl is data[\s\S]*\ninputs ="):
        open_task_file(tmp_path / "train.jsonl", vocabulary, LENGTHS)


def test_a_missing_task_file_is_named(vocabulary):
    with pytest.raises(UserError, match=r"nowhere\.toml does not exist"):
        open_task_file("nowhere.toml", vocabulary, LENGTHS)


def test_a_task_file_needs_no_tensorflow():
    code = "import sys, prompt_tuning.task_file; assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
