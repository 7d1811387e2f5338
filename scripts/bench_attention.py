"""Times a GPU's kernels for attention over packed rows, and says how far each is from float32.

    python scripts/bench_attention.py               # heads of XL, 32 examples of BoolQ's lengths
    python scripts/bench_attention.py --heads 12    # of base

Needs what scripts/bench_device.py needs. Forward and backward are of one layer, bias and mask put together each time.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # an uninstalled checkout will do

import timed_steps

from prompt_tuning import by_row, layout, planning

KERNELS = by_row.by_tiles, by_row.by_cudnn, by_row.by_xla


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="boolq", choices=timed_steps.LENGTHS)
    parser.add_argument("--batch", type=int, default=32, help="examples")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--times", type=int, default=30)
    options = parser.parse_args()
    segments = packed(options.text, options.batch)
    given = drawn(segments, options.heads, options.head_dim)
    with jax.default_matmul_precision("highest"):
        exact = computed(by_row.by_xla, segments, *given, dtype="float32")
    rows, length = segments.shape
    print(f"{rows} rows of {length} positions, {options.heads} heads of {options.head_dim}, bfloat16")
    print(f"{'':10} {'forward ms':>11} {'both ms':>8} {'off float32':>12}")
    for kernel in KERNELS:
        try:
            found = computed(kernel, segments, *given)
            off = max(np.linalg.norm(one - two) / np.linalg.norm(two) for one, two in zip(found, exact, strict=True))
            forward, both = (1e3 * seconds(f, args, options.times) for f, args in programs(kernel, segments, *given))
        except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
            print(f"{kernel.__name__:10} {str(error).splitlines()[0][:100]}")
        else:
            print(f"{kernel.__name__:10} {forward:>11.3f} {both:>8.3f} {off:>12.2%}", flush=True)


def packed(text: str, batch: int) -> jax.Array:
    """The segments `[R S]` of a batch of such text behind prompts."""
    group = timed_steps.items(text, batch, slots=1, step=0)
    shape = planning.plan([group], (max(item.length for item in group), timed_steps.TARGET), more=False)
    return jnp.asarray(layout.pack(group, shape, timed_steps.PROMPT).encoder_segments)


def drawn(segments: jax.Array, heads: int, head_dim: int) -> tuple[jax.Array, ...]:
    """Query, keys, values, what comes back (0 where nothing stands), bias, and what dropout leaves."""
    (rows, length), keys = segments.shape, iter(jax.random.split(jax.random.key(0), 6))
    query, key, value, change = (jax.random.normal(next(keys), (rows, length, heads, head_dim)) for _ in range(4))
    bias = jax.random.normal(next(keys), (1, heads, length, length))
    keep = jax.random.bernoulli(next(keys), 0.9, (rows, heads, 1, length)) / 0.9
    change = jnp.where((segments > 0)[:, :, None, None], change, 0)
    narrow = (y.astype(jnp.bfloat16) for y in (query * head_dim**-0.25, key * head_dim**-0.25, value, change))
    return *narrow, bias, keep


def programs(kernel: Callable[..., Any], segments: jax.Array, *given: jax.Array) -> list[tuple[Any, tuple]]:
    """Forward alone, and forward and backward, each with what it is given."""
    query, keys, values, change, bias, keep = given
    one = lambda query, keys, values: kernel(query, keys, values, segments, bias, keep)
    both = lambda query, keys, values, change: _both(one, query, keys, values, change)
    return [(jax.jit(one), (query, keys, values)), (jax.jit(both), (query, keys, values, change))]


def _both(one: Callable[..., Any], *given: jax.Array) -> Any:
    *inputs, change = given
    seen, back = jax.vjp(one, *inputs)
    return seen, *back(change)


def computed(
    kernel: Callable[..., Any], segments: jax.Array, *given: jax.Array, dtype: str = "bfloat16"
) -> list[np.ndarray]:
    """What is seen where something stands, and the gradients of query, keys and values."""
    _, (program, args) = programs(kernel, segments, *(y.astype(dtype) for y in given[:4]), *given[4:])
    seen, *back = (np.asarray(y, np.float32) for y in program(*args))
    return [seen[np.asarray(segments) > 0], *back]


def seconds(program: Callable[..., Any], args: tuple, times: int) -> float:
    """Of one call among many, the least of three rounds."""
    jax.block_until_ready(program(*args))
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready([program(*args) for _ in range(times)][-1])
        rounds.append((time.perf_counter() - started) / times)
    return min(rounds)


if __name__ == "__main__":
    main()
