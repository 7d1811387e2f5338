"""What a prompt's vectors lie near: vocabulary neighbours, the clusters they form, norms (Lester et al. 2021, §7)."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from prompt_tuning import inits, slots
from prompt_tuning.prompt_file import Card, Prompt
from prompt_tuning.vocabulary import Vocabulary

RANDOM_VECTORS = 1000  # that clusters are compared with
SHORTEST_WORD = 3  # letters of a label's piece that counts as one of its words

# the inits that a card's name and seed tell all about
REPEATABLE = {f.__name__: f for f in (inits.class_labels, inits.sampled_vocabulary, inits.random_uniform,
                                      inits.random_uniform_reference)}  # fmt: skip

Table = Float[np.ndarray, "V D"]


@dataclasses.dataclass(frozen=True)
class Position:
    """One vector of a prompt."""

    neighbours: tuple[str, ...]  # pieces, nearest first
    cosines: tuple[float, ...]
    tightness: float  # mean cosine between the neighbours themselves
    clustered: bool  # tighter than the neighbours of all but 1 in 100 random vectors
    label_words: tuple[str, ...]  # of the labels, among the neighbours
    norm: float
    norm_before: float | None  # None: what it was before training is not known
    cosine_before: float | None


@dataclasses.dataclass(frozen=True)
class Reading:
    """A whole prompt."""

    name: str
    task: str
    positions: tuple[Position, ...]
    label_hits: dict[str, list[int]]  # label -> positions that have one of its words among their neighbours
    threshold: float  # tightness above which a position counts as clustered
    random_tightness: tuple[float, ...]  # of the random vectors' neighbours
    embedding_norms: tuple[float, float, float]  # 5%, 50% and 95% of the vocabulary's

    @property
    def clustered(self) -> list[int]:
        """Positions whose neighbours form a cluster, the tightest first."""
        found = [i for i, position in enumerate(self.positions) if position.clustered]
        return sorted(found, key=lambda i: -self.positions[i].tightness)

    @property
    def distinct(self) -> int:
        """How many different pieces are some position's nearest; in long prompts many positions share one."""
        return len({position.neighbours[0] for position in self.positions})


def read(
    prompt: Prompt, table: Table, vocabulary: Vocabulary, before: np.ndarray | None = None, count: int = 5
) -> Reading:
    """Each vector's `count` nearest pieces by cosine; `before[P D]` is the prompt before training, where known."""
    unit = _unit(table[: vocabulary.size])  # the table's padding stands for no piece
    ids, cosines = nearest(prompt.vectors, unit, count)
    tight = tightness(ids, unit)
    noise = np.random.default_rng(0).normal(size=(RANDOM_VECTORS, table.shape[1])).astype(np.float32)
    random_tight = tightness(nearest(noise, unit, count)[0], unit)
    threshold = float(np.quantile(random_tight, 0.99))
    words = {label: label_words(label, vocabulary) for label in prompt.card.labels}
    any_word = set().union(*words.values())
    after_norms = np.linalg.norm(prompt.vectors, axis=1)
    before_norms = None if before is None else np.linalg.norm(before, axis=1)
    moved = None if before is None else (_unit(before) * _unit(prompt.vectors)).sum(axis=1)
    positions = []
    hits: dict[str, list[int]] = {label: [] for label in words}
    for i in range(len(prompt.vectors)):
        pieces = tuple(vocabulary.piece(int(id)) for id in ids[i])
        near = {word_of(piece) for piece in pieces}
        for label, own in words.items():
            hits[label] += [i] if own & near else []
        positions.append(
            Position(
                pieces, tuple(map(float, cosines[i])), float(tight[i]), bool(tight[i] > threshold),
                tuple(sorted(near & any_word)), float(after_norms[i]),
                None if before_norms is None else float(before_norms[i]), None if moved is None else float(moved[i]),
            )
        )  # fmt: skip
    low, middle, high = np.quantile(np.linalg.norm(table[: vocabulary.size], axis=1), [0.05, 0.5, 0.95])
    norms = (float(low), float(middle), float(high))
    random = tuple(map(float, random_tight))
    return Reading(prompt.card.name, prompt.card.task, tuple(positions), hits, threshold, random, norms)


def nearest(
    vectors: Float[np.ndarray, "N D"], unit: Table, count: int
) -> tuple[Int[np.ndarray, "N k"], Float[np.ndarray, "N k"]]:
    """Ids and cosines of the `count` rows of `unit` (of length 1) nearest to each vector, nearest first."""
    cosines = _unit(vectors) @ unit.T
    ids = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    found = np.take_along_axis(cosines, ids, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(found, order, axis=1)


def tightness(ids: Int[np.ndarray, "N k"], unit: Table) -> Float[np.ndarray, "N"]:
    """Mean cosine between the k pieces of each row of `ids`."""
    members = unit[ids]
    pairs = list(itertools.combinations(range(ids.shape[1]), 2))
    return np.mean([(members[:, a] * members[:, b]).sum(axis=1) for a, b in pairs], axis=0)


def word_of(piece: str) -> str:
    """A piece as a word, whatever its case and wherever it stands."""
    return piece.replace("▁", "").lower()


def label_words(label: str, vocabulary: Vocabulary) -> set[str]:
    """The label, and those of its pieces that are long enough to mean it."""
    pieces = {word_of(vocabulary.piece(id)) for id in vocabulary.encode(label)}
    return {label.lower()} | {piece for piece in pieces if len(piece) >= SHORTEST_WORD}


def first_prompt(card: Card, length: int, table: Table, vocabulary: Vocabulary) -> np.ndarray | None:
    """The prompt before training, drawn again from what the card says, `[P D]`; None where a card cannot tell."""
    init = REPEATABLE.get(card.init)
    if init is None or card.seed is None or (init is inits.class_labels and not card.labels):
        return None
    start = inits.Start(length, table.shape[1], lambda ids: table[ids], vocabulary, card.labels)
    slot = slots.Slot(length=length, seed=card.seed, init=init)
    return slots.start_bank([slot], [start])[0]


def _unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    norms: Sequence = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)
