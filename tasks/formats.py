"""Raw examples to text, with TensorFlow string operations, so that SeqIO can run them anywhere."""

from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]
UNKNOWN = "<unk>"  # the target of a test example, whose label is kept back


def named(example: dict[str, tf.Tensor], fields: Sequence[str]) -> tf.Tensor:
    """`name: text name: text ...`, the papers' way of putting several fields into one text."""
    return tf.strings.join([tf.strings.join([f"{f}: ", example[f]]) for f in fields], " ")


def label_text(label: tf.Tensor, labels: Sequence[str]) -> tf.Tensor:
    return tf.where(label < 0, UNKNOWN, tf.gather(tf.constant(labels), tf.maximum(label, 0)))


def classify(fields: Sequence[str], labels: Sequence[str]) -> Preprocessor:
    """Inputs name the fields in the order given; targets are the label's text."""

    @seqio.map_over_dataset
    def classify(example):
        made = {"inputs": named(example, fields), "targets": label_text(example["label"], labels)}
        return made | {k: example[k] for k in ("idx",) if k in example}

    return classify


def prefix(word: str) -> Preprocessor:
    """The task's name in front of the inputs, as multi-task T5 was trained."""

    @seqio.map_over_dataset
    def prefix(example):
        return example | {"inputs": tf.strings.join([f"{word} ", example["inputs"]])}

    return prefix
