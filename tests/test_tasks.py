"""Every task makes the papers' text and runs from tokens to metric, on mock data and on constructed official files."""

import ast
import json
import re
from pathlib import Path

import pytest

from prompt_tuning import data
from prompt_tuning.data import known_names, open_mixture
from prompt_tuning.errors import UserError
from tasks import sources
from tasks.reference_names import own_name

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

TASKS, MIXTURES = known_names()
PLAIN = [
    t for t in TASKS if not t.endswith("_prefixed") and t.startswith(("superglue", "glue", "squad", "mrqa", "nli"))
]
PLAIN += [t for t in TASKS if not t.endswith("_prefixed") and t.startswith(("spot", "summarize", "c4"))]
LOCAL_ONLY = {"spot_cr", "spot_cxc", "spot_alpha_nli", "spot_social_iqa"}
# Mock data draws label numbers and list lengths at random, which these sets do not survive.
NOT_MOCKED = {"spot_hellaswag", "spot_race_middle", "spot_race_high"}


@pytest.mark.parametrize("name", sorted(set(PLAIN) - LOCAL_ONLY - NOT_MOCKED))
def test_a_task_runs_from_mock_data_to_its_metric(name, letters, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    if name.startswith("spot_wmt"):
        pytest.importorskip("sacrebleu", reason="BLEU is sacrebleu's, which is no dependency")
    with tfds.testing.mock_data(num_examples=4):
        task = open_mixture(name, letters, {"inputs": 128, "targets": 64}).tasks[0]
        examples = task.load("validation" if "validation" in task.splits else task.splits[-1])
    assert len(examples) >= 1
    assert all(examples.inputs[i][-1] == 1 and examples.targets[i][-1] == 1 for i in range(len(examples)))
    if name.startswith("c4"):
        return
    scores = task.score(examples, [t["targets_pretokenized"] for t in examples.texts])
    assert scores
    for metric, value in scores.items():  # ROUGE-2 of a single word is 0, also of the right one
        drawn = name == "superglue_wsc"  # whether the referent on trial is right is drawn at random
        assert metric == "rouge2" or drawn or value == pytest.approx(100) or value == 0, (metric, value)
    if task.labels:
        assert {t["targets_pretokenized"] for t in examples.texts} <= {*task.labels, "<unk>"}


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture_shares_out_its_rates_without_reading_data(name, letters):
    mixture = seqio.MixtureRegistry.get(name)
    assert {t.name for t in mixture.tasks} <= set(TASKS)
    assert all(isinstance(rate, (int, float)) for rate in mixture.rate_per_task_name.values())


def test_tensorflow_datasets_can_make_every_set_that_is_named():
    sources = [seqio.TaskRegistry.get(name).source for name in TASKS]
    named = {source.tfds_name for source in sources if getattr(source, "tfds_name", None)}
    newest = {name: f"{name.split(':')[0]}:{tfds.builder(name.split(':')[0]).version}" for name in sorted(named)}
    assert len(named) > 60 and [name for name, new in newest.items() if name != new] == [], "older ones are not made"


def test_the_sources_and_targets_of_the_transfer_study_are_registered():
    recipe = (Path(__file__).parents[1] / "gin" / "papers" / "spot_base.gin").read_text()
    sources, targets = (
        ast.literal_eval(re.search(rf"^{name} = (\[.*?\])", recipe, re.MULTILINE | re.DOTALL)[1])
        for name in ("SOURCES", "TARGETS")
    )
    assert (len(set(sources)), len(set(targets))) == (15, 10)  # the 16th, C4, is a run of its own
    assert {*sources, *targets, "c4_prefix_lm"} <= {*TASKS, *MIXTURES}


def test_every_tasks_name_can_be_grepped():
    sources = "".join(p.read_text() for p in (Path(__file__).parents[1] / "tasks").glob("*.py"))
    missing = [t for t in TASKS if t.removesuffix("_prefixed") not in sources and not t.startswith(("my_", "data_"))]
    assert not missing


# fmt: off
REFERENCE = [
    "taskless_super_glue_boolq_v102_examples", "taskless_super_glue_axb_v102", "super_glue_record_v102_examples",
    "taskless_super_glue_wsc_and_dev_v102_simple_examples", "taskless_dpr_v001_simple_examples",
    "mt5_taskless_glue_sst2_v200_examples", "taskless_glue_mnli_and_dev_v002_examples", "glue_stsb_v002",
    "squad_v010_allanswers_examples", "mrqa_bio_asq_v100_examples", "squad_to_mrqa_examples", "squad_to_drop_examples",
    "taskless_glue_mrpc_from_qqp_zeroshot_v002_examples", "taskless_glue_qqp_from_mrpc_v002", "xsum_v110_examples",
    "cnn_dailymail_v310_examples", "spot_glue_mnli_and_dev_v200", "spot_glue_qnli_v200", "spot_mrqa_hotpot_qa_v100",
    "spot_anli_r2_v010", "spot_doc_nli_v100", "spot_snli_v110", "spot_aeslc_v100", "spot_newsroom_v100",
    "c4_v220_prefix_lm",
]
# fmt: on


@pytest.mark.parametrize("name", REFERENCE)
def test_a_reference_name_leads_to_a_registered_task(name):
    assert name not in TASKS  # so that it cannot clash with an installed t5
    assert own_name(name) in {*TASKS, *MIXTURES}


def texts(name, example, letters):
    """What a task makes of one raw example of TensorFlow Datasets."""
    task = open_mixture(name, letters, {"inputs": 512, "targets": 64}).tasks[0]
    rows = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors(
            tf.nest.map_structure(lambda v: v if tf.is_tensor(v) else tf.constant(v), example)
        ),
        splits=["train"],
    )
    object.__setattr__(task, "task", task.task.replace(source=rows))
    return [(t["inputs_pretokenized"], t["targets_pretokenized"]) for t in task.load("train").texts]


FORMATS = [
    ("superglue_axb", {"sentence1": "It is.", "sentence2": "Is it?", "label": 1, "idx": 0},
     ("hypothesis: Is it? premise: It is.", "not_entailment")),
    ("superglue_boolq_prefixed", {"question": "is it", "passage": "P -- text", "label": 1, "idx": 0},
     ("boolq passage: P -- text question: is it", "True")),
    ("superglue_cb", {"premise": "p", "hypothesis": "h", "label": 2, "idx": 0},
     ("hypothesis: h premise: p", "neutral")),
    ("superglue_cb", {"premise": "p", "hypothesis": "h", "label": -1, "idx": 0}, ("hypothesis: h premise: p", "<unk>")),
    ("superglue_copa", {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0, "idx": 0},
     ("choice1: a choice2: b premise: p question: cause", "choice1")),
    ("superglue_multirc", {"question": "<b>q</b>", "answer": "a", "paragraph": "one<br>two", "label": 0,
                               "idx": {"paragraph": 1, "question": 2, "answer": 3}},
     ("question: q answer: a paragraph: one two", "False")),
    ("superglue_wic", {"word": "w", "sentence1": "a", "sentence2": "b", "label": 1, "idx": 0, "start1": 0},
     ("sentence1: a sentence2: b word: w", "True")),
    ("superglue_wsc_prefixed", {"text": "Bob asked Tom if he can lend some.", "span1_text": "Tom", "span1_index": 2,
                                    "span2_text": "he", "span2_index": 4, "label": 1, "idx": 0},
     ("wsc: Bob asked Tom if *he* can lend some.", "Tom")),
    ("superglue_dpr", {"sentence": "Bees like flowers as they need them, they say.", "pronoun": "they",
                           "candidates": tf.constant(["Bees", "flowers"]), "label": 0},
     ("Bees like flowers as *they* need them, they say.", "Bees")),
    ("glue_mnli", {"premise": "p", "hypothesis": "h", "label": 1, "idx": 0}, ("hypothesis: h premise: p", "neutral")),
    ("glue_qqp_prefixed", {"question1": "a?", "question2": "b?", "label": 1, "idx": 0},
     ("qqp question1: a? question2: b?", "duplicate")),
    ("glue_rte", {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
     ("sentence1: a sentence2: b", "not_entailment")),
    ("nli_anli_r1_prefixed", {"hypothesis": "h  h", "context": "c\nc", "label": 0, "uid": "x"},
     ("anli_r1 hypothesis: h h context: c c", "entailment")),
    ("squad", {"question": "Who's he?", "context": "He (Tom) came.", "id": "x", "title": "t",
                   "answers": {"text": tf.constant(["Tom", "He (Tom)"]), "answer_start": tf.constant([4, 0])}},
     ("question: Who ' s he ? context: He ( Tom ) came . ", "Tom")),
    ("summarize_samsum_prefixed", {"dialogue": "A: hi", "summary": "greeting", "id": "x"},
     ("samsum summarize: A: hi", "greeting")),
    ("spot_sentiment140", {"text": "happy", "polarity": 4}, ("text: happy", "positive")),
    ("spot_sentiment140_prefixed", {"text": "sad", "polarity": 0}, ("sentiment140 text: sad", "negative")),
    ("spot_winogrande", {"sentence": "_ ran", "option1": "I", "option2": "you", "label": 1},
     ("option1: I option2: you sentence: _ ran", "option2")),
    ("spot_hellaswag", {"context": "he", "endings": tf.constant(["a", "b", "c", "d"]), "label": 2},
     ("context: he ending0: a ending1: b ending2: c ending3: d", "ending2")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "example", "expected"), FORMATS, ids=[f[0] for f in FORMATS])
def test_the_text_is_the_papers(name, example, expected, letters):
    assert texts(name, example, letters) == [expected]


@pytest.mark.parametrize(
    ("score", "target"), [(3.8, "3.8"), (3.75, "3.8"), (2.3, "2.4"), (0.0, "0.0"), (5.0, "5.0"), (-1.0, "<unk>")]
)
def test_similarity_is_rounded_to_fifths_and_below_0_is_kept_back(score, target, letters):
    example = {"sentence1": "a", "sentence2": "b", "label": tf.constant(score, tf.float32), "idx": 0}
    assert texts("glue_stsb", example, letters) == [("sentence1: a sentence2: b", target)]


def test_record_is_one_example_for_each_answer_and_its_highlights_are_sentences(letters):
    example = {
        "passage": "He came.\n@highlight\nHe saw\n@highlight\nHe won",
        "query": "@placeholder won",
        "entities": tf.constant(["Caesar", "Rome"]),
        "answers": tf.constant(["Caesar", "Julius"]),
        "idx": {"passage": 1, "query": 2},
    }
    inputs = "query: @placeholder won entities: Caesar, Rome passage: He came. He saw. He won"
    assert texts("superglue_record", example, letters) == [(inputs, "Caesar"), (inputs, "Julius")]


def test_race_is_one_example_for_each_question(letters):
    example = {
        "article": "x",
        "questions": tf.constant(["q", "r"]),
        "answers": tf.constant(["B", "D"]),
        "options": tf.constant([["1", "2", "3", "4"], ["5", "6", "7", "8"]]),
        "example_id": "e",
    }
    assert texts("spot_race_high", example, letters) == [
        ("A: 1 B: 2 C: 3 D: 4 article: x question: q", "B"),
        ("A: 5 B: 6 C: 7 D: 8 article: x question: r", "D"),
    ]


@pytest.mark.parametrize(
    ("text", "pronoun", "index", "marked"),
    [
        ('"Good for him," he said.', "him", 2, '"Good for *him* ," he said.'),
        ("they might want to use it , really", "it", 4, "they might want to use *it* , really"),
        ("it came", "it", 0, "*it* came"),
    ],
)
def test_a_pronoun_is_marked_also_where_the_index_is_off_or_punctuation_sticks_to_it(text, pronoun, index, marked):
    from tasks.superglue import mark_pronoun

    assert mark_pronoun(tf.constant(text), tf.constant(pronoun), tf.constant(index)).numpy().decode() == marked


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [("the hat", 0), ("bob's", 1), ("Bob's red hat", 1), ("Bob", 0), ("", -1), ("the", -1), ("Tom's", 0)],
)
def test_a_referent_matches_by_its_words(prediction, verdict):
    from tasks.answers import referent

    example = {"targets_pretokenized": b"Bob's hat" if prediction != "bob's" else b"Bob's", "label": 1}
    if prediction == "the hat":
        verdict = 0  # without an apostrophe it is another name
    assert referent(prediction, example) == verdict
    assert referent(prediction, example, is_target=True) == 1


def test_a_text_that_is_no_number_counts_as_one_that_is_no_similarity():
    from tasks.answers import number

    assert [number(text) for text in ("3.8", "alike", "nan", "-inf")] == [3.8, -1, -1, -1]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("glue_mrpc_from_qqp", ("not_duplicate", "duplicate")),
        ("glue_qqp_from_mrpc", ("not_equivalent", "equivalent")),
    ],
)
def test_a_paraphrase_prompt_is_asked_the_other_task_in_its_own_words(name, labels, letters):
    with tfds.testing.mock_data(num_examples=4):
        trained, asked = sorted(open_mixture(name, letters).tasks, key=lambda task: "train" not in task.splits)
        examples = asked.load("validation")
    assert (trained.labels, asked.labels, asked.splits) == (labels, labels, ("validation",))
    truth = [t["targets_pretokenized"] for t in examples.texts]
    assert set(truth) <= set(labels) and asked.score(examples, truth)["accuracy"] == 100


# ---------------------------------------------------------------- official files


def official(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path)


CB = '{"premise": "p", "hypothesis": "h", "label": "neutral", "idx": 0}\n'
BROKEN = [
    ("superglue_cb", "superglue/CB/train.jsonl", CB + '{"premise": "p", "hypo', r"train\.jsonl:2: not JSON"),
    ("superglue_cb", "superglue/CB/train.jsonl", CB.replace("neutral", "maybe"), r"train\.jsonl:1: label 'maybe'"),
    ("superglue_cb", "superglue/CB/train.jsonl", CB.replace('"neutral"', "null"), r"train\.jsonl:1: label None"),
    ("superglue_cb", "superglue/CB/train.jsonl", CB.replace('"h"', "7"), r"train\.jsonl:1: hypothesis should be str"),
    ("superglue_cb", "superglue/CB/train.jsonl", CB.replace("premise", "premiss"),
     r"train\.jsonl:1: no field 'premise'"),
    ("superglue_cb", "superglue/CB/train.jsonl", "", r"train\.jsonl holds no examples"),
    ("superglue_boolq", "superglue/BoolQ/train.jsonl", '{"question": "q", "passage": "p", "label": 1}\n',
     r"train\.jsonl:1: label 1; expected one of False"),
    ("glue_sst2", "glue/SST-2/train.tsv", "sentence\tlabel\n \t1\n", r"train\.tsv:2: sentence empty"),
    ("glue_sst2", "glue/SST-2/train.tsv", b"sentence\tlabel\ncaf\xe9\t1\n", r"train\.tsv:2: byte 4 .*not UTF-8"),
    ("glue_sst2", "glue/SST-2/train.tsv", "sentence\tlabel\ngood\n", r"train\.tsv:2: 1 columns where 2"),
    ("glue_stsb", "glue/STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\t6.1\n", r"train\.tsv:2: score '6\.1'"),
    ("glue_stsb", "glue/STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\t-1\n", r"train\.tsv:2: score '-1'"),
    ("superglue_wsc", "superglue/WSC/train.jsonl", json.dumps({"text": "a b", "label": True, "target": {
        "span1_text": "a", "span1_index": 0, "span2_text": "X", "span2_index": 9}}),
     r"jsonl:1: span2_index 9 is beyond"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "message"), BROKEN, ids=[b[3] for b in BROKEN])
def test_a_broken_official_file_is_named_with_its_line(name, file, content, message, tmp_path, letters):
    task = open_mixture(name, letters, data_dir=official(tmp_path, {file: content})).tasks[0]
    with pytest.raises(UserError, match=message):
        task.load("train")


def test_official_files_make_the_same_text_as_tensorflow_datasets(tmp_path, letters):
    data_dir = official(tmp_path, {"superglue/CB/train.jsonl": CB})
    examples = open_mixture("superglue_cb", letters, data_dir=data_dir).tasks[0].load("train")
    same = texts("superglue_cb", {"premise": "p", "hypothesis": "h", "label": 2, "idx": 0}, letters)
    assert [(t["inputs_pretokenized"], t["targets_pretokenized"]) for t in examples.texts] == same


def table(header, *rows):
    return "".join("\t".join(row) + "\n" for row in (header.split(), *rows))


COPA = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1}
MULTIRC = {"idx": 3, "passage": {"text": "t", "questions": [
    {"question": "q", "idx": 4, "answers": [{"text": "x", "label": 1}, {"text": "y", "label": 0}]}]}}  # fmt: skip
RECORD = {"idx": 1, "passage": {"text": "Rome saw Caesar", "entities": [
    {"start": 0, "end": 3}, {"start": 9, "end": 14}]}, "qas": [
    {"query": "@placeholder won", "idx": 2, "answers": [{"text": "Julius"}, {"text": "Caesar"}]},
    {"query": "@placeholder lost", "idx": 3, "answers": [{"text": "Rome"}]}]}  # fmt: skip
RECORD_TEXT = "query: @placeholder %s entities: Caesar, Rome passage: Rome saw Caesar"
WSC = {"text": "Bob asked Tom if he can.", "idx": 0, "label": True,
       "target": {"span1_index": 2, "span1_text": "Tom", "span2_index": 4, "span2_text": "he"}}  # fmt: skip
MNLI = "sentence1 sentence2 gold_label"
OFFICIAL = [
    ("superglue/BoolQ/val.jsonl", {"question": "is it", "passage": "P", "label": True},
     [("passage: P question: is it", "True")]),
    ("superglue/COPA/val.jsonl", COPA, [("choice1: a choice2: b premise: p question: cause", "choice2")]),
    ("superglue/MultiRC/val.jsonl", MULTIRC,
     [("question: q answer: x paragraph: t", "True"), ("question: q answer: y paragraph: t", "False")]),
    ("superglue/ReCoRD/val.jsonl", RECORD,
     [(RECORD_TEXT % "won", "Caesar"), (RECORD_TEXT % "won", "Julius"), (RECORD_TEXT % "lost", "Rome")]),
    ("superglue/WiC/val.jsonl", {"word": "w", "sentence1": "a", "sentence2": "b", "label": True},
     [("sentence1: a sentence2: b word: w", "True")]),
    ("superglue/WSC/val.jsonl", WSC, [("Bob asked Tom if *he* can.", "Tom")]),
    ("glue/CoLA/dev.tsv", "gj04\t1\t\tIt is.\ngj04\t0\t*\tIs it is.\n",
     [("sentence: It is.", "acceptable"), ("sentence: Is it is.", "unacceptable")]),
    ("glue/SST-2/dev.tsv", table("sentence label", ("fine", "1")), [("sentence: fine", "positive")]),
    ("glue/MRPC/dev.tsv", table("Quality a b", ("1", "x", "y")).replace("a\tb", "#1 String\t#2 String"),
     [("sentence1: x sentence2: y", "equivalent")]),
    ("glue/STS-B/dev.tsv", table("sentence1 sentence2 score", ("a", "b", "3.75"), ("c", "d", "0.000")),
     [("sentence1: a sentence2: b", "3.8"), ("sentence1: c sentence2: d", "0.0")]),
    ("glue/MNLI/dev_matched.tsv", table(MNLI, ("p", "h", "contradiction")),
     [("hypothesis: h premise: p", "contradiction")]),
    ("glue/MNLI/dev_mismatched.tsv", table(MNLI, ("p", "h", "neutral")), [("hypothesis: h premise: p", "neutral")]),
    ("glue/QNLI/dev.tsv", table("question sentence label", ("q", "s", "entailment")),
     [("question: q sentence: s", "entailment")]),
    ("glue/WNLI/dev.tsv", table("sentence1 sentence2 label", ("a", "b", "1")),
     [("sentence1: a sentence2: b", "entailment")]),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content", "expected"), OFFICIAL, ids=[file for file, _, _ in OFFICIAL])
def test_an_official_row_is_the_papers_text_and_answer(file, content, expected, tmp_path, letters):
    benchmark, folder, split = file.split("/")
    name = f"{benchmark}_{folder.lower().replace('-', '')}"
    name += "_mismatched" if split.startswith("dev_mismatched") else ""
    data_dir = official(tmp_path, {file: content if isinstance(content, str) else json.dumps(content)})
    task = open_mixture(name, letters, {"inputs": 512, "targets": 64}, data_dir=data_dir).tasks[0]
    examples = task.load("validation")
    assert [(t["inputs_pretokenized"], t["targets_pretokenized"]) for t in examples.texts] == expected
    scores = task.score(examples, [answer for _, answer in expected])
    assert scores and list(scores.values()) == pytest.approx([100] * len(scores))


def test_a_question_is_right_with_all_its_answers_and_apart_from_those_of_other_paragraphs(tmp_path, letters):
    question = lambda n, right: {"question": "q", "idx": n, "answers": [
        {"text": "x", "label": right}, {"text": "y", "label": 0}]}  # fmt: skip
    rows = [{"idx": i, "passage": {"text": "t", "questions": [question(0, 1 - i), question(1, 0)]}} for i in (0, 1)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    data_dir = official(tmp_path, {"superglue/MultiRC/val.jsonl": content})
    task = open_mixture("superglue_multirc", letters, data_dir=data_dir).tasks[0]
    assert task.score(task.load("validation"), ["False"] * 8)["exact_match"] == 75


def test_a_query_is_answered_by_any_of_its_answers_and_apart_from_others_of_its_passage(tmp_path, letters):
    data_dir = official(tmp_path, {"superglue/ReCoRD/val.jsonl": json.dumps(RECORD)})
    task = open_mixture("superglue_record", letters, data_dir=data_dir).tasks[0]
    assert task.score(task.load("validation"), ["Julius", "Julius", "Caesar"])["em"] == 50


def test_seqio_alone_gives_the_tokens_that_the_data_room_gives(tmp_path, letters):
    data_dir = official(tmp_path, {"superglue/CB/train.jsonl": CB * 3})
    task = open_mixture("superglue_cb_prefixed", letters, {"inputs": 12, "targets": 16}, data_dir=data_dir).tasks[0]
    examples = task.load("train")
    assert examples.truncated == 3
    assert all(examples.inputs[i][-1] == 1 for i in range(3)), "what is cut ends, too"
    for i, theirs in enumerate(task.task.get_dataset(task.lengths, "train", shuffle=False).as_numpy_iterator()):
        assert examples.inputs[i].tolist() == theirs["inputs"].tolist()
        assert examples.targets[i].tolist() == theirs["targets"].tolist()


def test_a_missing_split_says_what_stands_there(tmp_path, letters):
    task = open_mixture("superglue_cb", letters, data_dir=official(tmp_path, {"superglue/CB/val.jsonl": CB})).tasks[0]
    with pytest.raises(UserError, match=re.escape("superglue/CB (val.jsonl); it has validation")):
        task.load("train")


@pytest.mark.parametrize("below", ["", "superglue", "superglue/CB"])
def test_data_dir_may_be_one_folder_too_low(tmp_path, below, letters, monkeypatch):
    official(tmp_path, {"superglue/CB/val.jsonl": CB})
    monkeypatch.setenv("DATA_DIR", str(tmp_path / below))
    assert open_mixture("superglue_cb", letters).tasks[0].splits == ("validation",)


def test_a_broken_row_of_quora_is_skipped_as_tensorflow_datasets_does(tmp_path, letters):
    table = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n0\t1\t2\tbroken\n0\t1\t2\ta\tb\t0\n"
    task = open_mixture("glue_qqp", letters, data_dir=official(tmp_path, {"glue/QQP/train.tsv": table})).tasks[0]
    assert [t["targets_pretokenized"] for t in task.load("train").texts] == ["duplicate", "not_duplicate"]


def test_wsc_trains_on_right_referents_only_and_spells_them_as_the_text_does(tmp_path, letters):
    row = {"text": "The fish ate the worm . It was tasty.", "idx": 0, "label": True,
           "target": {"span1_index": 3, "span1_text": "The worm.", "span2_index": 6, "span2_text": "It"}}  # fmt: skip
    rows = json.dumps(row) + "\n" + json.dumps(row | {"label": False}) + "\n"
    data_dir = official(tmp_path, {"superglue/WSC/train.jsonl": rows, "superglue/WSC/val.jsonl": rows})
    task = open_mixture("superglue_wsc", letters, data_dir=data_dir).tasks[0]
    assert [t["targets_pretokenized"] for t in task.load("train").texts] == ["the worm"]
    assert task.load("train").texts[0]["inputs_pretokenized"] == "The fish ate the worm . *It* was tasty."
    assert task.score(task.load("validation"), ["worm", "fish"]) == {"accuracy": 100.0}


def test_social_iqa_reads_its_labels_beside_it(tmp_path, letters):
    row = {"context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "d"}
    files = {"spot/SocialIQA/train.jsonl": json.dumps(row) + "\n", "spot/SocialIQA/train-labels.lst": "3\n"}
    task = open_mixture("spot_social_iqa", letters, data_dir=official(tmp_path, files)).tasks[0]
    assert task.load("train").texts[0]["targets_pretokenized"] == "answerC"
    assert tmp_path / "spot/SocialIQA/train-labels.lst" in data.looked_at(task), (
        "so that what is kept of it is not stale"
    )
    assert tmp_path / "spot/SocialIQA/dev-labels.lst" in data.looked_at(task)


def test_a_source_of_ones_own_stays_one_where_it_looks_elsewhere():
    class Mine(sources.Source):
        """With a `get_dataset` of its own, say."""

    mine = Mine("imdb_reviews:1.0.0", {"train": "train", "validation": "test"})
    assert type(mine.at("elsewhere")) is type(mine.only("train")) is Mine
    assert (mine.at("elsewhere").data_dir, mine.data_dir) == ("elsewhere", None)
    assert (mine.only("train").splits, mine.splits) == (("train",), ("train", "validation"))
