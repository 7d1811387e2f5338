"""GLUE (Wang et al. 2018), TFDS 2.0.0 or the official tables, in T5's text-to-text form."""

import tensorflow as tf

from prompt_tuning import metrics
from tasks import formats
from tasks.registry import add
from tasks.sources import OfficialFiles, Source, text_fields

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
FILES = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}


def source(tfds_name: str, folder: str, read, **dtypes: tf.DType) -> Source:
    official = OfficialFiles((f"glue/{folder}",), FILES, read, {"label": tf.int64, "idx": tf.int32} | dtypes)
    return Source(f"glue/{tfds_name}:2.0.0", SPLITS, official)


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


for register in (sst2,):
    register()
