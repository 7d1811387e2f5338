"""Trains the tiny base's vocabulary: prompt_tuning/tiny/spiece.model, from public-domain English books.

    python scripts/make_vocabulary.py --corpus books.txt.xz         # seed 0, 100,000 lines, 2 threads; 5 min

The corpus is one paragraph a line, plain or .xz. As T5's: unigram, NFKC with the spaces of `nmt_nfkc`, a character
coverage of 0.9995, unknown characters stay unknown, ids pad 0, `</s>` 1, unknown 2, no start of sequence. Beyond what
that covers, every printable ASCII character is in: in old novels a Q or a 7 is rarer than one character in 2,000.

The 100 sentinels are not in the file. `Vocabulary(path)` here and `seqio.SentencePieceVocabulary(path, extra_ids=100)`
both append them behind the pieces, last first: of 8,000 pieces `<extra_id_99>` is 8000 and `<extra_id_0>` is 8099.
"""

import argparse
import io
import lzma
import re
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from prompt_tuning.vocabulary import Vocabulary

OUT = Path(__file__).parents[1] / "prompt_tuning/tiny/spiece.model"
SLUR = re.compile(r"^(▁?)(n.gg.rs?)$", re.IGNORECASE)
REQUIRED = "".join(c for c in string.printable if not c.isspace()) + "“”‘’–—£é"  # noqa: RUF001


def lines(corpus: Path) -> Iterator[str]:
    """The corpus's lines without their ends, from a plain or an .xz file."""
    with lzma.open(corpus, "rt", encoding="utf-8") if corpus.suffix == ".xz" else corpus.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def sampled(corpus: Path, size: int, seed: int) -> list[str]:
    """`size` lines drawn without replacement (all of them if there are fewer), in the corpus's order."""
    everything = [line for line in lines(corpus) if line]
    chosen = np.random.default_rng(seed).permutation(len(everything))[:size]
    return [everything[i] for i in np.sort(chosen)]


def train(sentences: list[str], pieces: int, threads: int) -> bytes:
    """A serialised sentencepiece model with T5's settings and ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        character_coverage=0.9995,
        required_chars=REQUIRED,
        byte_fallback=False,
        num_threads=threads,
    )
    return model.getvalue()


def masked(model: bytes) -> bytes:
    """The model with slurs of old books spelled so that nobody has to read them; each keeps its id."""
    found = ModelProto()
    found.ParseFromString(model)
    for piece in found.pieces:
        piece.piece = SLUR.sub(lambda slur: f"{slur[1]}{slur[2][0]}{'*' * (len(slur[2]) - 1)}", piece.piece)
    return found.SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=OUT)
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--input_sentence_size", type=int, default=100_000, help="lines drawn from the corpus")
    parser.add_argument("--num_threads", type=int, default=2, help="sums over threads round: another number, other ids")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.perf_counter()
    sentences = sampled(args.corpus, args.input_sentence_size, args.seed)
    print(f"{len(sentences):,} lines, {sum(map(len, sentences)):,} characters", file=sys.stderr)
    model = masked(train(sentences, args.pieces, args.num_threads))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(model)

    vocabulary = Vocabulary(args.output)
    probe = sentences[:: max(1, len(sentences) // 2000)]
    tokens = sum(map(len, vocabulary.encode_all(probe)))
    print(
        f"{args.output}: {len(model):,} bytes, {args.pieces:,} pieces, {vocabulary.size:,} ids with the sentinels, "
        f"{sum(map(len, probe)) / tokens:.2f} characters a token, {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
