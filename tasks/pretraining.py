"""Objectives without labels, over C4 or text files: prefix LM (LM adaptation), span corruption, deshuffling, repair.

The plain text files are DATA_DIR/corpus/*.txt, also compressed (.gz, .xz), one document a line; files whose name starts
with "validation" are the validation split.
"""

import gzip
import lzma
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from tasks.registry import FEATURES
from tasks.sources import Source

CHUNK = 65536  # tokens of one document that are used at most
MERGE = 128  # documents whose tokens are joined before they are cut into examples, so that few examples are short
OPENERS: Mapping[str, Callable[..., Any]] = {".txt": open, ".gz": gzip.open, ".xz": lzma.open}


class TextFiles(seqio.DataSource):
    """The lines of plain text files as documents; streamed, so that a corpus may be larger than memory."""

    def __init__(self, data_dir: str | None = None):
        super().__init__(("train", "validation"))
        self.data_dir = data_dir

    def at(self, data_dir: str) -> "TextFiles":
        return TextFiles(data_dir)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        root = Path(self.data_dir or os.environ.get("DATA_DIR", ".")).expanduser()
        folder = root / "corpus" if (root / "corpus").is_dir() else root
        files = sorted(p for p in folder.glob("*.txt*") if p.suffix in OPENERS)
        chosen = [str(p) for p in files if p.name.startswith("validation") == (split == "validation")]
        if not chosen:
            raise UserError(f"{folder} has no .txt, .txt.gz or .txt.xz file for the split {split}; set DATA_DIR.")
        return chosen

    def num_input_examples(self, split: str) -> int | None:
        return None

    def get_dataset(
        self, split: str = "train", shuffle: bool = True, seed: int | None = None, shard_info=None, **unused
    ):
        files = self.list_shards(split)

        def lines() -> Iterator[dict[str, bytes]]:
            for file in files:
                with OPENERS[Path(file).suffix](file, "rb") as opened:
                    yield from ({"text": line.strip()} for line in opened if line.strip())

        return tf.data.Dataset.from_generator(lines, output_signature={"text": tf.TensorSpec((), tf.string)})

    def __str__(self) -> str:
        return f"the text files of {self.data_dir or os.environ.get('DATA_DIR', 'DATA_DIR')}"


@seqio.map_over_dataset
def text_as_targets(example):
    return {"targets": example["text"]}


@seqio.map_over_dataset(num_seeds=1)
def random_chunk(example, seed):
    """At most CHUNK tokens of a document, from a random place on."""
    tokens = example["targets"]
    last = tf.maximum(tf.size(tokens) - CHUNK, 0)
    start = tf.random.stateless_uniform([], seed, 0, last + 1, tf.int32)
    return {"targets": tokens[start : start + CHUNK]}


def pieces(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """Each sequence of tokens as pieces of one length, the last one shorter."""

    def cut(example):
        tokens = example["targets"]
        starts = tf.range(0, tf.size(tokens), length)
        each = tf.data.Dataset.from_tensor_slices(starts)
        return each.map(lambda start: {"targets": tokens[start : start + length]})

    return dataset.flat_map(cut)


def prefix_lm(dataset: tf.data.Dataset, sequence_length: Mapping[str, int]) -> tf.data.Dataset:
    """Each piece of a document split in two at a place drawn from 1 to its length - 1: LM adaptation's objective.

    Documents are not joined; a piece leaves room for the EOS of the inputs (Lester et al. 2021, §3.2).
    """

    @seqio.map_over_dataset(num_seeds=1)
    def split(example, seed):
        tokens = example["targets"]
        place = tf.random.stateless_uniform([], seed, 1, tf.maximum(tf.size(tokens), 2), tf.int32)
        return {"inputs": tokens[:place], "targets": tokens[place:]}

    return split(pieces(random_chunk(dataset), sequence_length["inputs"] - 1).filter(_two_tokens))


def _two_tokens(example: Mapping[str, tf.Tensor]) -> tf.Tensor:
    return tf.size(example["targets"]) > 1


def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    density: float = 0.15,
    mean_span: float = 3.0,
) -> tf.data.Dataset:
    """15 % of the tokens in spans of 3 on average: inputs mark the gaps, targets fill them (Raffel et al. 2020).

    Raises:
      UserError: the targets' length cannot hold what inputs of that length leave out.
    """
    length, targets_length = lengths_without_padding(sequence_length["inputs"], density, mean_span)
    if sequence_length["targets"] < targets_length:
        raise UserError(
            f"Span corruption of {sequence_length['inputs']} input tokens makes targets of {targets_length}; "
            f"TASK_FEATURE_LENGTHS allows {sequence_length['targets']}."
        )
    first_sentinel = output_features["inputs"].vocabulary.vocab_size - 1

    @seqio.map_over_dataset(num_seeds=2)
    def corrupt(example, seeds):
        tokens = example["targets"]
        noise = noise_spans(tf.size(tokens), seeds, density, mean_span)
        return {
            "inputs": replace_spans(tokens, noise, first_sentinel),
            "targets": replace_spans(tokens, ~noise, first_sentinel),
        }

    return corrupt(pieces(joined(dataset), length).filter(_two_tokens))


def joined(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """MERGE documents at a time as one."""

    def merge(batch):
        tokens = batch["targets"]
        return {"targets": tokens.flat_values if isinstance(tokens, tf.RaggedTensor) else tf.reshape(tokens, [-1])}

    return random_chunk(dataset).ragged_batch(MERGE).map(merge, num_parallel_calls=tf.data.AUTOTUNE)


def deshuffling(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int], share: float = 0.3, reach: float = 4.0
) -> tf.data.Dataset:
    """Tokens out of their places are to be put back: a `share` of them moved on by up to `reach` places.

    T5's deshuffling (Raffel et al. 2020, §3.3.1) with the text's order kept at large, as a decoder learns from it
    early to look at the encoder.
    """

    @seqio.map_over_dataset(num_seeds=2)
    def shuffle(example, seeds):
        tokens = example["targets"]
        count = tf.shape(tokens)
        moved = tf.random.stateless_uniform(count, seeds[0]) < share
        by = tf.where(moved, tf.random.stateless_uniform(count, seeds[1], 0.0, reach), 0.0)
        order = tf.argsort(tf.cast(tf.range(count[0]), tf.float32) + by, stable=True)
        return {"inputs": tf.gather(tokens, order), "targets": tokens}

    return shuffle(pieces(joined(dataset), min(sequence_length.values()) - 1).filter(_two_tokens))


def repair(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    share: float = 0.1,
    dropped: float = 0.3,
    intact: float = 0.3,
) -> tf.data.Dataset:
    """Words that changed places with the next, or are gone, are to be told as they were, the word behind them too.

    A `share` of the words of one token is disturbed, the `dropped` share of these by leaving them out; nothing is in an
    `intact` share of the texts, and their targets are empty. A denoising objective like those of T5 and BART (Lewis et
    al. 2020), whose targets tell only what is wrong, so that the encoder has to find it.
    """
    pieces_of = output_features["inputs"].vocabulary.tokenizer
    opens = tf.constant([pieces_of.id_to_piece(i).startswith("\u2581") for i in range(pieces_of.get_piece_size())])

    @seqio.map_over_dataset(num_seeds=3)
    def disturb(example, seeds):
        tokens = example["targets"]
        count = tf.size(tokens)
        opened = tf.gather(opens, tf.minimum(tokens, tf.size(opens) - 1))  # a word begins here
        word = opened & _of_next(opened)  # and is this token alone
        rate = tf.where(tf.random.stateless_uniform([], seeds[0]) < intact, 0.0, share)
        chosen = word & _of_next(word) & (tf.random.stateless_uniform([count], seeds[1]) < rate)
        chosen &= ~_of_last(chosen) & ~_of_last(_of_last(chosen))
        gone = chosen & (tf.random.stateless_uniform([count], seeds[2]) < dropped)
        swapped = chosen & ~gone
        order = tf.range(count) + tf.cast(swapped, tf.int32) - tf.cast(_of_last(swapped), tf.int32)
        told = chosen | _of_last(chosen) | _of_last(_of_last(chosen))
        return {"inputs": tf.boolean_mask(tf.gather(tokens, order), ~gone), "targets": tf.boolean_mask(tokens, told)}

    return disturb(pieces(joined(dataset), sequence_length["inputs"] - 1).filter(_two_tokens))


def _of_next(mask: tf.Tensor) -> tf.Tensor:
    return tf.concat([mask[1:], [False]], 0)


def _of_last(mask: tf.Tensor) -> tf.Tensor:
    return tf.concat([[False], mask[:-1]], 0)


def lengths_without_padding(inputs_length: int, density: float, mean_span: float) -> tuple[int, int]:
    """How many tokens of text fill the inputs after corruption, and how long the targets become, EOS counted."""

    def after(tokens: int) -> tuple[int, int]:
        noise = round(tokens * density)
        spans = round(noise / mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length - 1
    while after(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, after(tokens)[1]


def noise_spans(length: tf.Tensor, seeds: tf.Tensor, density: float, mean_span: float) -> tf.Tensor:
    """Which tokens are noise, bool[length]: spans of text and noise in turn, text first, each division as likely."""
    padded = tf.maximum(length, 2)
    noise = tf.cast(tf.round(tf.cast(padded, tf.float32) * density), tf.int32)
    noise = tf.clip_by_value(noise, 1, padded - 1)
    spans = tf.maximum(tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_span), tf.int32), 1)
    spans = tf.minimum(spans, padded - noise)
    both = tf.stack([_divide(padded - noise, spans, seeds[1]), _divide(noise, spans, seeds[0])], 1)
    is_noise = tf.repeat(tf.tile([False, True], [spans]), tf.reshape(both, [-1]))
    return is_noise[:length]


def _divide(total: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`total` as a sum of `parts` positive numbers, int32[parts], every such sum as likely."""
    cuts = seqio.stateless_shuffle(tf.cast(tf.range(total - 1) < parts - 1, tf.int32), seed)
    part_of = tf.concat([[0], tf.cumsum(cuts)], 0)
    return tf.math.segment_sum(tf.ones_like(part_of), part_of)


def replace_spans(tokens: tf.Tensor, gone: tf.Tensor, first_sentinel: int) -> tf.Tensor:
    """Each run of tokens in the mask becomes one sentinel, counting down from the first."""
    before = _of_last(gone)
    starts = gone & ~before
    sentinels = first_sentinel + 1 - tf.cumsum(tf.cast(starts, tokens.dtype))
    return tf.boolean_mask(tf.where(starts, sentinels, tokens), ~(gone & before))


def objectives() -> None:
    """Prefix LM, span corruption, deshuffling and repair; EOS ends both texts.

    c4_prefix_lm
      inputs:  Beginners BBQ Class Taking Place in Missoula! Do you want to get better at
      targets: making delicious BBQ? You will have the opportunity, put this on your calendar now.
    c4_span_corruption
      inputs:  Beginners BBQ Class <extra_id_0> in Missoula! Do you want to get better at making <extra_id_1> BBQ?
      targets: <extra_id_0> Taking Place<extra_id_1> delicious
    text_deshuffling
      inputs:  Beginners Class BBQ Taking in Place Missoula!
      targets: Beginners BBQ Class Taking Place in Missoula!
    text_repair
      inputs:  Beginners BBQ Taking Class Place in Missoula!
      targets: Class Taking Place
    text_prefix_lm, text_span_corruption: the same over the files in DATA_DIR/corpus
    text_prefix_lm_and_repair, text_span_corruption_and_repair: mixtures of two, half and half
    """
    c4 = Source("c4/en:3.1.0", {"train": "train", "validation": "validation"})
    for name, source, objective in (
        ("c4_prefix_lm", c4, prefix_lm),
        ("c4_span_corruption", c4, span_corruption),
        ("text_prefix_lm", TextFiles(), prefix_lm),
        ("text_span_corruption", TextFiles(), span_corruption),
        ("text_deshuffling", TextFiles(), deshuffling),
        ("text_repair", TextFiles(), repair),
    ):
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[
                text_as_targets,
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                objective,
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=FEATURES,
            metric_fns=[],
        )
    for half in ("text_prefix_lm", "text_span_corruption"):
        seqio.MixtureRegistry.add(f"{half}_and_repair", [half, "text_repair"], default_rate=1.0)


objectives()
