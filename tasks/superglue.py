"""SuperGLUE (Wang et al. 2019), TFDS 1.0.2 or the official JSON lines, in T5's text-to-text form."""

import tensorflow as tf

from prompt_tuning import metrics
from tasks import formats
from tasks.registry import add
from tasks.sources import OfficialFiles, Source, text_fields

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
FILES = {"train": ("train.jsonl",), "validation": ("val.jsonl",), "test": ("test.jsonl",)}
TRUTH = ("False", "True")


def source(tfds_name: str, folder: str, read, **dtypes: tf.DType) -> Source:
    official = OfficialFiles((f"superglue/{folder}",), FILES, read, {"label": tf.int64, "idx": tf.int32} | dtypes)
    return Source(f"super_glue/{tfds_name}:1.0.2", SPLITS, official)


def boolq() -> None:
    """Is the answer to the question yes, by the passage?

    inputs:  passage: Ethanol fuel -- All biomass goes through ... question: does ethanol take more energy make that
             produces
    targets: False
    """
    fields = ("passage", "question")
    add(
        "superglue_boolq",
        source("boolq", "BoolQ", text_fields(fields, (False, True))),
        formats.classify(fields, TRUTH),
        [metrics.accuracy],
        labels=TRUTH,
        prefix="boolq",
    )


def cb() -> None:
    """Does the speaker of the premise commit to the hypothesis?

    inputs:  hypothesis: the language was peeled down premise: It was a complex language. Not written down but ...
    targets: entailment
    """
    fields, labels = ("hypothesis", "premise"), ("entailment", "contradiction", "neutral")
    add(
        "superglue_cb",
        source("cb", "CB", text_fields(fields, labels)),
        formats.classify(fields, labels),
        [metrics.mean_class_f1(3), metrics.accuracy],
        labels=labels,
        prefix="cb",
    )


def rte() -> None:
    """Does the hypothesis follow from the premise?

    inputs:  hypothesis: Weapons of Mass Destruction Found in Iraq. premise: No Weapons of Mass Destruction Found in
             Iraq Yet.
    targets: not_entailment
    """
    fields, labels = ("hypothesis", "premise"), ("entailment", "not_entailment")
    add(
        "superglue_rte",
        source("rte", "RTE", text_fields(fields, labels)),
        formats.classify(fields, labels),
        [metrics.accuracy],
        labels=labels,
        prefix="rte",
    )


for register in (boolq, cb, rte):
    register()
