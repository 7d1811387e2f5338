"""Attention row by row as one kernel, which keeps all pairs of positions of a row on the chip.

`attention.attend` as XLA compiles it for an accelerator writes every `[S S]` array to memory and reads it again, which
takes longer than the products of a layer. A TPU has the kernel of `row_kernel.py`, a GPU that of `tile_kernel.py`, or
cuDNN's where JAX no longer compiles it.
"""

import concurrent.futures
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.linen import partitioning
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import backend, row_kernel

SHORTEST = 64  # positions of a row that is worth a kernel; below 8, compilers refuse some


@struct.dataclass
class Rows:
    """Each position looks at those of its segment."""

    segments: Int[Array, "R S"]


def fits(length: int, heads: int, head_dim: int, dtype: Any) -> bool:
    """Whether the devices that this is traced for have a kernel for rows of `length` and heads of `dtype`."""
    platform = backend.platform()
    if platform not in ("tpu", "gpu") or length < SHORTEST:
        return False
    shared_by = jax.sharding.get_abstract_mesh().shape.get(_axes()[1], 1)
    if heads % shared_by:
        return False
    if platform == "tpu":
        return row_kernel.fits(length, heads // shared_by, head_dim, dtype)
    narrow = jnp.dtype(dtype).itemsize == 2 and length % 2 == 0 and head_dim in (16, 32, 64, 128)
    return narrow and backend.compute_capability() >= 8.0 and of_gpu(head_dim, jnp.dtype(dtype).name) is not None


def attend(
    query: Float[Array, "R S H A"],
    keys: Float[Array, "R S H A"],
    values: Float[Array, "R S H A"],
    rows: Rows,
    bias: Float[Array, "1 H S S"],
    keep: Float[Array, "R H 1 S"] | None,
) -> Float[Array, "R S H A"]:
    """What every position sees, on each device for its rows and heads; logits, softmax and sums are float32."""
    one: Any = by_kernel
    if backend.platform() == "gpu":
        one = of_gpu(query.shape[-1], query.dtype.name)
    return _on_each_device(one)(query, keys, values, rows.segments, bias, keep)


def by_kernel(
    query: Array, keys: Array, values: Array, segments: Array, bias: Array, keep: Any, interpret: bool = False
) -> Float[Array, "R S H A"]:
    """On a TPU; or anywhere, to `interpret` what it would compute."""
    joined = (y.reshape(*y.shape[:2], -1) for y in (query, keys, values))
    return row_kernel.attend(query.shape[-1], interpret, *joined, segments, bias[0], keep).reshape(query.shape)


def by_tiles(
    query: Array, keys: Array, values: Array, segments: Array, bias: Array, keep: Any, interpret: bool = False
) -> Float[Array, "R S H A"]:
    """On a GPU; or anywhere, to `interpret` what it would compute."""
    from prompt_tuning import tile_kernel  # which JAX may no longer compile

    length = segments.shape[1]
    more = -length % tile_kernel.MULTIPLE
    longer = lambda y, *axes: jnp.pad(y, [(0, more if axis in axes else 0) for axis in range(y.ndim)]) if more else y
    heads = (longer(y, 1) for y in (query, keys, values))
    left = None if keep is None else longer(keep[:, :, 0], 2)
    return tile_kernel.attend(interpret, *heads, longer(segments, 1), longer(bias[0], 1, 2), left)[:, :length]


def by_cudnn(*args: Any) -> Float[Array, "R S H A"]:
    """On a GPU."""
    return _by_jax("cudnn", *args)


def by_xla(*args: Any) -> Float[Array, "R S H A"]:
    """Anywhere; what a GPU's kernels have to answer."""
    return _by_jax("xla", *args)


def _by_jax(
    implementation: Any, query: Array, keys: Array, values: Array, segments: Array, bias: Array, keep: Any
) -> Float[Array, "R S H A"]:
    if keep is not None:  # dropout is alike for all queries of an example: it may as well drop values
        values = values * jnp.swapaxes(keep, 1, 3)[:, :, 0, :, None].astype(values.dtype)
    mask: Bool[Array, "R 1 S S"] = (segments[:, :, None] == segments[:, None, :])[:, None]
    bias = bias.astype(query.dtype)
    return jax.nn.dot_product_attention(query, keys, values, bias, mask, scale=1.0, implementation=implementation)


def of_gpu(head_dim: int, dtype: str) -> Callable[..., Array] | None:
    """The first of a GPU's kernels that answers; of a GPU that is not here, the first."""
    kernels = by_tiles, by_cudnn
    here = jax.default_backend() == "gpu"
    return next((kernel for kernel in kernels if not here or answers(kernel, head_dim, dtype)), None)


@functools.cache
def answers(kernel: Callable[..., Array], head_dim: int, dtype: str) -> bool:
    """Whether a kernel gives on this machine what XLA gives in float32, forward and backward; asked once.

    In a thread of its own, which knows nothing of what is being traced.
    """
    rng = np.random.default_rng(0)
    query, keys, values, change = (rng.normal(size=(2, 128, 2, head_dim)) for _ in range(4))
    bias, keep = rng.normal(size=(1, 2, 128, 128)), rng.binomial(1, 0.9, (2, 2, 1, 128)) / 0.9
    segments = 1 + np.arange(256).reshape(2, 128) // 50 % 3

    def found(kernel: Callable[..., Array], computed: str) -> list[np.ndarray]:
        *seeing, by_seen = (jnp.asarray(y, dtype).astype(computed) for y in (query, keys, values, change))
        beside = jnp.asarray(segments), jnp.asarray(bias, jnp.float32), jnp.asarray(keep, jnp.float32)
        seen, back = jax.vjp(jax.jit(lambda query, keys, values: kernel(query, keys, values, *beside)), *seeing)
        return [np.asarray(y, np.float32) for y in (seen, *back(by_seen))]

    with concurrent.futures.ThreadPoolExecutor(1) as apart:
        try:
            pairs = list(zip(*apart.map(found, (kernel, by_xla), (dtype, "float32")), strict=True))
        except (RuntimeError, ValueError, NotImplementedError, ImportError, AttributeError) as error:
            why = str(error).strip().partition("\n")[0]
        else:
            why = "it answers otherwise than XLA"
            if all(np.linalg.norm(one - two) < 0.05 * np.linalg.norm(two) for one, two in pairs):
                return True
    warnings.warn(f"{kernel.__name__}: this kernel for attention is not used, which is slower: {why}", stacklevel=2)
    return False


def _on_each_device(f: Callable[..., Array]) -> Callable[..., Array]:
    """`f` for the rows and heads of each device: XLA cannot share out a kernel by itself."""
    batch, heads = _axes()
    names = {axis for axis in (batch, heads) if axis in jax.sharding.get_abstract_mesh().auto_axes}
    if not names:
        return f
    whole = PartitionSpec(batch, None, heads)
    ins = whole, whole, whole, PartitionSpec(batch), PartitionSpec(None, heads), PartitionSpec(batch, heads)
    return jax.shard_map(f, in_specs=ins, out_specs=whole, axis_names=names, check_vma=False)


def _axes() -> tuple[str | None, ...]:
    """The mesh axes of rows and heads."""
    return tuple(partitioning.logical_to_mesh_axes(("batch", "heads")) or (None, None))
