"""Answers of a prompted T5: `read` packed examples once, then decode greedily, by beam search or by sampling.

Every decoder has one signature and is picked in gin (`DECODER = @beam_search`):

    decoder(params, sources, *, model, max_length, rng=None) -> Decoded

All shapes are static, so it compiles under `jax.jit` with everything but `params`, `sources` and `rng` bound
beforehand. An example's answer does not depend on the rows, the slots or the examples it is packed with.
"""

from collections.abc import Callable
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import kinds
from prompt_tuning.decoder import Cache, empty_cache, regroup
from prompt_tuning.errors import UserError
from prompt_tuning.layout import Batch
from prompt_tuning.split import Params
from prompt_tuning.step import Model

PAD, EOS = 0, 1  # T5's ids; the decoder also starts from 0
NEVER = -1e7  # score of a hypothesis that does not exist, as in T5X; no real one comes near it


class Decoded(NamedTuple):
    """Each example's answers, best first."""

    tokens: Int[Array, "N O L"]  # EOS last, then 0; without EOS if `max_length` ended it
    scores: Float[Array, "N O"]  # log-likelihood under the model, EOS included
    lengths: Int[Array, "N O"]  # tokens, EOS included; 0 where there is no example or no such answer


class Sources(NamedTuple):
    """What N answers are written from, one example each."""

    encoded: Float[Array, "N S' D"]
    seen: Bool[Array, "N S'"]  # not padding
    numbers: Int[Array, "N"]  # of each example in its slot: what is drawn for it comes from that

    @property
    def present(self) -> Bool[Array, "N"]:
        """False for the examples that a last batch lacks."""
        return self.seen.any(1)


def read(params: Params, batch: Batch, numbers: Int[Array, "N"], *, model: Model, length: int) -> Sources:
    """Encodes packed rows, or a batch in parts, and lays the examples out one a row, where none may be longer than S'.

    In a batch in parts `example_numbers` tell where each example stands among the N.
    """
    encoded, seen = unpack(model.encode_parts(params, batch), batch, length, len(numbers))
    return Sources(partitioning.with_sharding_constraint(encoded, ("batch", "length", "embed")), seen, numbers)


def unpack(
    encoded: Float[Array, "*G R S D"], batch: Batch, length: int, count: int
) -> tuple[Float[Array, "N S' D"], Bool[Array, "N S'"]]:
    """Encoder output with one example a row, and where it is not padding; `length` is S', `count` N."""
    segments, positions = jnp.asarray(batch.encoder_segments), jnp.asarray(batch.encoder_positions)
    nowhere, owner = segments.size, segments - 1
    if batch.in_parts:
        owner = jax.vmap(lambda numbers, of: numbers[of])(jnp.asarray(batch.example_numbers), owner)
    owner = jnp.where(segments > 0, owner, count)  # -1 would count from the end
    at = jnp.arange(nowhere, dtype=jnp.int32).reshape(segments.shape)
    index = jnp.full((count, length), nowhere, jnp.int32).at[owner, positions].set(at, mode="drop")
    unpacked = encoded.reshape(nowhere, encoded.shape[-1]).at[index].get(mode="fill", fill_value=0)
    return unpacked, index < nowhere


@gin.configurable
def greedy(
    params: Params,
    sources: Sources,
    *,
    model: Model,
    max_length: int,
    rng: Array | None = None,
) -> Decoded:
    """The likeliest token at each step; one answer an example. `rng` is not used."""
    del rng
    best = lambda logits, step: logits.argmax(-1).astype(jnp.int32)
    return _one_token_after_another(params, sources, best, model=model, max_length=max_length, outputs=1)


@gin.configurable
def sample(
    params: Params,
    sources: Sources,
    *,
    model: Model,
    max_length: int,
    rng: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    outputs: int = 1,
) -> Decoded:
    """Draws `outputs` answers an example from the distribution at `temperature`, cut by `top_k`, then by `top_p`.

    An answer depends on `rng` and the example's number (`sources.numbers`), not on what else is in the batch.
    Its score is the log-likelihood under the model itself, neither tempered nor cut.
    Raises UserError for settings that leave nothing to draw, ValueError without `rng`.
    """
    _check_sampling(temperature, top_k, top_p, outputs)
    if rng is None:
        raise ValueError("sample draws random numbers: give rng=jax.random.key(SEED)")
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = fold(rng, sources.numbers)
    keys = jax.vmap(fold, in_axes=(0, None))(keys, jnp.arange(outputs)).reshape(-1)

    def draw(logits: Float[Array, "B V"], step: Int[Array, ""]) -> Int[Array, "B"]:
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        kept = cut(logits / temperature, top_k, top_p)
        return jax.vmap(jax.random.categorical)(now, kept).astype(jnp.int32)

    decoded = _one_token_after_another(params, sources, draw, model=model, max_length=max_length, outputs=outputs)
    scores, order = jax.lax.top_k(decoded.scores, outputs)
    return Decoded(_pick(decoded.tokens, order), scores, _pick(decoded.lengths, order))


def cut(logits: Float[Array, "B V"], top_k: int | None, top_p: float | None) -> Float[Array, "B V"]:
    """Logits with -inf outside the `top_k` likeliest and outside the fewest that together have probability `top_p`."""
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p is not None and top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.where(before < top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None, outputs: int) -> None:
    kinds.check(kinds.NUMBER, **{"sample.temperature": temperature})
    kinds.check(kinds.NUMBER, True, **{"sample.top_p": top_p})
    kinds.check(kinds.WHOLE, True, **{"sample.top_k": top_k})
    kinds.check(kinds.WHOLE, **{"sample.outputs": outputs})
    if not temperature > 0:
        raise UserError(
            f"sample.temperature is {temperature}; give more than 0, or pick @greedy for the likeliest token."
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"sample.top_p is {top_p}; it is a probability above 0 and at most 1, or None.")


class _Answers(NamedTuple):
    tokens: Int[Array, "B L"]
    scores: Float[Array, "B"]
    lengths: Int[Array, "B"]
    done: Bool[Array, "B"]
    last: Int[Array, "B"]
    cache: Cache


def _one_token_after_another(
    params: Params,
    sources: Sources,
    choose: Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, "B"]],
    *,
    model: Model,
    max_length: int,
    outputs: int,
) -> Decoded:
    """Extends B = N * `outputs` answers by what `choose(logits, step)` says until each has its EOS."""
    examples = sources.seen.shape[0]
    count, cross = examples * outputs, model.apply(params, "project", sources.encoded)

    def unfinished(s: _Answers) -> Bool[Array, ""]:
        return (s.cache["index"] < max_length) & ~s.done.all()

    def extend(s: _Answers) -> _Answers:
        step = s.cache["index"]
        logits, cache = model.apply(params, "step", s.last, s.cache, cross, sources.seen)
        chosen = choose(logits, step)
        gained = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=-1)[:, 0]
        new = jnp.where(s.done, PAD, chosen)
        tokens = jax.lax.dynamic_update_slice_in_dim(s.tokens, new[:, None], step, axis=1)
        scores = s.scores + jnp.where(s.done, 0.0, gained)
        lengths = s.lengths + (~s.done).astype(jnp.int32)
        return _Answers(tokens, scores, lengths, s.done | (new == EOS), new, cache)

    zeros = jnp.zeros(count, jnp.int32)
    start = _Answers(
        tokens=jnp.zeros((count, max_length), jnp.int32),
        scores=jnp.zeros(count, jnp.float32),
        lengths=zeros,
        done=jnp.repeat(~sources.present, outputs),
        last=zeros + PAD,
        cache=empty_cache(model.config, count, max_length),
    )
    end = jax.lax.while_loop(unfinished, extend, start)
    return Decoded(*(x.reshape(examples, outputs, *x.shape[1:]) for x in (end.tokens, end.scores, end.lengths)))


class _Beams(NamedTuple):
    live_tokens: Int[Array, "N beams L"]
    live_scores: Float[Array, "N beams"]  # log-likelihood so far, best first
    finished_tokens: Int[Array, "N beams L"]
    finished_scores: Float[Array, "N beams"]  # log-likelihood / brevity, best first; NEVER where none yet
    cache: Cache  # of N * beams targets


def brevity(length: Int[Array, "..."] | int, alpha: float) -> Float[Array, "..."]:
    """What a log-likelihood is divided by, `((5 + length) / 6) ** alpha`, EOS counted (Wu et al. 2016, as in T5X)."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


@gin.configurable
def beam_search(
    params: Params,
    sources: Sources,
    *,
    model: Model,
    max_length: int,
    rng: Array | None = None,
    beams: int = 4,
    alpha: float = 0.6,
    outputs: int = 1,
) -> Decoded:
    """T5X's beam search: the `outputs` best of `beams` finished answers, ordered by log-likelihood / `brevity`.

    Of the 2 * `beams` best continuations those that end compete with the finished ones, and the `beams` best of the
    others live on. It stops when no live answer can overtake the worst finished one. Unfinished answers are returned
    only for an example that has no finished one. `rng` is not used. Raises UserError for settings that make no sense.
    """
    del rng
    _check_beams(beams, alpha, outputs)
    examples = sources.seen.shape[0]
    cross = model.apply(params, "project", sources.encoded)

    def unfinished(s: _Beams) -> Bool[Array, ""]:
        reachable = s.live_scores[:, 0] / brevity(max_length, alpha)
        settled = (s.finished_scores[:, -1] > reachable) | ~sources.present
        return (s.cache["index"] < max_length) & ~settled.all()

    def extend(s: _Beams) -> _Beams:
        step = s.cache["index"]
        last = jax.lax.dynamic_index_in_dim(s.live_tokens, jnp.maximum(step - 1, 0), axis=2, keepdims=False)
        last = jnp.where(step > 0, last, PAD).reshape(-1)
        logits, cache = model.apply(params, "step", last, s.cache, cross, sources.seen)
        return _advance(s, logits, cache, alpha)

    tokens = jnp.zeros((examples, beams, max_length), jnp.int32)
    nothing = jnp.full((examples, beams), NEVER, jnp.float32)
    cache = empty_cache(model.config, examples * beams, max_length)
    start = _Beams(tokens, nothing.at[:, 0].set(0.0), tokens, nothing, cache)  # one beam lives at first
    end = jax.lax.while_loop(unfinished, extend, start)
    return _best(end, sources.present, alpha, outputs)


def likeliest(logits: Float[Array, "B V"], count: int) -> tuple[Float[Array, "B T"], Int[Array, "B T"]]:
    """The `count` likeliest tokens, best first, as log-probabilities and ids."""
    best, tokens = jax.lax.top_k(logits, min(count, logits.shape[-1]))
    top = best.max(-1, keepdims=True)  # if best[:, :1] were cut out, XLA on a CPU would sort all logits
    total = jnp.exp(logits - top).sum(-1, keepdims=True)
    return best - top - jnp.log(total), tokens


def _advance(s: _Beams, logits: Float[Array, "B V"], cache: Cache, alpha: float) -> _Beams:
    """One more token: the best continuations, parted into those that live on and those that end."""
    examples, beams, _ = s.live_tokens.shape
    step = s.cache["index"]
    gained, tokens = (x.reshape(examples, beams, -1) for x in likeliest(logits, 2 * beams))
    total, each = s.live_scores[:, :, None] + gained, gained.shape[-1]
    scores, best = jax.lax.top_k(total.reshape(examples, beams * each), 2 * beams)
    parents, new = best // each, _pick(tokens.reshape(examples, beams * each), best)
    tokens = jax.lax.dynamic_update_slice_in_dim(_pick(s.live_tokens, parents), new[:, :, None], step, axis=2)
    ended = new == EOS

    live_scores, chosen = jax.lax.top_k(jnp.where(ended, scores + NEVER, scores), beams)
    ancestors = _pick(parents, chosen)
    cache = regroup(cache, lambda x: _pick(x.reshape(examples, beams, *x.shape[1:]), ancestors).reshape(x.shape))

    ranked = jnp.where(ended & (scores > NEVER / 2), scores / brevity(step + 1, alpha), NEVER)
    finished_scores, kept = jax.lax.top_k(jnp.concatenate([s.finished_scores, ranked], axis=1), beams)
    finished_tokens = _pick(jnp.concatenate([s.finished_tokens, tokens], axis=1), kept)
    return _Beams(_pick(tokens, chosen), live_scores, finished_tokens, finished_scores, cache)


def _best(s: _Beams, present: Bool[Array, "N"], alpha: float, outputs: int) -> Decoded:
    """Finished answers, or the live ones of an example without any; scores without the brevity penalty."""
    max_length = s.live_tokens.shape[2]
    finished = s.finished_scores[:, :1] > NEVER / 2
    ends = s.finished_tokens == EOS
    lengths = jnp.where(ends.any(2), ends.argmax(2).astype(jnp.int32) + 1, 0)
    scores = jnp.where(lengths > 0, s.finished_scores * brevity(lengths, alpha), NEVER)
    tokens = jnp.where(finished[:, :, None], s.finished_tokens, s.live_tokens)
    scores = jnp.where(finished, scores, s.live_scores)
    lengths = jnp.where(finished, lengths, jnp.where(s.live_scores > NEVER / 2, max_length, 0))
    here = present[:, None]
    tokens, scores = jnp.where(here[:, :, None], tokens, PAD), jnp.where(here, scores, 0.0)
    return Decoded(tokens[:, :outputs], scores[:, :outputs], jnp.where(here, lengths, 0)[:, :outputs])


def _pick(x: Array, index: Int[Array, "N O"]) -> Array:
    """`x[n, index[n]]` for every example."""
    return jax.vmap(lambda one, at: one[at])(x, index)


def _check_beams(beams: int, alpha: float, outputs: int) -> None:
    kinds.check(kinds.WHOLE, **{"beam_search.beams": beams, "beam_search.outputs": outputs})
    kinds.check(kinds.NUMBER, **{"beam_search.alpha": alpha})
    if outputs > beams:
        raise UserError(f"beam_search.outputs is {outputs} of {beams} beams; give 1 to {beams}, or more beams.")
    if alpha < 0:
        raise UserError(f"beam_search.alpha is {alpha}; give 0 (no reward for length) or more, 0.6 as in T5X.")
