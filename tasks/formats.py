"""Raw examples to text, with TensorFlow string operations, so that SeqIO can run them anywhere."""

from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

from prompt_tuning.examples import HIDDEN

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


Fields = Mapping[str, tf.Tensor]


def on_batches(step: Callable[[Fields], Fields]) -> Preprocessor:
    """A step that reads the same whether its tensors hold one example or a batch of them.

    SeqIO runs it on single examples; this project's data room on a thousand at a time, ten times as fast.
    """
    mapped = seqio.map_over_dataset(step)
    mapped.on_batches = True
    return mapped


def named(example: Fields, fields: Sequence[str] | Mapping[str, str]) -> tf.Tensor:
    """`name: text name: text ...`, the papers' way of putting several fields into one text.

    A mapping goes from the name in the text to that of the field.
    """
    source = fields if isinstance(fields, Mapping) else {field: field for field in fields}
    return tf.strings.join([tf.strings.join([f"{name}: ", example[field]]) for name, field in source.items()], " ")


def label_text(label: tf.Tensor, labels: Sequence[str]) -> tf.Tensor:
    return tf.where(label < 0, HIDDEN, tf.gather(tf.constant(labels), tf.maximum(label, 0)))


def classify(fields: Sequence[str] | Mapping[str, str], labels: Sequence[str]) -> Preprocessor:
    """Inputs name the fields in the order given, as `named` does; targets are the label's text."""

    @on_batches
    def classify(example):
        made = {"inputs": named(example, fields), "targets": label_text(example["label"], labels)}
        return made | {k: example[k] for k in ("idx",) if k in example}

    return classify


def prefix(word: str) -> Preprocessor:
    """The task's name in front of the inputs, as multi-task T5 was trained."""

    @on_batches
    def prefix(example):
        return example | {"inputs": tf.strings.join([f"{word} ", example["inputs"]])}

    return prefix


def pad_punctuation(text: tf.Tensor) -> tf.Tensor:
    """A space on both sides of every punctuation mark, and no two spaces together: T5's question answering texts."""
    return tf.strings.regex_replace(tf.strings.regex_replace(text, r"([[:punct:]])", r" \1 "), r"\s+", " ")


def single_spaces(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(text, r"\s+", " ")


def question_in_context(question: tf.Tensor, context: tf.Tensor, answers: tf.Tensor) -> dict[str, tf.Tensor]:
    """One example of extractive question answering; the first answer is the target, all of them count as right."""
    parts = {"question": pad_punctuation(question), "context": pad_punctuation(context)}
    padded = pad_punctuation(answers)
    return {"inputs": single_spaces(named(parts, tuple(parts))), "targets": padded[0], "answers": padded}


def choose(fields: Sequence[str], labels: Sequence[str]) -> Preprocessor:
    """As `classify`, runs of white space made one space, as the authors do for SPoT's own sets."""
    step = classify(fields, labels)

    @on_batches
    def choose(example):
        return example | {"inputs": single_spaces(example["inputs"])}

    def both(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return choose(step(dataset))

    both.on_batches = True  # type: ignore[attr-defined]
    return both
