"""How much of this machine's matrix-product speed pretraining uses: model FLOP/s over the peak measured beside it.

    python scripts/bench_pretrain.py [--config models/tiny_base.gin] [--rows 64] [--inputs 64] [--targets 20]

Counted are the products a T5 cannot do without, forward and twice that backward: weights times the tokens they see, and
attention's logits and sums. Softmax, norms, activations and the optimizer cost time but count nothing. Step and peak
are timed in turns, and the medians compared.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from timed_steps import forward_flops

import prompt_tuning.train  # noqa: F401 - registers what gin files name
from prompt_tuning import allocator, configure, device, layout, optim
from prompt_tuning.base import random_base
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, TrainState, train_step

PEAK = 4096, 2048, 2048  # of the product that the peak is measured on


def main() -> None:
    allocator.start_in_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="models/tiny_base.gin")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    configure.parse([options.config])
    config = T5Config()
    step, state, batch = compiled(config, options)
    product = jax.jit(jnp.dot)
    left, right = jnp.ones(PEAK[:2]), jnp.ones(PEAK[1:])
    product(left, right).block_until_ready()
    steps, peaks = [], []
    for _ in range(options.repeats):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, {}, batch))
        steps.append(time.perf_counter() - started)
        started = time.perf_counter()
        product(left, right).block_until_ready()
        peaks.append(time.perf_counter() - started)
    work = 3 * options.rows * forward_flops(config, options.inputs, options.targets)
    peak = 2 * np.prod([float(n) for n in PEAK]) / statistics.median(peaks)
    seconds = statistics.median(steps)
    tokens = options.rows * (options.inputs + options.targets)
    print(f"step of {tokens:,} tokens: {seconds:.3f} s, {tokens / seconds:,.0f} tokens/s, {work / 1e9:.1f} GFLOP")
    print(f"{work / seconds / 1e9:.1f} GFLOP/s of a peak of {peak / 1e9:.1f} GFLOP/s: {work / seconds / peak:.0%}")


def compiled(config: T5Config, options: argparse.Namespace):
    """A compiled step over full rows, its state and its batch."""
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(2, config.vocab_size, length).astype(np.int32)
    items = [layout.Item(draw(options.inputs), [draw(options.targets)], 0, n) for n in range(options.rows)]
    batch = layout.pack(items, layout.Shape(options.inputs, options.targets, (options.rows,)))
    params = random_base(config, 0).params
    make = functools.partial(optim.adafactor, multiply_by_parameter_scale=True, momentum=0.9, weight_decay_rate=0.0)
    optimizer = optim.whole(make, 0.01)
    step, rng, failures = jnp.zeros((), jnp.int32), jnp.zeros((1, 2), jnp.uint32), jnp.zeros(1, jnp.int32)
    state = TrainState(params, optimizer.init(params), step, rng, failures)
    pure = functools.partial(train_step, model=Model(config), optimizer=optimizer, dropout_rate=0.0)
    step = jax.jit(pure, donate_argnums=0, compiler_options=device.compiler_options())
    state, _ = step(state, {}, batch)
    return step, state, batch


if __name__ == "__main__":
    main()
