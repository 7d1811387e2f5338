"""Makes the demonstration tasks, prompt_tuning/tiny/tasks/, from sentences of public-domain English books.

    python scripts/make_demo_tasks.py --corpus books.txt.xz         # seed 0; 2 min

The corpus is one paragraph a line, in the books' order. A paragraph gives one example to one task at most, and no
sentence is drawn twice. Half of each split has either label. Validation comes from other stretches of the books than
training: of each 25 stretches of 200 paragraphs the last (`held_out`). A base pretrained without those has not read it.
"""

import argparse
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from make_vocabulary import lines

from prompt_tuning import tiny
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary

STRETCH, EVERY = 200, 25
SHORTEST, LONGEST = 6, 20  # words of a sentence
TOKENS = 44  # of a sentence, so that with the template's and EOS it stays below tiny.LENGTHS
POOL = 30_000  # paragraphs whose words may intrude elsewhere

# fmt: off
FUNCTION = frozenset((
    "a", "an", "the", "of", "to", "in", "on", "at", "by", "for", "with", "from", "into", "and", "but", "or", "if", "as",
    "that", "than", "is", "was", "were", "are", "be", "been", "am", "had", "has", "have", "did", "do", "does", "not",
    "will", "would", "could", "should", "can", "may", "might", "must", "he", "she", "it", "they", "we", "you", "i",
    "his", "her", "its", "their", "my", "your", "our", "him", "them", "us", "me", "this", "these", "those", "who",
    "which", "there",
))
PREPOSITIONS = frozenset(("of", "to", "in", "on", "at", "by", "for", "with", "from", "into"))
DETERMINERS = frozenset(("the", "a", "an", "his", "her", "its", "their", "my", "your", "our", "this", "these", "those"))
TITLES = ("Mr", "Mrs", "Dr", "St", "Messrs", "Esq", "Capt", "Col", "Gen", "Prof", "Rev", "Hon", "No", "Vol", "etc")
# fmt: on
_BREAK = re.compile(r"(?<=[.!?])" + "".join(rf"(?<!\b{title}\.)" for title in TITLES) + r" +(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][a-z]*(?:'[a-z]+)?(?:,? (?:[A-Za-z][a-z]+(?:['-][a-z]+)*|a|I))+[.?]")
# Old novels call people things that have no place in a demonstration.
_INSULT = re.compile(r"nig+er|negro|squaw|dark(?:y|ies)|mulatto|half-breed|chinam[ae]n|coolie|whore|wench", re.I)

Change = Callable[[list[str], int, np.random.Generator], list[str] | None]


@dataclasses.dataclass(frozen=True)
class Demo:
    """One task.

    Attributes:
      asks: what is to be told, for the head of its file.
      labels: of 0 and of 1.
      sentences: those of a paragraph that can be shown with a label.
      change: what is shown of a sentence's words; None where the sentence does not lend itself, whatever its label.
    """

    asks: str
    labels: tuple[str, str]
    sentences: Callable[[str, int], list[str]]
    change: Change


def plain_sentences(text: str) -> list[str]:
    """The sentences of a text that are words and commas alone, short, and with at most one capital inside."""
    found = []
    for sentence in _BREAK.split(text):
        words = sentence.split()
        capitals = sum(w[0].isupper() and w not in ("I", "I,") for w in words[1:])
        if SHORTEST <= len(words) <= LONGEST and capitals <= 1 and _PLAIN.fullmatch(sentence):
            found.append(sentence)
    return [s for s in found if not _INSULT.search(s)]


def narrated(paragraph: str, label: int) -> list[str]:
    """Plain statements of a paragraph in which nobody speaks."""
    return [] if '"' in paragraph else [s for s in plain_sentences(paragraph) if s.endswith(".")]


def spoken(paragraph: str) -> list[str]:
    """Plain sentences between the quotation marks of a paragraph whose marks are paired."""
    parts = paragraph.split('"')
    return [s for part in parts[1::2] for s in plain_sentences(part.strip())] if len(parts) % 2 else []


def spoken_or_narrated(paragraph: str, label: int) -> list[str]:
    return [s for s in spoken(paragraph) if s.endswith(".")] if label else narrated(paragraph, label)


def asked_or_stated(paragraph: str, label: int) -> list[str]:
    return [s for s in spoken(paragraph) if s.endswith("?") == bool(label)]


def inner(words: Sequence[str], function: bool) -> list[int]:
    """Places of the function words, or of the others, that bear no capital and no mark; not the first, not the last."""
    lower = [i for i in range(1, len(words) - 1) if words[i].isalpha() and words[i].islower()]
    return [i for i in lower if (words[i] in FUNCTION) == function]


def swap_or_drop(words: list[str], label: int, rng: np.random.Generator) -> list[str] | None:
    """Wrong: the words of "of the" or alike have changed places, or (3 in 10) what stood behind "the" is gone."""
    pairs = [i for i, two in enumerate(itertools.pairwise(words)) if two[0] in PREPOSITIONS and two[1] in DETERMINERS]
    gone = [i for i in inner(words, False) if words[i - 1] in DETERMINERS and words[i + 1] in FUNCTION]
    if not pairs or not gone:
        return None
    if label == 0 and rng.random() < 0.3:
        del words[rng.choice(gone)]
    elif label == 0:
        i = rng.choice(pairs)
        words[i], words[i + 1] = words[i + 1], words[i]
    return words


def jumble(words: list[str], label: int, rng: np.random.Generator) -> list[str] | None:
    """Mixed: all words inside the sentence stand in another order."""
    places = sorted(inner(words, True) + inner(words, False))
    if len(places) < 5:
        return None
    while label == 0:
        mixed = [words[i] for i in rng.permutation(places)]
        if sum(words[i] != w for i, w in zip(places, mixed, strict=True)) >= 4:
            for i, w in zip(places, mixed, strict=True):
                words[i] = w
            break
    return words


def exchange_halves(words: list[str], label: int, rng: np.random.Generator) -> list[str] | None:
    """Backward: the sentence's second half stands before its first; capitals and the full stop are gone."""
    if any("," in w for w in words):
        return None
    words = [w.lower().rstrip(".") for w in words]
    middle = len(words) // 2 + int(rng.integers(-1, 2))
    return words if label == 1 else words[middle:] + words[:middle]


def intrude(pool: Sequence[str]) -> Change:
    """Strange: two words that carry meaning have given way to such words of other sentences."""

    def change(words: list[str], label: int, rng: np.random.Generator) -> list[str] | None:
        if len(large := inner(words, False)) < 3:
            return None
        for i in rng.choice(large, 2, replace=False) if label == 0 else ():
            while (word := pool[rng.integers(len(pool))]) in words:
                pass
            words[i] = word
        return words

    return change


def without_mark(words: list[str], label: int, rng: np.random.Generator) -> list[str]:
    return [*words[:-1], words[-1].rstrip(".?")]


def demos(paragraphs: Sequence[str], rng: np.random.Generator) -> dict[str, Demo]:
    """All tasks by name, those with the rarest sentences first."""
    drawn = [paragraphs[i] for i in rng.permutation(len(paragraphs))[:POOL]]
    sentences = [sentence.split() for paragraph in drawn for sentence in narrated(paragraph, 1)]
    pool = [words[i] for words in sentences for i in inner(words, False)]  # each as often as it occurs: no word tells
    return {
        "demo_question": Demo(
            "Does the speaker ask or state? The mark at the end is gone.",
            ("statement", "question"),
            asked_or_stated,
            without_mark,
        ),
        "demo_order": Demo(
            "Do the sentence's halves stand in their order, or the second half first?",
            ("backward", "forward"),
            narrated,
            exchange_halves,
        ),
        "demo_speech": Demo(
            "Does somebody in the book say it, or does the book tell it? The quotation marks are gone.",
            ("story", "speech"),
            spoken_or_narrated,
            lambda words, label, rng: words,
        ),
        "demo_jumble": Demo(
            "Is the sentence as it was written, or are its words shuffled?", ("mixed", "plain"), narrated, jumble
        ),
        "demo_intruder": Demo(
            "Is the sentence as it was written, or are two of its words from elsewhere?",
            ("strange", "usual"),
            narrated,
            intrude(pool),
        ),
        "demo_acceptability": Demo(
            "Is the sentence as it was written, or have two words changed places or one gone?",
            ("wrong", "right"),
            narrated,
            swap_or_drop,
        ),
    }


def bare(sentence: str) -> str:
    """A sentence's words, by which it is known again."""
    return re.sub(r"[,.?]", "", sentence.lower())


def held_out(place: int) -> bool:
    """Whether the paragraph at this place of the corpus, counted from 0, is kept for validation."""
    return place // STRETCH % EVERY == EVERY - 1


class Draw:
    """Examples from paragraphs in random order; remembers which paragraphs and sentences are used up."""

    def __init__(self, paragraphs: Sequence[str], vocabulary: Vocabulary, rng: np.random.Generator):
        self.paragraphs, self.vocabulary, self.rng = paragraphs, vocabulary, rng
        self.used: set[int] = set()
        self.drawn: set[str] = set()

    def examples(self, name: str, demo: Demo, size: int, validation: bool) -> list[dict[str, str]]:
        """`size` examples, half of them of either label, shuffled.

        Raises:
          UserError: the corpus has not enough sentences of the kind.
        """
        rows: tuple[list[str], list[str]] = [], []
        for place in self.rng.permutation(len(self.paragraphs)):
            if place in self.used or held_out(place) != validation:
                continue
            label = int(self.rng.integers(2))
            if len(rows[label]) == size // 2:
                label = 1 - label
            if text := self._example(demo, self.paragraphs[place], label):
                rows[label].append(text)
                self.used.add(place)
            if len(rows[0]) + len(rows[1]) == size // 2 * 2:
                break
        else:
            raise UserError(f"The corpus gave {len(rows[0])} and {len(rows[1])} of {size // 2} examples for {name}.")
        made = [{"sentence": text, "label": demo.labels[label]} for label in (0, 1) for text in rows[label]]
        return [made[i] for i in self.rng.permutation(len(made))]

    def _example(self, demo: Demo, paragraph: str, label: int) -> str | None:
        sentences = [s for s in demo.sentences(paragraph, label) if bare(s) not in self.drawn]
        if not sentences:
            return None
        sentence = sentences[self.rng.integers(len(sentences))]
        words = demo.change(sentence.split(), label, self.rng)
        text = " ".join(words or ())
        if not words or len(self.vocabulary.encode(text)) > TOKENS:
            return None
        self.drawn.add(bare(sentence))
        return text


def write(folder: Path, name: str, demo: Demo, splits: dict[str, list[dict[str, str]]]) -> None:
    """NAME.toml, as prompt_tuning.task_file reads it, and NAME.SPLIT.jsonl."""
    toml = [f"# {demo.asks}", 'inputs = "sentence: {sentence}"', 'target = "label"']
    toml += [f"labels = {json.dumps(demo.labels)}", 'metric = "accuracy"']
    for split, rows in splits.items():
        file = f"{name}.{split}.jsonl"
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        toml.append(f'{split} = "{file}"')
    (folder / f"{name}.toml").write_text("\n".join(toml) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=tiny.FOLDER / "tasks")
    parser.add_argument("--train", type=int, default=3500, help="training examples of each task")
    parser.add_argument("--validation", type=int, default=500, help="validation examples of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    paragraphs = list(lines(args.corpus))
    draw = Draw(paragraphs, Vocabulary(tiny.VOCABULARY), rng)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, demo in demos(paragraphs, rng).items():
        start = time.perf_counter()
        sizes = {"train": args.train, "validation": args.validation}
        splits = {s: draw.examples(name, demo, size, s == "validation") for s, size in sizes.items()}
        write(args.output, name, demo, splits)
        seconds = time.perf_counter() - start
        print(f"{name:20} {' '.join(f'{len(r):6,} {s}' for s, r in splits.items())} {seconds:5.0f} s", flush=True)


if __name__ == "__main__":
    main()
