"""Answers behind prompts are those of PyTorch transformers and of T5X, however they are packed.

scripts/record_decode.py and scripts/record_decode_t5x.py recorded the numbers.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_items, stacked

from prompt_tuning import decode, layout
from prompt_tuning.base import load_base
from prompt_tuning.errors import UserError
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, score_targets
from prompt_tuning.t5 import parameter_shapes

GOLDEN = Path(__file__).parent / "golden"
PACKED = layout.Shape(64, 48, (8,))
LONGEST = 32  # prompt and input of the recorded examples


@functools.cache
def golden() -> dict:
    return dict(np.load(GOLDEN / "decode.npz"))


@functools.cache
def recorded() -> tuple[dict, layout.Batch, Model]:
    """The recorded model, made sharp and given to ending answers, its bank of three prompts, and its packed inputs."""
    base, g = load_base(GOLDEN / "t5_1_1"), golden()
    kernel = np.array(base.params["decoder"]["logits_dense"]["kernel"]) * g["sharpness"]
    kernel[:, g["swapped"]] = kernel[:, g["swapped"][::-1]]
    decoder = {**base.params["decoder"], "logits_dense": {"kernel": jnp.asarray(kernel)}}
    params = {**base.params, "decoder": decoder, "prompt": {"bank": jnp.asarray(g["bank"])}}
    return params, layout.pack(recorded_items(), PACKED, g["bank"].shape[1]), Model(base.config, *g["bank"].shape[:2])


def recorded_items() -> list:
    g = golden()
    pairs = enumerate(zip(g["inputs"], g["slots"], strict=True))
    return [layout.Item(x[x > 0], [], int(s), n, int(g["lengths"][s])) for n, (x, s) in pairs]


@functools.cache
def compiled(decoder, model, max_length, **settings):
    def answer(params, batch, rng):
        sources = decode.read(params, batch, batch.example_numbers, model=model, length=LONGEST)
        return decoder(params, sources, model=model, max_length=max_length, rng=rng, **settings)

    return jax.jit(answer)


def run(decoder, params, batch, model, max_length=16, rng=None, **settings) -> decode.Decoded:
    return jax.device_get(compiled(decoder, model, max_length, **settings)(params, batch, rng))


def test_greedy_answers_and_scores_are_those_of_transformers():
    answers = run(decode.greedy, *recorded())
    np.testing.assert_array_equal(answers.tokens[:, 0], golden()["greedy_tokens"])
    np.testing.assert_allclose(answers.scores[:, 0], golden()["greedy_scores"], atol=1e-4)


def test_the_best_beam_and_its_score_are_those_of_transformers():
    answers = run(decode.beam_search, *recorded(), beams=4, alpha=0.0)
    np.testing.assert_array_equal(answers.tokens[:, 0], golden()["beam_tokens"])
    np.testing.assert_allclose(answers.scores[:, 0], golden()["beam_scores"], atol=1e-4)


@pytest.mark.parametrize("i", range(4))
def test_every_beam_and_its_score_are_those_of_t5x(i):
    found = dict(np.load(GOLDEN / "decode_t5x.npz"))
    beams, alpha, max_length = found["settings"][i].tolist()
    settings = {"beams": int(beams), "alpha": alpha, "outputs": int(beams)}
    answers = run(decode.beam_search, *recorded(), max_length=int(max_length), **settings)
    np.testing.assert_array_equal(answers.tokens, found[f"tokens_{i}"])
    ended = (answers.tokens == decode.EOS).any(-1)
    penalised = answers.scores / decode.brevity(answers.lengths, alpha)  # T5X returns these of finished answers
    np.testing.assert_allclose(np.where(ended, penalised, answers.scores), found[f"scores_{i}"], atol=1e-4)
    np.testing.assert_array_equal(answers.lengths[ended], (answers.tokens == decode.EOS).argmax(-1)[ended] + 1)


def test_a_beam_of_everything_finds_the_best_of_all_possible_answers():
    config = T5Config(6, 8, 2, 4, 12, 1, 1)
    rng, model, alpha = np.random.default_rng(0), Model(config), 0.9
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.7), jnp.float32)
    params = jax.tree.map(draw, parameter_shapes(config))
    every = [a for n in (1, 2, 3) for a in itertools.product(range(6), repeat=n) if a[-1] == 1 and 1 not in a[:-1]]
    inputs = np.array([3, 4, 1], np.int32)
    item = layout.Item(inputs, [np.array(a, np.int32) for a in every])
    batch = layout.pack([item], layout.Shape(8, item.target_length, (1,)))
    likelihoods = np.asarray(jax.jit(functools.partial(score_targets, model=model))(params, batch))
    expected = likelihoods / np.asarray(decode.brevity(np.array([len(a) for a in every]), alpha))
    order = np.argsort(-expected)[:10]
    batch = layout.pack([layout.Item(inputs, [])], layout.Shape(16, 4, (1,)))
    answers = run(decode.beam_search, params, batch, model, max_length=3, beams=36, alpha=alpha, outputs=10)
    found = [tuple(t[:n].tolist()) for t, n in zip(answers.tokens[0], answers.lengths[0], strict=True)]
    assert found == [every[i] for i in order]
    np.testing.assert_allclose(answers.scores[0], likelihoods[order], atol=1e-5)


DECODERS = {
    "greedy": (decode.greedy, {}),
    "beams": (decode.beam_search, {"outputs": 4}),
    "samples": (decode.sample, {"outputs": 3, "temperature": 0.8, "top_k": 20, "top_p": 0.9}),
}
each_decoder = pytest.mark.parametrize("decoder, settings", DECODERS.values(), ids=DECODERS)


@each_decoder
def test_a_score_is_the_log_likelihood_of_the_answer(decoder, settings):
    params, batch, model = recorded()
    answers = run(decoder, params, batch, model, rng=jax.random.key(3), **settings)
    given = [
        layout.Item(item.inputs, [a[: max(n, 1)] for a, n in zip(*pair, strict=True)], item.slot, 0, item.prompt_length)
        for item, *pair in zip(recorded_items(), answers.tokens, answers.lengths, strict=True)
    ]
    shape = layout.Shape(48, 16 * answers.tokens.shape[1], (24,), per_row=1)
    targets = layout.pack(given, shape, model.length)
    likelihoods = np.asarray(jax.jit(functools.partial(score_targets, model=model))(params, targets))
    exists = answers.lengths > 0
    np.testing.assert_allclose(answers.scores[exists], likelihoods.reshape(exists.shape)[exists], atol=1e-4)


@each_decoder
def test_packed_rows_of_mixed_prompts_decode_as_each_example_alone(decoder, settings):
    params, batch, model = recorded()
    together = run(decoder, params, batch, model, rng=jax.random.key(5), **settings)
    for n, item in list(enumerate(recorded_items()))[::3]:
        one = layout.pack([item], PACKED, model.length, examples=24)
        alone = run(decoder, params, one, model, rng=jax.random.key(5), **settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[n])
        np.testing.assert_allclose(alone.scores[0], together.scores[n], atol=1e-4)


@each_decoder
def test_scanned_layers_answer_as_layers_one_by_one(decoder, settings):
    params, batch, model = recorded()
    config = dataclasses.replace(model.config, scan_layers=True)
    scanned = Model(config, model.slots, model.length)
    one = run(decoder, params, batch, model, rng=jax.random.key(5), **settings)
    other = run(decoder, stacked(params), batch, scanned, rng=jax.random.key(5), **settings)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@each_decoder
def test_examples_that_a_last_batch_lacks_change_nothing_and_get_no_answer(decoder, settings):
    params, batch, model = recorded()
    full = run(decoder, params, batch, model, rng=jax.random.key(5), **settings)
    short = layout.pack(recorded_items()[:20], PACKED, model.length, examples=24)
    answers = run(decoder, params, short, model, rng=jax.random.key(5), **settings)
    np.testing.assert_array_equal(answers.tokens[:20], full.tokens[:20])
    assert not answers.tokens[20:].any() and not answers.lengths[20:].any() and not answers.scores[20:].any()


def test_unpacked_rows_are_the_encoder_output_of_each_example_alone():
    params, batch, model = recorded()
    encode = jax.jit(lambda b: decode.unpack(model.encode(params, b), b, LONGEST, 24))
    together, seen = encode(batch)
    for n, item in list(enumerate(recorded_items()))[::2]:
        alone, here = encode(layout.pack([item], PACKED, model.length, examples=24))
        assert seen[n].sum() == item.length and (seen[n] == here[0]).all() and not alone[1:].any()
        np.testing.assert_allclose(together[n], alone[0], atol=2e-5)


@each_decoder
def test_decoding_stops_as_soon_as_nothing_can_change(decoder, settings):
    steps = []

    class Counted(Model):
        def apply(self, params, method, *args):
            if method == "step":
                jax.debug.callback(lambda: steps.append(1))
            return super().apply(params, method, *args)

    params, batch, model = recorded()
    item = recorded_items()[int(np.argmax(golden()["greedy_tokens"][:, 1] == 1))]
    batch = layout.pack([item], layout.Shape(32, 4, (1,)), model.length, examples=2)
    counted = Counted(model.config, model.slots, model.length)
    answers = run(decoder, params, batch, counted, max_length=64, rng=jax.random.key(0), **settings)
    jax.effects_barrier()
    assert answers.lengths.max() <= len(steps) < 64
    if decoder is not decode.beam_search:
        assert answers.lengths.max() == len(steps)


def test_sampling_the_likeliest_token_only_is_greedy():
    answers = run(decode.sample, *recorded(), rng=jax.random.key(0), top_k=1)
    expected = run(decode.greedy, *recorded())
    for found, wanted in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (None, None, [0, 1, 2, 3, 4]),
        (2, None, [1, 3]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (None, 0.4, [3]),
        (None, 0.41, [1, 3]),
        (None, 0.69, [1, 3]),
        (None, 0.71, [1, 3, 4]),
        (None, 1e-6, [3]),
        (2, 0.56, [3]),  # 0.4 of the 0.7 that top_k leaves is 0.57
        (2, 0.58, [1, 3]),
    ],
)
def test_cut_keeps_the_fewest_likeliest_tokens_that_reach_the_probability(top_k, top_p, kept):
    probabilities = np.array([[0.08, 0.3, 0.02, 0.4, 0.2]], np.float32)
    logits = np.asarray(decode.cut(jnp.log(probabilities) + 7, top_k, top_p))[0]
    assert np.flatnonzero(np.isfinite(logits)).tolist() == kept
    np.testing.assert_allclose(logits[kept], np.log(probabilities[0, kept]) + 7, rtol=1e-6)


def test_samples_come_as_often_as_the_model_says():
    params, _, model = recorded()
    item, count, temperature, top_k = recorded_items()[0], 6000, 4.0, 3
    teacher = jax.jit(lambda b: model.logits(params, b)[0] / temperature)

    def next_token(before: list[int]) -> dict[int, float]:
        target = [np.array([*before, 0, 0][:2], np.int32)]
        given = layout.Item(item.inputs, target, item.slot, 0, item.prompt_length)
        logits = np.asarray(teacher(layout.pack([given], layout.Shape(48, 2, (1,)), model.length)))[len(before)]
        best = np.argsort(-logits)[:top_k]
        weights = np.exp(logits[best] - logits[best].max())
        return dict(zip(best.tolist(), (weights / weights.sum()).tolist(), strict=True))

    expected = {}
    for first, p in next_token([]).items():
        after = {0: 1.0} if first == decode.EOS else next_token([first])
        expected |= {(first, second): p * q for second, q in after.items()}
    batch = layout.pack([item], layout.Shape(48, 2, (1,)), model.length)
    settings = {"outputs": count, "temperature": temperature, "top_k": top_k}
    answers = run(decode.sample, params, batch, model, max_length=2, rng=jax.random.key(1), **settings)
    found = {pair: int((answers.tokens[0] == pair).all(-1).sum()) for pair in expected}
    assert sum(found.values()) == count
    deviations = [(found[a] - count * p) / np.sqrt(count * p * (1 - p)) for a, p in expected.items()]
    assert len(expected) >= 7 and np.abs(deviations).max() < 3.5
    assert (np.diff(answers.scores[0]) <= 0).all(), "best first"


def test_samples_differ_by_seed_and_by_example():
    params, _, model = recorded()
    item = recorded_items()[5]
    twins = [layout.Item(item.inputs, [], item.slot, n, item.prompt_length) for n in (0, 1)]
    batch = layout.pack(twins, layout.Shape(64, 4, (1,)), model.length)
    draws = [run(decode.sample, params, batch, model, rng=jax.random.key(s), temperature=5.0).tokens for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() and (draws[0][0] != draws[0][1]).any()


@each_decoder
def test_hypotheses_share_their_example_and_every_dtype_is_stated(decoder, settings):
    config = T5Config(97, 16, 2, 8, 24, 1, 1, dtype=jnp.bfloat16)
    params, batch = parameter_shapes(config), layout.pack(random_items(3, [0]), layout.Shape(64, 4, (1,)))
    model = Model(config)
    read = functools.partial(decode.read, model=model, length=32)
    sources = jax.eval_shape(read, params, batch, batch.example_numbers)
    cross = jax.eval_shape(lambda params, encoded: model.apply(params, "project", encoded), params, sources.encoded)
    assert [x.shape for x in jax.tree.leaves(cross)] == [(3, 2, 8, 32), (3, 2, 32, 8)]
    fixed = functools.partial(decoder, model=model, max_length=5, **settings)
    tokens, scores, lengths = jax.eval_shape(fixed, params, sources, rng=jax.random.key(0))
    assert (tokens.dtype, scores.dtype, lengths.dtype) == (jnp.int32, jnp.float32, jnp.int32)
    assert tokens.shape == (3, settings.get("outputs", 1), 5) and scores.shape == lengths.shape == tokens.shape[:2]


@pytest.mark.parametrize(
    "decoder, settings, word",
    [
        (decode.sample, {"temperature": 0.0}, "@greedy"),
        (decode.sample, {"top_k": 0}, "top_k"),
        (decode.sample, {"top_p": 1.5}, "top_p"),
        (decode.sample, {"outputs": 0}, "outputs"),
        (decode.beam_search, {"outputs": 5}, "more beams"),
        (decode.beam_search, {"alpha": -0.1}, "alpha"),
    ],
)
def test_settings_that_make_no_sense_are_refused(decoder, settings, word):
    with pytest.raises(UserError, match=word):
        decoder({}, None, model=None, max_length=4, rng=jax.random.key(0), **settings)


def test_sampling_without_random_numbers_is_refused():
    with pytest.raises(ValueError, match="rng"):
        decode.sample({}, None, model=None, max_length=4)
