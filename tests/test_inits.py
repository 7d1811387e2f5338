"""Where prompts start, and in which order their examples come."""

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import TINY, random_params
from safetensors.numpy import save_file

from prompt_tuning import inits, prompt_file, slots
from prompt_tuning.errors import UserError
from prompt_tuning.order import BLOCK, Order, Turns
from prompt_tuning.vocabulary import Vocabulary

RNG = jax.random.key(3)


def start(length: int = 6, **more) -> inits.Start:
    table = np.asarray(random_params()["token_embedder"]["embedding"])
    return inits.Start(length, TINY.emb_dim, lambda ids: table[ids], **more)


@pytest.fixture(scope="module")
def vocabulary(home) -> Vocabulary:
    return Vocabulary(home / "base" / "spiece.model", extra_ids=0)


def test_random_uniform_draws_the_papers_range_and_the_references():
    ours = np.asarray(inits.random_uniform(start(500), rng=RNG))
    theirs = np.asarray(inits.random_uniform_reference(start(500), rng=RNG))
    assert -0.5 <= ours.min() < -0.49 and 0.49 < ours.max() <= 0.5
    assert 0 <= theirs.min() < 0.01 and 0.49 < theirs.max() < 0.5


def test_sampled_vocabulary_takes_rows_of_the_table_none_twice():
    prompt = inits.sampled_vocabulary(start(90), population=95, rng=RNG)
    table = start().embed(np.arange(95))
    rows = [int(np.flatnonzero((table == vector).all(axis=1))[0]) for vector in prompt]
    assert len(set(rows)) == 90


def test_sampled_vocabulary_draws_from_the_papers_5000_most_common_pieces():
    ids = inits.sampled_vocabulary(inits.Start(512, 1, lambda ids: ids[:, None]), rng=RNG)
    assert 4900 < ids.max() < 5000 and ids.min() < 100


def test_class_labels_are_means_of_their_pieces_and_the_rest_is_sampled(vocabulary):
    begin = start(vocabulary=vocabulary, labels=("positive", "negative"))
    prompt = inits.class_labels(begin, rng=RNG)
    for vector, label in zip(prompt, begin.labels, strict=False):
        np.testing.assert_allclose(vector, begin.embed(np.array(vocabulary.encode(label))).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(prompt[2:], inits.sampled_vocabulary(begin, rng=RNG)[2:])


def test_more_labels_than_vectors_keep_the_first(vocabulary):
    assert inits.class_labels(start(1, vocabulary=vocabulary, labels=("positive", "negative")), rng=RNG).shape == (
        1,
        16,
    )


def test_text_repeats_its_pieces_to_the_prompts_length(vocabulary):
    begin = start(9, vocabulary=vocabulary)
    pieces = begin.embed(np.array(vocabulary.encode("fine film")))
    prompt = inits.text(begin, text="fine film", rng=RNG)
    np.testing.assert_array_equal(prompt, np.stack([pieces[i % len(pieces)] for i in range(9)]))


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_prompt_from_a_file_comes_back_to_the_bit(tmp_path, kind):
    vectors = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    card = prompt_file.Card(name="x", labels=("a", "b"), step=7, score=88.5)
    if kind == "npy":
        prompt_file.save_npy(tmp_path / "p.npy", vectors)
    else:
        prompt_file.save_safetensors(tmp_path / "p.safetensors", prompt_file.Prompt(vectors, card))
        assert prompt_file.load(tmp_path / "p.safetensors").card == card
    np.testing.assert_array_equal(inits.from_file(start(), path=str(tmp_path / f"p.{kind}"), rng=RNG), vectors)


def test_an_array_that_was_saved_by_columns_is_read_as_it_is(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    np.save(tmp_path / "p.npy", np.asfortranarray(vectors))
    np.testing.assert_array_equal(prompt_file.load(tmp_path / "p.npy").vectors, vectors)


def test_a_prompt_of_bfloat16_is_read_and_one_too_large_for_float32_is_not(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 16)).astype(ml_dtypes.bfloat16)
    save_file({"prompt": vectors}, tmp_path / "narrow.safetensors")
    np.testing.assert_array_equal(prompt_file.load(tmp_path / "narrow.safetensors").vectors, vectors.astype(np.float32))
    np.save(tmp_path / "wide.npy", np.full((6, 16), 1e39))
    save_file({"prompt": vectors.astype(ml_dtypes.float8_e4m3fn)}, tmp_path / "narrowest.safetensors")
    for name, said in (("wide.npy", "finite"), ("narrowest.safetensors", "not a readable")):
        with pytest.raises(UserError, match=said):
            prompt_file.load(tmp_path / name)


def test_class_labels_without_labels_says_what_to_type(vocabulary):
    with pytest.raises(UserError, match=r"class_labels\.words"):
        inits.class_labels(start(vocabulary=vocabulary), rng=RNG)
    with pytest.raises(UserError, match="a list of texts"):
        inits.class_labels(start(vocabulary=vocabulary), words="yes", rng=RNG)


def test_words_to_start_from_stand_for_the_labels(vocabulary):
    words = ["fine", "film"]
    expected = inits.class_labels(start(vocabulary=vocabulary, labels=words), rng=RNG)
    for labels in ((), ("yes", "no")):
        found = inits.class_labels(start(vocabulary=vocabulary, labels=labels), words=words, rng=RNG)
        np.testing.assert_array_equal(found, expected)


def test_a_slots_start_does_not_depend_on_its_neighbours(vocabulary):
    one = slots.Slot("t", 5, inits.sampled_vocabulary, 4, name="a")
    other = slots.Slot("t", 6, inits.random_uniform, 6, name="b")
    alone = slots.start_bank([one], [start(4, vocabulary=vocabulary)])
    together = slots.start_bank([other, one], [start(6), start(4, vocabulary=vocabulary)])
    np.testing.assert_array_equal(together[1, :4], alone[0])
    assert not together[1, 4:].any()


def test_an_order_visits_every_example_once_an_epoch_and_can_start_anywhere():
    order = Order([7], [1.0], seed=1)
    whole = order(0, 21)
    for epoch in range(3):
        assert sorted(i for _, i in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert whole[:7] != whole[7:14]
    assert Order([7], [1.0], seed=1)(5, 9) == whole[5:14]
    assert Order([7], [1.0], seed=2)(0, 21) != whole


def test_a_mixture_draws_its_tasks_at_their_rates_and_resumes():
    order = Order([50, 10, 5], [0.6, 0.4, 0.0], seed=0)
    drawn = order(0, 5000)
    share = np.bincount([task for task, _ in drawn], minlength=3) / 5000
    np.testing.assert_allclose(share, [0.6, 0.4, 0.0], atol=0.03)
    first = [i for task, i in drawn if task == 1][:10]
    assert sorted(first) == list(range(10)), "a task's own epochs are whole"
    assert Order([50, 10, 5], [0.6, 0.4, 0.0], seed=0)(3100, 50) == drawn[3100:3150]


def test_turns_count_what_each_task_had_before_any_position():
    turns = Turns([0.5, 0.0, 0.5], seed=3)
    drawn = [turns(position) for position in range(2100)]
    for position in (0, 1, 700, 1024, 1025, 2099):
        counts = np.bincount([task for task, _ in drawn[:position]], minlength=3)
        assert Turns([0.5, 0.0, 0.5], seed=3).before(position) == counts.tolist()
        task, nth = drawn[position]
        assert nth == counts[task]


def test_examples_are_shuffled_for_each_task_apart_and_turns_drawn_anew_with_every_seed_and_block():
    drawn = Order([50, 50], [0.5, 0.5], seed=0)(0, 400)
    one, other = ([i for of, i in drawn if of == task][:50] for task in (0, 1))
    assert sorted(one) == sorted(other) == list(range(50)) and one != other
    turns = lambda seed, start: [Turns([0.5, 0.5], seed)(position)[0] for position in range(start, start + 50)]
    assert turns(0, 0) != turns(1, 0) and turns(0, 0) != turns(0, BLOCK)


def save(folder, name: str, seed: int, length: int = 6, base: str = "") -> str:
    vectors = np.random.default_rng(seed).normal(size=(length, 16)).astype(np.float32)
    prompt = prompt_file.Prompt(vectors, prompt_file.Card(name=name, base="t5", base_digest=base))
    prompt_file.save_safetensors(folder / f"{name}.safetensors", prompt)
    return str(folder / f"{name}.safetensors")


def test_a_slot_starts_from_its_own_prompt_or_from_an_average(tmp_path):
    places = [save(tmp_path, name, seed) for seed, name in enumerate("abc")]
    vectors = [prompt_file.load(place).vectors.astype(np.float64) for place in places]
    weights = dict(zip(places, (0.5, 2.0, 1.5), strict=True))
    rows = [{"task": "x", "init": places[1], "name": "one"}, {"task": "x", "init": weights, "name": "three"}]
    one, three = slots.expand([row | {"length": 6} for row in rows], None)
    bank = slots.start_bank([one, three], [start(), start()])
    np.testing.assert_array_equal(bank[0], vectors[1])
    expected = (0.5 * vectors[0] + 2.0 * vectors[1] + 1.5 * vectors[2]) / 4
    np.testing.assert_allclose(bank[1], expected, atol=1e-6)
    assert places[1] in one.init.__name__ and all(place in three.init.__name__ for place in places)


def test_a_grid_of_saved_prompts_is_named_after_them(tmp_path):
    made = slots.expand(None, {"init": [save(tmp_path, "a", 0), save(tmp_path, "b", 1)]})
    assert [slot.name.endswith(f"{end}.safetensors") for slot, end in zip(made, "ab", strict=True)] == [True, True]


@pytest.mark.parametrize(
    "more, expected",
    [({"length": 5}, "--gin.PROMPT_LENGTH=5"), ({"base": "other"}, "other weights")],
    ids=["another length", "another base"],
)
def test_a_prompt_that_does_not_fit_is_refused_alone_and_in_an_average(tmp_path, more, expected):
    fits, wrong = save(tmp_path, "fits", 0, base="this"), save(tmp_path, "wrong", 1, **more)
    for init in (inits.of(wrong), inits.of({fits: 1.0, wrong: 1.0})):
        with pytest.raises(UserError, match=expected):
            init(start(base_digest="this"), rng=RNG)


def test_weights_that_are_no_weights_are_refused(tmp_path):
    place = save(tmp_path, "a", 0)
    for weight in (0, -1, "much"):
        with pytest.raises(UserError, match="above 0"):
            inits.of({place: weight})


def test_labels_are_used_where_a_task_has_them(vocabulary):
    labelled = start(vocabulary=vocabulary, labels=("positive", "negative"))
    np.testing.assert_array_equal(inits.class_labels_if_any(labelled, rng=RNG), inits.class_labels(labelled, rng=RNG))
    free = start(vocabulary=vocabulary)
    np.testing.assert_array_equal(inits.class_labels_if_any(free, rng=RNG), inits.sampled_vocabulary(free, rng=RNG))
