"""What a prompt is before training: functions from a `Start` to `prompt[P D]` (Lester et al. 2021, §3.2; SPoT §2)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning import kinds, prompt_file
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Start:
    """What an init may use."""

    length: int  # P
    features: int  # D
    embed: Callable[[np.ndarray], np.ndarray]  # token ids[n] -> frozen embeddings float32[n D]
    vocabulary: Vocabulary | None = None
    labels: Sequence[str] = ()
    base_digest: str | None = None

    def pieces(self, text: str) -> np.ndarray:
        """Token ids of a text, or an error where the vocabulary cannot spell it."""
        if self.vocabulary is None:
            raise UserError(f"To start a prompt from the text {text!r}, a vocabulary is needed: set VOCABULARY_FILE.")
        ids = np.asarray(self.vocabulary.encode(text), np.int32)
        if len(ids) == 0 or self.vocabulary.unk_id in ids:
            raise UserError(
                f"The vocabulary {self.vocabulary.path} cannot spell the label or text {text!r}"
                f" (pieces: {[self.vocabulary.piece(int(i)) for i in ids]}). Choose other words."
            )
        return ids


Vectors = Float[Array | np.ndarray, "P D"]
Init = Callable[..., Vectors]  # init(start, *, rng)


@gin.configurable
def random_uniform(start: Start, scale: float = 0.5, *, rng: Array) -> Vectors:
    """U[-scale, scale], the paper's range."""
    kinds.check(kinds.NUMBER, **{"random_uniform.scale": scale})
    return jax.random.uniform(rng, (start.length, start.features), minval=-scale, maxval=scale)


@gin.configurable
def random_uniform_reference(start: Start, scale: float = 0.5, *, rng: Array) -> Vectors:
    """U[0, scale), which the authors' released configuration draws from."""
    kinds.check(kinds.NUMBER, **{"random_uniform_reference.scale": scale})
    return jax.random.uniform(rng, (start.length, start.features), maxval=scale)


@gin.configurable
def sampled_vocabulary(start: Start, population: int = 5000, *, rng: Array) -> Vectors:
    """Embeddings of `length` of the `population` most common pieces (the first ids), none twice."""
    kinds.check(kinds.WHOLE, **{"sampled_vocabulary.population": population})
    known = start.vocabulary.size if start.vocabulary else population
    population = min(population, known)
    ids = jax.random.choice(rng, population, (start.length,), replace=start.length > population)
    return start.embed(np.asarray(ids))


@gin.configurable
def class_labels(
    start: Start, words: Sequence[str] | None = None, fallback: Init = sampled_vocabulary, *, rng: Array
) -> Vectors:
    """One vector a label, the mean of its pieces' embeddings, in label order; the rest is `fallback`'s.

    `words` stand for the labels where others are to start from, or where the answer is free text.
    """
    kinds.check(kinds.TEXTS, True, **{"class_labels.words": words})
    kinds.check(kinds.FUNCTION, **{"class_labels.fallback": fallback})
    chosen = start.labels if words is None else words
    if not chosen:
        raise UserError(
            "The class-label init needs labels, and this task's answers are free text."
            " Type --gin.class_labels.words=\"['yes', 'no']\" to start from these words, or choose another PROMPT_INIT,"
            " such as @sampled_vocabulary. (CLASS_LABELS are the answers that a task ranks.)"
        )
    vectors = [start.embed(start.pieces(label)).mean(axis=0) for label in chosen][: start.length]
    prompt = np.array(fallback(start, rng=rng))
    prompt[: len(vectors)] = vectors
    return prompt


@gin.configurable
def class_labels_if_any(start: Start, *, rng: Array) -> Vectors:
    """`class_labels` for a task that has labels, `sampled_vocabulary` for one of free text."""
    return (class_labels if start.labels else sampled_vocabulary)(start, rng=rng)


@gin.configurable
def text(start: Start, text: str = gin.REQUIRED, *, rng: Array) -> Vectors:
    """The embedded pieces of a text, repeated or cut to the prompt's length."""
    del rng
    kinds.check(kinds.TEXT, PROMPT_TEXT=text)
    return np.resize(start.embed(start.pieces(text)), (start.length, start.features))


@gin.configurable
def from_file(start: Start, path: str = gin.REQUIRED, *, rng: Array) -> Vectors:
    """A prompt trained before, wherever `prompt_file.find` finds it: SPoT's transfer, or going on with a run."""
    del rng
    kinds.check(kinds.PLACE, PROMPT_FILE=path)
    return _fitting(start, path)


@dataclasses.dataclass(frozen=True)
class Saved:
    """An init of one slot's own: a prompt trained before, or the weighted average of several (Vu et al. 2022, §3).

    In SLOTS and GRID it is written as the prompt's place, or as a table {place: weight}.
    """

    places: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)  # their sum is taken out

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.places) or not self.places:
            raise UserError(f"{len(self.places)} prompts and {len(self.weights)} weights; each prompt has one.")
        if not all(isinstance(w, int | float) and w > 0 for w in self.weights):
            raise UserError(f"The weights of an average are above 0; found {self.weights}.")

    @property
    def __name__(self) -> str:
        if len(self.places) == 1:
            return self.places[0]
        return " + ".join(f"{weight:.6g} {place}" for place, weight in zip(self.places, self.weights, strict=True))

    def __call__(self, start: Start, *, rng: Array) -> Vectors:
        del rng
        if len(self.places) == 1:
            return _fitting(start, self.places[0])
        shares = np.asarray(self.weights, np.float64) / np.sum(self.weights, dtype=np.float64)
        mixed = np.zeros((start.length, start.features), np.float64)
        for share, place in zip(shares, self.places, strict=True):
            mixed += share * _fitting(start, place)
        return mixed.astype(np.float32)


def of(given: Any) -> Init:
    """An init as it stands in SLOTS: a function, the place of a prompt, or a table from places to weights."""
    if isinstance(given, str) and given.isidentifier() and not _exists(given):
        raise UserError(
            f"init of a slot is a function, such as @class_labels, or a trained prompt's place; {given!r} is neither."
            + (f" Type @{given}." if given in globals() else "")
        )
    if isinstance(given, str):
        return Saved((given,))
    if isinstance(given, Mapping):
        return Saved(tuple(given), tuple(given.values()))
    return given


def _exists(place: str) -> bool:
    try:
        return Path(place).exists()
    except OSError:  # too long for a name
        return False


def _fitting(start: Start, place: str) -> np.ndarray:
    """The vectors of a prompt that has the length, width and base that `start` wants."""
    prompt = prompt_file.load(place)
    prompt.check_width(start.features, place, "this base")
    if len(prompt.vectors) != start.length:
        raise UserError(
            f"The prompt {place} has {len(prompt.vectors)} vectors, and this run wants {start.length}."
            f" Type --gin.PROMPT_LENGTH={len(prompt.vectors)}."
        )
    if start.base_digest and prompt.card.base_digest not in ("", start.base_digest):
        raise UserError(
            f"The prompt in {place} was tuned on a base with other weights, {prompt.card.base}; its vectors mean"
            f" nothing to this one. Type --gin.INITIAL_CHECKPOINT_PATH={prompt.card.base} or choose another prompt."
        )
    return prompt.vectors
