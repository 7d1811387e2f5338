"""Tokenised examples on the host, as every room below the data room sees them (numpy only)."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from prompt_tuning.errors import UserError, nearest

HIDDEN = "<unk>"  # the target of an example whose label is kept back, as in the test sets of GLUE
LENGTHS = {"inputs": 512, "targets": 62}  # tokens at most, EOS included: T5's for SuperGLUE
UNCUT = dict.fromkeys(LENGTHS, 2**31 - 1)  # no text is that long


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Token sequences of unequal lengths in one flat array: sequence i is `tokens[starts[i]:starts[i + 1]]`."""

    tokens: np.ndarray  # int32[sum of lengths]
    starts: np.ndarray  # int64[N + 1]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int] | np.ndarray]) -> "Ragged":
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = itertools.chain.from_iterable(sequences)  # of Python integers, for which an array each takes longer
        return cls(np.fromiter(tokens, np.int32, int(starts[-1])), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split of one task: `inputs[i]` and `targets[i]` end in EOS unless they were cut at the length limit."""

    task: str
    split: str
    inputs: Ragged
    targets: Ragged
    texts: Sequence[Mapping[str, Any]]  # what was tokenised, and what the metric needs besides
    truncated: int = 0  # how many inputs were cut
    cut_targets: int = 0

    def __len__(self) -> int:
        return len(self.inputs)


def digest(sets: Iterable[Examples]) -> str:
    """SHA-256 of the tokens of several sets."""
    total = hashlib.sha256()
    for examples in sets:
        for ragged in (examples.inputs, examples.targets):
            total.update(ragged.starts.astype("<i8").tobytes() + ragged.tokens.astype("<i4").tobytes())
    return total.hexdigest()


class Task(Protocol):
    """What training and evaluation ask of a task, whoever defines it."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers to rank, in label order; empty where the answer is free text."""
        ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    @property
    def scored(self) -> bool:
        """Whether it has metrics."""
        ...

    def load(self, split: str) -> Examples:
        """All examples of a split, in the split's own order."""
        ...

    def texts(self, split: str) -> Sequence[Mapping[str, Any]]:
        """What `load` tokenises; for looking at a task rather than training on it."""
        ...

    def score(self, examples: Examples, predictions: Sequence[str]) -> dict[str, float]:
        """The task's metrics, in percent, of one predicted text for every example."""
        ...


def part_of(split: str, splits: Sequence[str], task: str, place: Any) -> tuple[str, int | None]:
    """The split that is meant by `train` or `train[:1000]`, and how many of its first examples; None: all.

    Raises UserError if it is none of `splits`, which are those of a `task` at a `place`.
    """
    match = re.fullmatch(r"(\w+)(?:\[:(\d+)\])?", split)
    name = match[1] if match else split
    if name in splits:
        return name, int(match[2]) if match and match[2] else None
    there = ", ".join(splits) or "none"
    instead = ' To go by examples trained on, type --gin.EVAL_SPLIT="train[:200]".' if "train" in splits else ""
    raise UserError(f"Task {task} has no split {split!r} in {place}; it has {there}.{nearest(split, splits)}{instead}")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Tasks and the rates they are drawn at; a single task is a mixture of one."""

    name: str
    tasks: tuple[Task, ...]
    rates: tuple[float, ...]  # sum to 1; a task that is only evaluated has rate 0


CAP = 2**19  # the most examples that a task counts for: K of Vu et al. 2022, §2.1


def proportional(mixtures: Sequence[Mixture], cap: int = CAP) -> Mixture:
    """Several tasks or mixtures as one, each task drawn in proportion to its training examples, `cap` at most."""
    tasks = list({task.name: task for mixture in mixtures for task in mixture.tasks}.values())
    sizes = [min(len(task.load("train")), cap) if "train" in task.splits else 0 for task in tasks]
    total = sum(sizes) or 1
    return Mixture("+".join(m.name for m in mixtures), tuple(tasks), tuple(size / total for size in sizes))
