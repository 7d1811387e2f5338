"""What every kind of base offers before its weights are read."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.stack import T5Config


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, in T5X's layout, not read yet."""

    shape: tuple[int, ...]
    read: Callable[..., np.ndarray]  # read() is all of it; a T5X tensor also reads a part, read(index)


LARGEST, MOST_LAYERS = 1 << 24, 128  # beyond the sizes of any T5


def of_a_t5(config: T5Config, path: str) -> T5Config:
    """The sizes that `path` tells, if a T5 can have them; checked before anything of these sizes is made.

    Raises UserError with those that no T5 has.
    """
    odd = {name: size for name, size in vars(config).items() if type(size) is int and not 0 < size <= LARGEST}
    odd |= {name: vars(config)[name] for name in vars(config) if "layers" in name and vars(config)[name] > MOST_LAYERS}
    if odd:
        told = ", ".join(f"{name} {size:,}" for name, size in odd.items())
        raise UserError(f"{path} tells sizes that no T5 has: {told}. Copy it again, or give the folder of another one.")
    return config


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened base: its sizes, and its tensors under T5X's names."""

    path: str
    config: T5Config
    tensors: Mapping[str, Tensor]
    unknown: tuple[str, ...] = ()  # tensors that have no T5X name
    step: int | None = None
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # T5X name -> the file's own

    def label(self, name: str) -> str:
        """A tensor's name as the reader knows it: the file's own, and T5X's where they differ."""
        own = self.names.get(name, name)
        return own if own == name else f"{own} ({name})"

    def read(self, name: str) -> np.ndarray:
        """One tensor, as `numbers`."""
        return numbers(self.path, self.label(name), self.tensors[name])


def numbers(path: str, name: str, tensor: Tensor) -> np.ndarray:
    """All of a tensor as contiguous float32. Raises UserError where the files in `path` do not hold it."""
    try:
        array = tensor.read()
    except UserError:
        raise
    except Exception as error:  # files from elsewhere fail in many ways: TensorStore, zlib, safetensors, the disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The tensor {name} in {path} cannot be read ({reason[:300]}). The copy is damaged or incomplete: copy it"
            " again."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"The tensor {name} in {path} holds {array.dtype}, not floating point.")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"The tensor {name} in {path} holds infinities or NaN: copy it again.")
    return array
