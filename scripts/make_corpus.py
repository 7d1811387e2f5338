"""Divides a corpus of books into what a base is pretrained on and what it is validated on.

    python scripts/make_corpus.py books.txt.xz OUT

`books.txt[.xz]` has one paragraph a line, a book's paragraphs in order. OUT/corpus/train.txt and
OUT/corpus/validation.txt are what the tasks text_span_corruption and text_prefix_lm read with DATA_DIR=OUT. Validation
is the stretches that the demonstration tasks take their validation sentences from (make_demo_tasks.py), so that the
base has never read those. Training text is shuffled in blocks of neighbouring paragraphs: every part of it is of many
books.
"""

import argparse
import random
from pathlib import Path

from make_demo_tasks import held_out
from make_vocabulary import lines

BLOCK = 32  # paragraphs that stay together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paragraphs = list(lines(options.books))
    train = [line for n, line in enumerate(paragraphs) if not held_out(n)]
    blocks = [train[i : i + BLOCK] for i in range(0, len(train), BLOCK)]
    random.Random(options.seed).shuffle(blocks)
    (options.out / "corpus").mkdir(parents=True, exist_ok=True)
    write(options.out / "corpus" / "train.txt", [line for block in blocks for line in block])
    write(options.out / "corpus" / "validation.txt", [line for n, line in enumerate(paragraphs) if held_out(n)])


def write(path: Path, paragraphs: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in paragraphs), "utf-8")
    print(f"{path}: {len(paragraphs):,} paragraphs, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
