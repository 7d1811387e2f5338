"""The paper's Adafactor, and any optimizer over the slots of a bank as if each slot were alone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from prompt_tuning import kinds
from prompt_tuning.errors import UserError

MakeOptimizer = Callable[[Any], optax.GradientTransformation]  # from a learning rate
Schedule = Callable[[Any], Any]  # step -> factor on the learning rate


@gin.configurable
def adafactor(
    learning_rate: float | Float[Array, ""],
    step_origin: int = 0,
    decay_rate: float = 0.8,
    weight_decay_rate: float = 1e-5,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = False,
    momentum: float | None = None,
) -> optax.GradientTransformation:
    """Adafactor, as for prompts without parameter scaling or momentum (Lester et al. 2021, §3.2; Shazeer & Stern 2018).

    `step_origin` is the step that the second-moment decay `1 - (step + 1) ** -decay_rate` starts from. T5X goes on
    from the base checkpoint's step (1,100,000 for the LM-adapted T5), so that its second moments hardly forget; 0 is a
    fresh optimizer. Weight decay is not multiplied by the learning rate.
    """
    numbers = {"adafactor.decay_rate": decay_rate, "adafactor.min_dim_size_to_factor": min_dim_size_to_factor}
    kinds.check(kinds.NUMBER, STEP_ORIGIN=step_origin, WEIGHT_DECAY=weight_decay_rate, **numbers)
    optional = {"adafactor.clipping_threshold": clipping_threshold, "adafactor.momentum": momentum}
    kinds.check(kinds.NUMBER, True, **optional)
    return optax.adafactor(
        learning_rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        decay_offset=-step_origin,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=clipping_threshold,
        momentum=momentum,
        weight_decay_rate=weight_decay_rate or None,
    )


@gin.configurable
def constant_schedule(step: Any) -> Any:
    """The paper's schedule."""
    return jnp.ones_like(step, jnp.float32)


@gin.configurable
def linear_warmup(step: Any, steps: int = 1000) -> Any:
    """From 0 to 1 in `steps`, constant from there."""
    kinds.check(kinds.NUMBER, **{"linear_warmup.steps": steps})
    return jnp.minimum(1.0, (step + 1) / steps).astype(jnp.float32)


@gin.configurable
def linear_decay(step: Any, steps: int = 30_000, warmup: int = 0) -> Any:
    """From 0 to 1 in `warmup` steps, then down to 0 at `steps`."""
    kinds.check(kinds.NUMBER, **{"linear_decay.steps": steps, "linear_decay.warmup": warmup})
    rise = (step + 1) / max(warmup, 1)
    fall = (steps - step) / max(steps - warmup, 1)
    return jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0).astype(jnp.float32)


@gin.configurable
def inverse_square_root(step: Any, warmup: int = 10_000) -> Any:
    """T5's pre-training schedule, 1 until `warmup` and falling as the root of the step from there."""
    kinds.check(kinds.NUMBER, **{"inverse_square_root.warmup": warmup})
    return jnp.sqrt(warmup / jnp.maximum(step + 1, warmup)).astype(jnp.float32)


def check(make: Any) -> None:
    """Raises UserError for an OPTIMIZER of one's own that makes none of a learning rate."""
    wanted = (
        "it is a function that makes one of LEARNING_RATE, such as optax.adamw or"
        " `lambda rate: optax.adamw(rate, b1=0.8)`."
    )
    if hasattr(make, "update"):
        raise UserError(f"OPTIMIZER is an optimizer that has its learning rate already; {wanted}")
    kinds.check(kinds.FUNCTION, OPTIMIZER=make)
    if why := kinds.uncallable(make, 0.0):
        raise UserError(f"OPTIMIZER cannot be called with a learning rate ({why}); {wanted}")
    if not hasattr(made := make(0.0), "update"):
        raise UserError(f"OPTIMIZER makes {made!r:.60} of a learning rate, and no optimizer; {wanted}")


class Optimizer(NamedTuple):
    """`init(trainable)`, `update(gradient, state, trainable, step) -> (trainable, state)`, and what becomes of a slot.

    `choose(slots, new, old)` is `new`, a pair as `update` returns it, in `slots[K]` and `old` in all others.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    choose: Callable[[Bool[Array, "K"], tuple[Any, Any], tuple[Any, Any]], tuple[Any, Any]]


def whole(make: MakeOptimizer, learning_rate: float, schedule: Schedule = constant_schedule) -> Optimizer:
    """One optimizer over the whole tree (model tuning, pretraining)."""

    def update(gradient: Any, state: Any, trainable: Any, step: Any) -> tuple[Any, Any]:
        updates, state = make(learning_rate * schedule(step)).update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state

    def choose(slots: Bool[Array, "K"], new: tuple[Any, Any], old: tuple[Any, Any]) -> tuple[Any, Any]:
        return jax.tree.map(functools.partial(jnp.where, slots[0]), new, old)

    return Optimizer(make(learning_rate).init, update, choose)


def over_slots(
    make: MakeOptimizer, lengths: Sequence[int], learning_rates: Sequence[float], schedule: Schedule = constant_schedule
) -> Optimizer:
    """One optimizer for every slot of `{"prompt": {"bank": bank[K P D]}}`, with statistics and clipping of its own.

    Slots of one length are updated together under vmap. A slot shorter than the bank is cut to its own length first,
    so that padding takes no part in its second moments, its factoring or its clipping.
    """
    groups = {n: np.flatnonzero(np.asarray(lengths) == n) for n in sorted(set(lengths))}
    rates = np.asarray(learning_rates, np.float32)

    def init(trainable: Any) -> dict[str, Any]:
        bank = trainable["prompt"]["bank"]
        return {str(n): jax.vmap(make(0.0).init)(bank[slots, :n]) for n, slots in groups.items()}

    def update(gradient: Any, state: dict[str, Any], trainable: Any, step: Any) -> tuple[Any, dict[str, Any]]:
        bank, gradients = trainable["prompt"]["bank"], gradient["prompt"]["bank"]
        factor, new_state = schedule(step), {}
        for n, slots in groups.items():
            one = lambda rate, *slot: make(rate * factor).update(*slot)
            prompts = bank[slots, :n]
            updates, new_state[str(n)] = jax.vmap(one)(rates[slots], gradients[slots, :n], state[str(n)], prompts)
            bank = bank.at[slots, :n].set(optax.apply_updates(prompts, updates))
        return {"prompt": {"bank": bank}}, new_state

    def choose(slots: Bool[Array, "K"], new: tuple[Any, Any], old: tuple[Any, Any]) -> tuple[Any, Any]:
        of = lambda mask: lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y)
        states = {str(n): jax.tree.map(of(slots[group]), new[1][str(n)], old[1][str(n)]) for n, group in groups.items()}
        return jax.tree.map(of(slots), new[0], old[0]), states

    return Optimizer(init, update, choose)
