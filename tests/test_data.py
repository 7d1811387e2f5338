"""SeqIO tasks come out as the same tokens, texts and scores, whoever wrote them."""

import functools
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece

from prompt_tuning.data import open_mixture
from prompt_tuning.errors import UserError
from prompt_tuning.examples import UNCUT, Mixture, proportional
from prompt_tuning.vocabulary import Vocabulary

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402

LENGTHS = {"inputs": 24, "targets": 6}
TEXTS = ["a good film", "the plot was thin and the film was dull " * 3, "good good"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vocabulary")
    lines = [
        "the film was good and the plot was thin",
        "hypothesis premise yes no dull",
        string.ascii_letters + "_ 0123.",
    ]
    (folder / "corpus.txt").write_text("\n".join(lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tiny"), vocab_size=100, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return Vocabulary(folder / "tiny.model", extra_ids=10)


def _rows(split, shuffle_files=False, seed=None):
    columns = {"inputs": TEXTS, "targets": ["yes", "no", "yes"], "id": [7, 8, 9]}
    return tf.data.Dataset.from_tensor_slices(columns)


def label_id(text, label_classes, **unused):
    return label_classes.index(text) if text in label_classes else -1


def accuracy(targets, predictions):
    return {"accuracy": 100 * np.mean(np.equal(targets, predictions)), "note": "no number"}


def register(name, steps, vocabulary, splits=("train", "validation"), **more):
    """A third party's task, over another vocabulary than the base's."""
    registered = seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=5)
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(_rows, splits, num_input_examples={s: len(TEXTS) for s in splits}),
        preprocessors=steps,
        output_features={k: seqio.Feature(registered, add_eos=True) for k in ("inputs", "targets")},
        postprocess_fn=functools.partial(label_id, label_classes=["no", "yes"]),
        metric_fns=[accuracy],
        **more,
    )


@seqio.map_over_dataset
def shout(example):
    return example | {"inputs": tf.strings.lower(example["inputs"])}


TOKENIZE, EOS, EOS_INSIDE = (
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
    seqio.preprocessors.append_eos_after_trim,
)


@pytest.mark.parametrize("lengths", [LENGTHS, UNCUT], ids=["cut", "uncut"])
@pytest.mark.parametrize(
    "steps",
    [
        [shout, TOKENIZE, seqio.CacheDatasetPlaceholder(), EOS],
        [shout, TOKENIZE, EOS_INSIDE],
        [shout, seqio.preprocessors.tokenize_and_append_eos],
        [TOKENIZE, shout_tokens := seqio.map_over_dataset(lambda x: x), EOS],
    ],
    ids=["append_eos", "append_eos_after_trim", "tokenize_and_append_eos", "a step after the tokenizer"],
)
def test_tokens_equal_seqios_own(vocabulary, steps, lengths):
    task = register("data_test", steps, vocabulary)
    examples = open_mixture("data_test", vocabulary, lengths).tasks[0].load("train")
    words = seqio.SentencePieceVocabulary(vocabulary.path, vocabulary.extra_ids)
    theirs = task.replace(output_features={k: seqio.Feature(words) for k in ("inputs", "targets")})
    own = None if lengths == UNCUT else lengths
    for i, example in enumerate(theirs.get_dataset(own, "train", shuffle=False).as_numpy_iterator()):
        assert examples.inputs[i].tolist() == example["inputs"].tolist()
        assert examples.targets[i].tolist() == example["targets"].tolist()
    assert [t["id"] for t in examples.texts] == [7, 8, 9]
    assert examples.texts[0]["inputs_pretokenized"] == TEXTS[0]


def test_long_inputs_are_cut_and_counted(vocabulary):
    register("data_test", [TOKENIZE, EOS_INSIDE], vocabulary)
    examples = open_mixture("data_test", vocabulary, LENGTHS).tasks[0].load("validation")
    assert examples.truncated == 1
    assert examples.inputs.lengths.max() == LENGTHS["inputs"]


def test_targets_that_are_cut_are_reported_and_labels_may_not_be(vocabulary):
    free = register("data_test", [TOKENIZE, EOS], vocabulary).replace(postprocess_fn=None)
    with pytest.raises(UserError, match="targets of 2 would cut it"):
        open_mixture("data_test", vocabulary, {"inputs": 24, "targets": 2})
    seqio.TaskRegistry.remove("data_test")
    seqio.TaskRegistry.add_provider("data_test", free)
    with pytest.warns(UserWarning, match="3 of 3 targets of data_test, train, are longer than 1"):
        open_mixture("data_test", vocabulary, {"inputs": 24, "targets": 1}).tasks[0].load("train")


def test_the_first_examples_of_a_split_can_be_had_alone(vocabulary):
    register("data_test", [shout, TOKENIZE, EOS], vocabulary)
    task = open_mixture("data_test", vocabulary, LENGTHS).tasks[0]
    assert [t["id"] for t in task.load("train[:2]").texts] == [7, 8]
    assert len(task.load("train")) == 3


def test_a_split_without_examples_is_named_to_those_who_look_and_who_train(vocabulary):
    register("data_test", [lambda dataset: dataset.take(0), TOKENIZE, EOS], vocabulary)
    task = open_mixture("data_test", vocabulary, LENGTHS).tasks[0]
    for read in (task.texts, task.load):
        with pytest.raises(UserError, match="The split 'validation' of data_test holds no examples"):
            read("validation")


def test_labels_and_scores_are_the_tasks_own(vocabulary):
    register("data_test", [TOKENIZE, EOS], vocabulary)
    mixture = open_mixture("data_test", vocabulary, LENGTHS)
    task = mixture.tasks[0]
    assert (mixture.name, mixture.rates, task.labels) == ("data_test", (1.0,), ("no", "yes"))
    assert task.score(task.load("train"), ["yes", "no", "nonsense"]) == {"accuracy": pytest.approx(200 / 3)}


def test_a_metric_sees_the_example_as_seqio_would_show_it(vocabulary):
    seen = []

    def look(text, example=None, is_target=False):
        seen.append((text, example["inputs_pretokenized"], example["id"].item(), is_target))
        return text

    task = register("data_test", [TOKENIZE, EOS], vocabulary).replace(postprocess_fn=look)
    seqio.TaskRegistry.remove("data_test")
    seqio.TaskRegistry.add_provider("data_test", task)
    ours = open_mixture("data_test", vocabulary, LENGTHS).tasks[0]
    ours.score(ours.load("train"), ["yes"] * 3)
    assert seen[0] == ("yes", TEXTS[0].encode(), 7, True)
    assert seen[3] == ("yes", TEXTS[0].encode(), 7, False)


def test_rates_follow_seqio_and_an_evaluation_task_has_none(vocabulary):
    for name, splits in (("data_a", ("train",)), ("data_b", ("train",)), ("data_c", ("validation",))):
        register(name, [TOKENIZE, EOS], vocabulary, splits)
    seqio.MixtureRegistry.remove("data_inner")
    seqio.MixtureRegistry.remove("data_mix")
    seqio.MixtureRegistry.add("data_inner", [("data_a", seqio.mixing_rate_num_examples), ("data_c", 5.0)])
    seqio.MixtureRegistry.add("data_mix", [("data_inner", 2.0), ("data_b", 6)])
    mixture = open_mixture("data_mix", vocabulary, LENGTHS)
    assert {t.name: r for t, r in zip(mixture.tasks, mixture.rates, strict=True)} == {
        "data_a": 0.25,
        "data_b": 0.75,
        "data_c": 0.0,
    }


def test_tasks_together_are_drawn_by_their_training_examples_up_to_the_cap():
    sizes = {"large": 900, "small": 50, "held_out": None}
    of = lambda name: SimpleNamespace(
        name=name, splits=("train",) if sizes[name] else (), load=lambda split: range(sizes[name])
    )
    tasks = {name: of(name) for name in sizes}
    parts = Mixture("large", (tasks["large"],), (1.0,)), Mixture("all", tuple(tasks.values()), (0.5, 0.5, 0.0))
    together = proportional(parts, cap=150)
    assert (together.name, together.tasks) == ("large+all", tuple(tasks.values()))
    assert together.rates == (0.75, 0.25, 0) and proportional(parts).rates == (900 / 950, 50 / 950, 0)


@pytest.mark.parametrize(
    "rates",
    [
        [("data_a", lambda task: None)],
        [("data_a", lambda task: 1 / 0)],
        [("data_within", lambda task: 1.0)],
    ],
    ids=["no number", "a failing function", "a function for a mixture"],
)
def test_a_rate_that_is_no_number_is_named(vocabulary, rates):
    register("data_a", [TOKENIZE, EOS], vocabulary)
    for name in ("data_within", "data_mix"):
        seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add("data_within", ["data_a"], 1.0)
    seqio.MixtureRegistry.add("data_mix", rates)
    with pytest.raises(UserError, match=rf"The rate of {rates[0][0]} in the mixture data_mix is no number"):
        open_mixture("data_mix", vocabulary, LENGTHS)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_below_zero_or_without_end_is_named(vocabulary, rate):
    register("data_a", [TOKENIZE, EOS], vocabulary)
    seqio.MixtureRegistry.remove("data_mix")
    seqio.MixtureRegistry.add("data_mix", [("data_a", rate)])
    with pytest.raises(UserError, match=rf"The rate of data_a in the mixture data_mix is {rate:g}; it is a number"):
        open_mixture("data_mix", vocabulary, LENGTHS)


def test_a_target_that_is_none_of_the_labels_is_named(vocabulary):
    task = register("data_test", [TOKENIZE, EOS], vocabulary)
    seqio.TaskRegistry.remove("data_test")
    other = functools.partial(label_id, label_classes=["no", "Yes"])
    seqio.TaskRegistry.add_provider("data_test", task.replace(postprocess_fn=other))
    found = open_mixture("data_test", vocabulary, LENGTHS).tasks[0]
    with pytest.raises(UserError, match=r"Example 1 of data_test, train, has the target 'yes'.*Did you mean 'Yes'"):
        found.load("train")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda example: {"inputs": example["inputs"]}, "data_test make nothing as targets; an example has a text"),
        (lambda example: example | {"targets": example["id"]}, r"data_test make int32\(\) as targets"),
        (lambda example: example | {"inputs": tf.stack(["a", "b"])}, r"data_test make string\(2,\) as inputs"),
    ],
)
def test_preprocessors_that_make_no_text_are_named(vocabulary, made, message):
    register("data_test", [seqio.map_over_dataset(made), TOKENIZE, EOS], vocabulary)
    with pytest.raises(UserError, match=message):
        open_mixture("data_test", vocabulary, LENGTHS).tasks[0].load("train")


def test_a_metric_that_gives_no_table_is_named(vocabulary):
    def share(targets, predictions):
        return 0.5

    task = register("data_test", [TOKENIZE, EOS], vocabulary)
    seqio.TaskRegistry.remove("data_test")
    seqio.TaskRegistry.add_provider("data_test", task.replace(metric_fns=[share]))
    found = open_mixture("data_test", vocabulary, LENGTHS).tasks[0]
    with pytest.raises(UserError, match=r"share of task data_test gave 0\.5"):
        found.score(found.load("train"), ["yes"] * 3)


def test_metrics_of_scores_are_left_out_with_a_word(vocabulary):
    def likelihood(targets, scores):
        return {}

    task = register("data_test", [TOKENIZE, EOS], vocabulary)
    seqio.TaskRegistry.remove("data_test")
    seqio.TaskRegistry.add_provider("data_test", task.replace(metric_fns=[accuracy, likelihood]))
    with pytest.warns(UserWarning, match="likelihood of task data_test: metrics of"):
        open_mixture("data_test", vocabulary, LENGTHS)


def test_an_unknown_name_split_and_module_offer_the_nearest(vocabulary):
    register("data_test", [TOKENIZE, EOS], vocabulary)
    with pytest.raises(UserError, match=r"'superglue_boolk'.*mean 'superglue_boolq'"):
        open_mixture("superglue_boolk", vocabulary)
    with pytest.raises(UserError, match=r"no split 'valid'.*mean 'validation'"):
        open_mixture("data_test", vocabulary).tasks[0].load("valid")
    with pytest.raises(UserError, match=r"No module 'my_tasks_nowhere'"):
        open_mixture("data_test", vocabulary, module="my_tasks_nowhere")
    with pytest.raises(UserError, match=r"DATA_DIR .*nowhere is not a folder"):
        open_mixture("data_test", vocabulary, data_dir="/nowhere")


def test_a_task_without_inputs_is_refused(vocabulary):
    task = register("data_test", [TOKENIZE, EOS], vocabulary)
    seqio.TaskRegistry.remove("data_test")
    features = {"targets": task.output_features["targets"]}
    seqio.TaskRegistry.add_provider("data_test", task.replace(output_features=features))
    with pytest.raises(UserError, match=r"needs inputs and targets"):
        open_mixture("data_test", vocabulary)


def test_a_label_that_the_vocabulary_cannot_spell_is_refused(vocabulary):
    task = register("data_test", [TOKENIZE, EOS], vocabulary)
    seqio.TaskRegistry.remove("data_test")
    asian = task.replace(postprocess_fn=functools.partial(label_id, label_classes=["yes", "いいえ"]))
    seqio.TaskRegistry.add_provider("data_test", asian)
    with pytest.raises(UserError, match=r"cannot spell .*いいえ"):
        open_mixture("data_test", vocabulary)


def test_a_module_beside_the_user_registers_tasks_and_a_taken_name_is_named(vocabulary, tmp_path, monkeypatch):
    source = "import seqio\nfrom tasks.registry import add\nfrom tasks import glue\n"
    line = "add({!r}, seqio.TaskRegistry.get('glue_sst2').source, [], [])\n"
    (tmp_path / "my_fine_tasks.py").write_text(source + line.format("my_fine_task"))
    (tmp_path / "my_taken_tasks.py").write_text(source + line.format("glue_sst2"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert open_mixture("my_fine_task", vocabulary, module="my_fine_tasks").name == "my_fine_task"
    with pytest.raises(UserError, match=r"'my_taken_tasks' registers a task named 'glue_sst2', but one exists"):
        open_mixture("glue_sst2", vocabulary, module="my_taken_tasks")


def test_the_reference_names_are_understood(vocabulary):
    for theirs, ours in (
        ("taskless_super_glue_boolq_v102_examples", "superglue_boolq"),
        ("mt5_taskless_super_glue_wsc_and_dev_v102_simple_examples", "superglue_wsc"),
        ("glue_sst2_v002", "glue_sst2_prefixed"),
        ("taskless_glue_mrpc_from_qqp_zeroshot_v002_examples", "glue_mrpc_from_qqp"),
    ):
        assert open_mixture(theirs, vocabulary).name == ours


def test_only_the_data_room_imports_tensorflow():
    code = """
import importlib, pkgutil, sys
import prompt_tuning
for name in ("vocabulary", "task_file", "records", "metrics", "data_command", "prepare"):
    importlib.import_module("prompt_tuning." + name)
assert not {"tensorflow", "seqio", "tensorflow_datasets"} & set(sys.modules), "TensorFlow was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
