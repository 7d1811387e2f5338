"""Weights, prompts and batches of the parity fixtures, the same wherever they are drawn (numpy's frozen generator).

Read both by scripts/record_t5x.py, which runs in T5X's environment, and by the tests: it needs numpy only.
"""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np

STEPS = 20
DECODE_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded run: sizes, prompt, and what of the recipe differs from the paper's."""

    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    layers: int
    vocab_size: int
    prompt_length: int
    batch: int
    input_length: int
    target_length: int
    z_loss: float = 1e-4
    weight_decay: float = 1e-5
    learning_rate: float = 0.3

    @property
    def kept(self) -> slice:
        """Prompt rows that the fixture holds: few of a long prompt, to stay small."""
        return slice(None, None, 1 if self.prompt_length < 100 else 15)


CASES = {
    "short": Case(16, 3, 6, 24, 2, 96, 5, 4, 24, 6),
    # both sides of the prompt reach 128, so that Adafactor factors its second moments; z-loss and weight decay large
    # enough to be seen in the numbers
    "long": Case(128, 2, 8, 24, 1, 64, 150, 3, 20, 7, z_loss=1e-2, weight_decay=1e-3),
}


def _random(*key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32("/".join(key).encode()))


EMBEDDED = 10.0  # the scale of a real T5's embeddings, which a learning rate of 0.3 goes with


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter by its T5X name: norms about 1, kernels that keep the scale of what passes through them."""
    values = _random(name).standard_normal(shape)
    if name.endswith("scale"):
        values = 1 + 0.2 * values
    elif name.endswith("query/kernel"):
        values = values * 0.3 * shape[0] ** -0.5  # attention that is not all or nothing
    elif name.endswith("kernel"):
        values = values * shape[0] ** -0.5
    elif name.endswith("token_embedder/embedding"):
        values = values * EMBEDDED
    return values.astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All parameters of the frozen model, by flat name."""
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def prompt(case: Case) -> np.ndarray:
    """The prompt before training, [P D]."""
    return (EMBEDDED * _random("prompt").standard_normal((case.prompt_length, case.emb_dim))).astype(np.float32)


def batch(case: Case, step: int) -> dict[str, np.ndarray]:
    """Padded inputs [B T] and targets [B L] of unequal lengths, each ending in EOS."""
    random = _random("batch", str(step))

    def padded(longest: int) -> np.ndarray:
        rows = np.zeros((case.batch, longest), np.int32)
        for row in rows:
            length = random.randint(2, longest + 1)
            row[: length - 1] = random.randint(3, case.vocab_size, length - 1)
            row[length - 1] = 1
        return rows

    return {"inputs": padded(case.input_length), "targets": padded(case.target_length)}
