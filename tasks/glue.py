"""GLUE (Wang et al. 2018) from TFDS or the official tables, in T5's text-to-text form.

TFDS makes version 2.0.0 now; 1.0.0, of the papers, differs from it in where QQP is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import seqio
import tensorflow as tf

from prompt_tuning import metrics
from prompt_tuning.errors import UserError
from prompt_tuning.examples import HIDDEN
from prompt_tuning.records import Record
from tasks import answers, formats
from tasks.registry import add, add_mixtures
from tasks.sources import OfficialFiles, Rows, Source, field, text_fields

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
FILES = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")
DTYPES = {"label": tf.int64, "idx": tf.int32}
# Training examples, the proportions of T5's GLUE mixture; WNLI is left out, as in both papers.
SIZES = {"glue_cola": 8551, "glue_sst2": 67349, "glue_mrpc": 3668, "glue_qqp": 363849, "glue_stsb": 5749}
SIZES |= {"glue_mnli": 392702, "glue_qnli": 104743, "glue_rte": 2490}


def source(name: str, folders: str | tuple[str, ...], read, splits=SPLITS, files=FILES, **more) -> Source:
    folders = (folders,) if isinstance(folders, str) else folders
    dtypes = DTYPES | more.pop("dtypes", {})
    official = OfficialFiles(tuple(f"glue/{f}" for f in folders), files, read, dtypes, **more)
    return Source(f"glue/{name}:2.0.0", splits, official)


def cola() -> None:
    """Is the sentence English?

    inputs:  sentence: The sailors rode the breeze clear of the rocks.
    targets: acceptable
    """
    labels = ("unacceptable", "acceptable")
    header = ("source", "label", "mark", "sentence")
    read = text_fields(("sentence",), ("0", "1"))
    add(
        "glue_cola",
        source("cola", "CoLA", read, columns={"train": header, "validation": header}),
        formats.classify(("sentence",), labels),
        [metrics.matthews],
        labels=labels,
        prefix="cola",
    )


def sst2() -> None:
    """Does the film critic like it?

    inputs:  sentence: it 's a charming and often affecting journey .
    targets: positive
    """
    labels = ("negative", "positive")
    add(
        "glue_sst2",
        source("sst2", "SST-2", text_fields(("sentence",), ("0", "1"))),
        formats.classify(("sentence",), labels),
        [metrics.accuracy],
        labels=labels,
        prefix="sst2",
    )


def mrpc() -> None:
    """Do two sentences from the news mean the same?

    inputs:  sentence1: He said the foodservice pie business doesn 't fit the company 's long-term growth strategy .
             sentence2: " The foodservice pie business does not fit our long-term growth strategy .
    targets: equivalent
    """
    fields, labels = ("sentence1", "sentence2"), ("not_equivalent", "equivalent")
    read = text_fields({"sentence1": "#1 String", "sentence2": "#2 String"}, ("0", "1"), "Quality")
    add(
        "glue_mrpc",
        source("mrpc", "MRPC", read),
        formats.classify(fields, labels),
        [metrics.f1, metrics.accuracy],
        labels=labels,
        prefix="mrpc",
    )


def qqp() -> None:
    """Do two questions on Quora ask the same?

    inputs:  question1: How is the life of a math student? question2: Which level of preparation is enough for ...?
    targets: not_duplicate
    """
    fields, labels = ("question1", "question2"), ("not_duplicate", "duplicate")
    read = text_fields(fields, ("0", "1"), "is_duplicate")
    add(
        "glue_qqp",
        source("qqp", "QQP", read, any_width=True),  # a few of the published rows are broken in two
        formats.classify(fields, labels),
        [metrics.f1, metrics.accuracy],
        labels=labels,
        prefix="qqp",
    )


def stsb() -> None:
    """How alike are two sentences, from 0 to 5? Rounded to fifths, so that few different texts are asked for.

    inputs:  sentence1: A man with a hard hat is dancing. sentence2: A man wearing a hard hat is dancing.
    targets: 5.0
    """
    fields = ("sentence1", "sentence2")

    @formats.on_batches
    def text(example):
        fifths = tf.strings.as_string(tf.round(example["label"] * 5) / 5, precision=1)
        targets = tf.where(example["label"] < 0, HIDDEN, fifths)
        return {"inputs": formats.named(example, fields), "targets": targets, "idx": example["idx"]}

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        rows = []
        for n, (line, row) in enumerate(records):
            score = "-1" if split == "test" and "score" not in row else field(path, (line, row), "score")
            try:
                value = float(score)
            except ValueError:
                raise UserError(f"{path}:{line}: score {score!r}; expected a number from 0 to 5.") from None
            if not (0 <= value <= 5 or split == "test"):
                raise UserError(f"{path}:{line}: score {score!r}; expected a number from 0 to 5.")
            rows.append({f: field(path, (line, row), f) for f in fields} | {"label": value, "idx": n})
        return rows

    add(
        "glue_stsb",
        source("stsb", "STS-B", read, dtypes={"label": tf.float32}),
        text,
        [metrics.pearson, metrics.spearman],
        postprocess=answers.number,
        prefix="stsb",
    )


def mnli() -> None:
    """Does the hypothesis follow from the premise, contradict it, or neither?

    `glue_mnli` validates on the matched genres and has the others as `validation_mismatched`; `glue_mnli_matched` and
    `glue_mnli_mismatched` have no training split; the mixture `glue_mnli_and_dev` shows both, and goes by the first.

    inputs:  hypothesis: Product and geography are what make cream skimming work. premise: Conceptually cream skimming
             has two basic dimensions - product and geography.
    targets: neutral
    """
    fields = ("hypothesis", "premise")
    read = text_fields({"hypothesis": "sentence2", "premise": "sentence1"}, MNLI, "gold_label")
    parts = {
        "glue_mnli": {
            "train": ("train", "train"),
            "validation": ("validation_matched", "dev_matched"),
            "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
            "test": ("test_matched", "test_matched"),
            "test_mismatched": ("test_mismatched", "test_mismatched"),
        },
        "glue_mnli_matched": {
            "validation": ("validation_matched", "dev_matched"),
            "test": ("test_matched", "test_matched"),
        },
        "glue_mnli_mismatched": {
            "validation": ("validation_mismatched", "dev_mismatched"),
            "test": ("test_mismatched", "test_mismatched"),
        },
    }
    for name, splits in parts.items():
        tfds_splits = {split: tfds for split, (tfds, _) in splits.items()}
        files = {split: (f"{file}.tsv",) for split, (_, file) in splits.items()}
        add(
            name,
            source("mnli", ("MNLI", "multinli_1.0"), read, tfds_splits, files, any_width=True),
            formats.classify(fields, MNLI),
            [metrics.accuracy],
            labels=MNLI,
            prefix="mnli",
        )


def qnli() -> None:
    """Does the sentence answer the question?

    inputs:  question: When did the third Digimon series begin? sentence: Unlike the two seasons before it and most of
             the seasons that followed, Digimon Tamers takes a darker and more realistic approach ...
    targets: not_entailment
    """
    fields = ("question", "sentence")
    add(
        "glue_qnli",
        source("qnli", ("QNLI", "QNLIv2"), text_fields(fields, ENTAILMENT)),
        formats.classify(fields, ENTAILMENT),
        [metrics.accuracy],
        labels=ENTAILMENT,
        prefix="qnli",
    )


def rte() -> None:
    """Does sentence 2 follow from sentence 1?

    inputs:  sentence1: No Weapons of Mass Destruction Found in Iraq Yet. sentence2: Weapons of Mass Destruction Found
             in Iraq.
    targets: not_entailment
    """
    fields = ("sentence1", "sentence2")
    add(
        "glue_rte",
        source("rte", "RTE", text_fields(fields, ENTAILMENT)),
        formats.classify(fields, ENTAILMENT),
        [metrics.accuracy],
        labels=ENTAILMENT,
        prefix="rte",
    )


def wnli() -> None:
    """Does sentence 2, with the pronoun replaced, follow from sentence 1?

    inputs:  sentence1: I stuck a pin through a carrot. When I pulled the pin out, it had a hole. sentence2: The
             carrot had a hole.
    targets: entailment
    """
    fields, labels = ("sentence1", "sentence2"), ("not_entailment", "entailment")
    add(
        "glue_wnli",
        source("wnli", "WNLI", text_fields(fields, ("0", "1"))),
        formats.classify(fields, labels),
        [metrics.accuracy],
        labels=labels,
        prefix="wnli",
    )


def ax() -> None:
    """GLUE's diagnostic set, answered as MNLI; its labels are not published in the official table.

    inputs:  hypothesis: The cat did not sit on the mat. premise: The cat sat on the mat.
    targets: <unk>
    """
    fields = ("hypothesis", "premise")
    read = text_fields({"hypothesis": "sentence2", "premise": "sentence1"}, MNLI)
    files = {"test": ("diagnostic.tsv", "AX.tsv", "test.tsv")}
    add(
        "glue_ax",
        source("ax", ("AX", "diagnostic"), read, {"test": "test"}, files),
        formats.classify(fields, MNLI),
        [metrics.accuracy],
        labels=MNLI,
        prefix="mnli",
    )


for register in (cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, ax):
    register()
for end in ("", "_prefixed"):
    seqio.MixtureRegistry.add(f"glue_mnli_and_dev{end}", [f"glue_mnli{end}", f"glue_mnli_mismatched{end}"], 1.0)

# glue: the eight tasks by size; glue_equal: alike.
add_mixtures("glue", SIZES)
