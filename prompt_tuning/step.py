"""The pure steps: train on a packed batch, score targets; one way for prompt tuning, model tuning and pretraining."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from prompt_tuning import device, loss, split
from prompt_tuning.dropout import Dropout
from prompt_tuning.layers import Stream
from prompt_tuning.layout import Batch, Filled
from prompt_tuning.optim import Optimizer
from prompt_tuning.prompt import PromptBank
from prompt_tuning.stack import T5Config
from prompt_tuning.t5 import T5

RUNAWAY = 1e15  # a prompt with a number beyond this would overflow in the squares of the first norm
GIVEN_UP = 10  # unsound steps in a row after which a slot is left as it is


@struct.dataclass
class TrainState:
    """All that a step changes, and nothing else: the frozen parameters are an argument of the step."""

    trainable: split.Params
    opt_state: Any
    step: Int[Array, ""]  # from 0
    rng: UInt32[Array, "K 2"]  # key data of each slot
    failures: Int[Array, "K"]  # unsound steps of each slot in a row


@dataclasses.dataclass(frozen=True)
class Model:
    """A T5 behind a bank of `slots` prompts of up to `length` vectors (0: no prompt).

    Of packed rows only what is `filled` is computed, where that is given.
    """

    config: T5Config
    slots: int = 1
    length: int = 0
    filled: Filled | None = None

    def apply(self, params: split.Params, method: str, *args: Any) -> Any:
        """Runs one of T5's pieces with the frozen part of `params`."""
        frozen = {name: part for name, part in params.items() if name != "prompt"}
        return T5(self.config).apply({"params": frozen}, *args, method=method)

    def encode(self, params: split.Params, batch: Batch, dropout: Dropout | None = None) -> Float[Array, "R S D"]:
        """Embeds the tokens, places the prompts, encodes the rows."""
        embedded = self.apply(params, "embed", batch.encoder_tokens)
        if self.length:
            layer = PromptBank(self.slots, self.length, self.config.emb_dim)
            embedded = layer.apply({"params": params["prompt"]}, embedded, batch.prompt_rows)
        return self.apply(params, "encode", embedded, self.source(batch), dropout)

    def encode_parts(self, params: split.Params, batch: Batch) -> Float[Array, "*G R S D"]:
        """Encoder output of the batch, or of each of its G parts: 0 of those that hold nothing."""
        if not batch.in_parts:
            return self.encode(params, batch)

        def one_after_another(batch: Batch, params: split.Params) -> Float[Array, "G R S D"]:
            zero = jnp.zeros((*batch.encoder_tokens.shape, self.config.emb_dim), self.config.dtype)
            return _of_each_part(lambda part: self.encode(params, part), batch, zero)

        return device.joined_over_data(one_after_another, batch, params)

    def logits(self, params: split.Params, batch: Batch, dropout: Dropout | None = None) -> Float[Array, "R L V"]:
        """Teacher-forced logits of every target token."""
        encoded = self.encode(params, batch, dropout)
        count = batch.target_examples.shape[0]
        widths = (self.filled.target,) if self.filled else ()
        stream = Stream(batch.decoder_segments, batch.decoder_positions, count, widths)
        args = (batch.decoder_inputs, stream, batch.decoder_examples, encoded, self.source(batch), dropout)
        return self.apply(params, "decode", *args)

    def source(self, batch: Batch) -> Stream:
        """What stands in the encoder's rows."""
        known = (self.filled.widths, self.filled.block) if self.filled else ()
        return Stream(batch.encoder_segments, batch.encoder_positions, batch.example_slots.shape[0], *known)


def dropout_of(state: TrainState, batch: Batch, rate: float) -> Dropout | None:
    """Keys from the slot's seed, the step and the example's number in its slot: the same however it is packed."""
    if not rate:
        return None
    slot_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(jax.random.wrap_key_data(state.rng), state.step)
    keys = jax.vmap(jax.random.fold_in)(slot_keys[batch.example_slots], batch.example_numbers)
    return Dropout(keys, rate)


def slot_losses(
    params: split.Params, batch: Batch, *, model: Model, z_loss: float, dropout: Dropout | None = None
) -> tuple[Float[Array, "K"], Float[Array, "K"]]:
    """Each slot's loss, summed over its target tokens, and how many tokens those are."""
    losses = loss.token_losses(model.logits(params, batch, dropout), batch.decoder_targets, z_loss)
    slots = batch.example_slots[batch.target_examples]
    by_slot = lambda values: loss.per_slot(
        loss.per_target(values, batch.decoder_segments, slots.shape[0]), slots, model.slots
    )
    return by_slot(losses), by_slot(jnp.ones_like(losses))


def train_step(
    state: TrainState,
    frozen: split.Params,
    batch: Batch,
    *,
    model: Model,
    optimizer: Optimizer,
    dropout_rate: float = 0.1,
    z_loss: float = 1e-4,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of what is trainable; a slot's gradient comes from its own examples only.

    A batch in parts goes through the model part by part, for less memory and less padding: those that hold no example
    are not computed. The metrics are each slot's mean loss a target token, the norm of its gradient, whether it took
    the step, and how many in a row it did not: one whose loss, gradient or new prompt is no finite number stays as it
    was, for good after GIVEN_UP times.
    """
    sane = _sane(state.trainable, model.slots)
    start = _without(~sane, state.trainable)

    def gradient_of(batch: Batch, state: TrainState, start: split.Params, frozen: split.Params) -> Any:
        def total(trainable: split.Params) -> tuple[Float[Array, ""], Any]:
            params, dropout = split.merge(trainable, frozen), dropout_of(state, batch, dropout_rate)
            losses, tokens = slot_losses(params, batch, model=model, z_loss=z_loss, dropout=dropout)
            return losses.sum(), (losses, tokens)

        return jax.grad(total, has_aux=True)(start)

    if batch.in_parts:
        of_parts = functools.partial(_summed_over_parts, gradient_of)
        gradient, (losses, tokens) = device.summed_over_data(of_parts, batch, state, start, frozen)
    else:
        gradient, (losses, tokens) = gradient_of(batch, state, start, frozen)
    mean, norm = losses / jnp.maximum(tokens, 1), _slot_norms(gradient, model.slots)
    new = optimizer.update(gradient, state.opt_state, start, state.step)
    sound = sane & jnp.isfinite(mean) & jnp.isfinite(norm) & _sane(new[0], model.slots)
    took = sound & (state.failures < GIVEN_UP)
    trainable, opt_state = optimizer.choose(took, new, (state.trainable, state.opt_state))
    failures = jnp.where(took, 0, state.failures + 1)
    metrics = {"loss": jnp.where(sane, mean, jnp.nan), "gradient_norm": norm, "took": took, "failures": failures}
    return dataclasses.replace(
        state, trainable=trainable, opt_state=opt_state, step=state.step + 1, failures=failures
    ), metrics


def _summed_over_parts(f: Callable[..., Any], batch: Batch, *args: Any) -> Any:
    """`f(part, *args)` of the parts that hold something, one after another, added up."""
    zero = jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), jax.eval_shape(lambda: f(_part(batch, 0), *args)))
    add = lambda i, sums: jax.tree.map(jnp.add, sums, f(_part(batch, i), *args))
    return jax.lax.fori_loop(0, _filled(batch), add, zero)


def _of_each_part(f: Callable[[Batch], Array], batch: Batch, zero: Float[Array, "G ..."]) -> Float[Array, "G ..."]:
    """`f(part)` of the parts that hold something, one after another; those that do not keep their `zero`."""
    put = lambda i, found: found.at[i].set(f(_part(batch, i)))
    return jax.lax.fori_loop(0, _filled(batch), put, zero)


def _part(batch: Batch, i: Any) -> Batch:
    return Batch(*(jax.lax.dynamic_index_in_dim(array, i, 0, False) for array in batch))


def _filled(batch: Batch) -> Int[Array, ""]:
    """How many parts hold something; they are the first ones."""
    return (batch.encoder_segments > 0).any((1, 2)).sum()


def _sane(trainable: split.Params, slots: int) -> Bool[Array, "K"]:
    """Whether each slot's prompt may enter the model.

    Slots share rows, and what is not finite would reach the others there: a weight of 0 times infinity is no 0.
    """
    if "prompt" not in trainable:
        return jnp.ones((slots,), bool)
    return jnp.abs(trainable["prompt"]["bank"]).max((1, 2)) < RUNAWAY  # false for NaN


def _without(slots: Bool[Array, "K"], trainable: split.Params) -> split.Params:
    """Zeros for the prompts of `slots`."""
    if "prompt" not in trainable:
        return trainable
    bank = trainable["prompt"]["bank"]
    return trainable | {"prompt": {"bank": jnp.where(slots[:, None, None], 0.0, bank)}}


def _slot_norms(gradient: split.Params, slots: int) -> Float[Array, "K"]:
    if "prompt" in gradient:
        return jnp.sqrt(jnp.square(gradient["prompt"]["bank"]).sum((1, 2)))
    squares = sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(gradient))
    return jnp.full((slots,), jnp.sqrt(squares))


def score_targets(params: split.Params, batch: Batch, *, model: Model) -> Float[Array, "*G M"]:
    """Log-likelihood of every target of the batch, or of each of its G parts, its EOS included; dropout off."""
    if batch.in_parts:
        return device.joined_over_data(functools.partial(_scores_of_parts, model), batch, params)
    return _scores(model, batch, params)


def _scores_of_parts(model: Model, batch: Batch, params: split.Params) -> Float[Array, "G M"]:
    zero = jnp.zeros(batch.target_examples.shape, jnp.float32)
    return _of_each_part(lambda part: _scores(model, part, params), batch, zero)


def _scores(model: Model, batch: Batch, params: split.Params) -> Float[Array, "M"]:
    losses = loss.token_losses(model.logits(params, batch), batch.decoder_targets)
    return -loss.per_target(losses, batch.decoder_segments, batch.target_examples.shape[0])
