"""The training step: exact under packing, exact over slots, and nothing but the prompt changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, one_a_row, random_bank, random_items, random_params, stacked, start_state

from prompt_tuning import layout, optim, planning, split
from prompt_tuning.dropout import Dropout
from prompt_tuning.step import Model, dropout_of, score_targets, slot_losses, train_step


def loss_and_gradient(bank, items, shape, dropout_rate=0.0):
    slots, length, _ = bank.shape
    model = Model(TINY, slots, length)
    optimizer = optim.over_slots(optim.adafactor, [length] * slots, [0.3] * slots)
    state = start_state(bank, optimizer, list(range(slots)))
    batch = layout.pack(items, shape, length)
    dropout, frozen = dropout_of(state, batch, dropout_rate), random_params()

    def total(trainable):
        params = split.merge(trainable, frozen)
        losses, _ = slot_losses(params, batch, model=model, z_loss=1e-4, dropout=dropout)
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(state.trainable)
    return np.asarray(losses), np.asarray(gradient["prompt"]["bank"])


@pytest.mark.parametrize("lengths", [[4], [4, 7, 1, 7, 3]], ids=["K=1", "K=5, mixed lengths"])
@pytest.mark.parametrize("dropout_rate", [0.0, 0.1])
def test_packing_changes_neither_loss_nor_prompt_gradient(lengths, dropout_rate):
    items, bank = random_items(6, lengths), random_bank(lengths)
    alone = loss_and_gradient(bank, items, one_a_row(items), dropout_rate)
    packed = loss_and_gradient(bank, items, layout.Shape(64, 16, (1, 10, 24)), dropout_rate)
    np.testing.assert_allclose(packed[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(packed[1], alone[1], rtol=1e-5, atol=1e-5 * np.abs(alone[1]).max())


def test_dropout_differs_between_examples_that_share_a_row():
    item = random_items(1, [4])[0]
    twins = [layout.Item(item.inputs, item.targets, 0, n, 4) for n in (0, 1)]
    bank = random_bank([4])
    losses = [loss_and_gradient(bank, [twin], layout.Shape(64, 16, (1,)), 0.1)[0][0] for twin in twins]
    both = loss_and_gradient(bank, twins, layout.Shape(64, 16, (1,)), 0.1)[0][0]
    assert abs(losses[0] - losses[1]) > 1e-3
    np.testing.assert_allclose(both, sum(losses), rtol=1e-5)


def test_dropout_differs_between_steps_and_between_seeds():
    batch = layout.pack(random_items(3, [4]), layout.Shape(64, 16, (3,)), 4)
    optimizer = optim.over_slots(optim.adafactor, [4], [0.3])
    first, other = (start_state(random_bank([4]), optimizer, [seed]) for seed in (0, 1))
    states = first, first.replace(step=first.step + 1), other
    drawn = [np.asarray(jax.random.key_data(dropout_of(state, batch, 0.1).keys)) for state in states]
    assert len({keys.tobytes() for keys in drawn}) == 3


def test_dropout_leaves_the_mean_as_it_is_and_is_drawn_for_each_stack_apart():
    drop = Dropout(jax.random.split(jax.random.key(0), 4), 0.25)
    one, other = (np.asarray(drop.draw(stack, (), {"x": 5000})["x"]) for stack in ("encoder", "decoder"))
    np.testing.assert_allclose(np.unique(one), [0, 1 / 0.75], rtol=1e-6)
    assert one.mean() == pytest.approx(1, abs=0.03) and (one != other).any()


def test_a_schedule_is_what_it_is_called():
    at = lambda schedule, *steps, **more: [float(schedule(jnp.int32(step), **more)) for step in steps]
    assert at(optim.constant_schedule, 0, 9) == [1, 1]
    assert at(optim.linear_warmup, 0, 3, 9, steps=4) == [0.25, 1, 1]
    assert at(optim.linear_decay, 0, 2, 6, 10, 99, steps=10, warmup=2) == [0.5, 1, 0.5, 0, 0]
    assert at(optim.inverse_square_root, 0, 3, 15, warmup=4) == [1, 1, 0.5]


def of_slots(schedule):
    return optim.over_slots(functools.partial(optim.adafactor, weight_decay_rate=0.0), [4], [0.3], schedule)


def of_a_model(schedule):
    return optim.whole(functools.partial(optim.adafactor, weight_decay_rate=0.0), 0.3, schedule)


@pytest.mark.parametrize("optimizer_of", [of_slots, of_a_model])
def test_a_schedule_scales_the_learning_rate_of_prompts_and_of_a_model(optimizer_of):
    trainable, moved = {"prompt": {"bank": jnp.asarray(random_bank([4]))}}, []
    for schedule in (optim.constant_schedule, lambda step: jnp.float32(0.5)):
        optimizer = optimizer_of(schedule)
        new, _ = optimizer.update(trainable, optimizer.init(trainable), trainable, jnp.int32(0))
        moved.append(new["prompt"]["bank"] - trainable["prompt"]["bank"])
    assert jnp.abs(moved[0]).min() > 1e-3
    np.testing.assert_allclose(moved[1], moved[0] / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("took", "expected"), [(True, 2), (False, 1)])
def test_a_whole_model_is_what_it_was_where_a_step_is_left_out(took, expected):
    of = lambda value: ({"weight": jnp.full(3, value)}, {"moment": jnp.full(2, value)})
    found = optim.whole(optim.adafactor, 0.1).choose(jnp.array([took]), of(2.0), of(1.0))
    assert all((leaf == expected).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("placement", [layout.front, layout.after_bos, layout.behind])
def test_prompt_vectors_stand_where_the_placement_says(placement):
    items = [layout.Item(np.array([5, 6, 1], np.int32), [np.array([1], np.int32)], 1, 0, 2, placement)]
    batch = layout.pack(items, layout.Shape(8, 4, (1,)), bank_length=3)
    rows = {
        layout.front: [3, 4, -1, -1, -1],
        layout.after_bos: [-1, 3, 4, -1, -1],
        layout.behind: [-1, -1, -1, 3, 4],
    }[placement]
    assert batch.prompt_rows[0].tolist() == [*rows, -1, -1, -1]
    assert [t for t, r in zip(batch.encoder_tokens[0], rows, strict=False) if r < 0] == [5, 6, 1]


def train(bank, lengths, rates, seeds, batches, shape, steps=3):
    model = Model(TINY, *bank.shape[:2])
    optimizer = optim.over_slots(optim.adafactor, lengths, rates)
    state = start_state(bank, optimizer, seeds)
    step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, dropout_rate=0.1))
    for items in batches[:steps]:
        state, metrics = step(state, random_params(), layout.pack(items, shape, bank.shape[1]))
    return np.asarray(state.trainable["prompt"]["bank"]), jax.device_get(metrics)


def test_slots_trained_together_equal_slots_trained_alone():
    lengths, rates, seeds = [4, 7, 4], [0.3, 0.1, 0.03], [11, 12, 13]
    bank = random_bank(lengths)
    shape = layout.Shape(48, 16, (4, 8, 16))
    together, metrics = train(bank, lengths, rates, seeds, [random_items(5, lengths, s) for s in range(3)], shape)
    for k in range(3):
        batches = [random_items(5, lengths, s, slot=k) for s in range(3)]
        alone, own = train(
            bank[k : k + 1, : lengths[k]], lengths[k : k + 1], rates[k : k + 1], [seeds[k]], batches, shape
        )
        np.testing.assert_allclose(together[k, : lengths[k]], alone[0], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(metrics["loss"][k], own["loss"][0], rtol=1e-4)
    assert np.abs(together - bank)[:, 0].max(-1).min() > 1e-3, "every slot moved"


def test_frozen_leaves_are_bit_identical_after_ten_steps():
    before = split.digest(random_params())
    lengths = [4]
    train(random_bank(lengths), lengths, [0.3], [0], [random_items(4, lengths, s) for s in range(10)],
          layout.Shape(48, 16, (4,)), steps=10)  # fmt: skip
    assert split.digest(random_params()) == before


@pytest.mark.parametrize("dropout_rate", [0.0, 0.1])
def test_taking_a_few_rows_at_once_changes_only_the_memory(dropout_rate):
    lengths = [4, 7]
    model, bank = Model(TINY, 2, 7), random_bank(lengths)
    optimizer = optim.over_slots(optim.adafactor, lengths, [0.3, 0.1])
    step = functools.partial(train_step, model=model, optimizer=optimizer, dropout_rate=dropout_rate)
    found = []
    for at_once in (None, 2):
        batch = layout.pack(random_items(5, lengths), layout.Shape(48, 16, (12,), at_once=at_once), 7)
        state = start_state(bank, optimizer, [0, 1])
        found.append(jax.jit(step)(state, random_params(), batch))
    (whole, metrics), (parts, others) = found
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    np.testing.assert_allclose(
        whole.trainable["prompt"]["bank"], parts.trainable["prompt"]["bank"], rtol=1e-4, atol=1e-4
    )


def test_parts_hold_their_own_examples_and_empty_ones_come_last():
    items = [layout.Item(np.full(8, 5, np.int32), [np.array([6, 1], np.int32)], 0, n) for n in range(10)]
    shape = planning.plan([items], (8, 2), packing=False, at_once=4)
    assert (shape.at_once, shape.rows, shape.part_examples) == (4, (12,), 8)
    batch = layout.pack(items, shape)
    assert batch.in_parts and batch.rows == 12
    assert batch.encoder_segments[:, :, 0].tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 0, 0]]
    assert batch.example_numbers[:, :4].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    assert shape.padding(layout.pack(items[:7], shape)) == pytest.approx(1 - 7 * 8 / (8 * 16))


def test_every_device_has_about_the_same_work_and_as_many_parts():
    items = random_items(12, [4, 7])
    shape = planning.plan([items], (27, 4), multiple=3, line=64)
    batch = layout.pack(items, shape)
    held = (batch.encoder_segments > 0).reshape(3, -1).sum(1)
    assert held.sum() == sum(item.length for item in items)
    assert held.max() - held.min() <= 27
    assert len(batch.encoder_segments) % 3 == 0
    filled = (batch.encoder_segments > 0).any((1, 2)).reshape(3, -1)
    assert (np.diff(filled.astype(int)) <= 0).all(), "parts that hold something come first"


def test_a_part_that_holds_as_many_examples_as_it_can_leaves_the_next_row_to_another():
    items = [layout.Item(np.full(4, 5, np.int32), [np.array([6, 1], np.int32)], 0, n) for n in range(12)]
    shape = layout.Shape(16, 8, (4,), at_once=2, part_examples=7)
    batch = layout.pack(items, shape)
    assert [int(part.max()) for part in batch.encoder_segments] == [4, 4, 4]
    assert batch.example_slots.shape == (3, 7)


def test_a_row_holds_no_more_examples_than_its_part_can():
    items = [layout.Item(np.full(2, 5, np.int32), [np.array([1], np.int32)], 0, n) for n in range(8)]
    batch = layout.pack(items, layout.Shape(16, 8, (2,), at_once=1, part_examples=4))
    assert [int(part.max()) for part in batch.encoder_segments] == [4, 4]


def test_a_batch_of_fewer_rows_runs_the_same_program():
    optimizer = optim.over_slots(optim.adafactor, [7], [0.3])
    shape = layout.Shape(48, 16, (12,), at_once=2, part_examples=10)
    program = jax.jit(functools.partial(train_step, model=Model(TINY, 1, 7), optimizer=optimizer))
    state = start_state(random_bank([7]), optimizer, [0])
    for count in (12, 3):
        program(state, random_params(), layout.pack(random_items(count, [7]), shape, 7))
    assert program._cache_size() == 1


def test_computing_layers_again_changes_only_the_memory():
    optimizer = optim.over_slots(optim.adafactor, [7], [0.3])
    batch = layout.pack(random_items(4, [7]), layout.Shape(48, 16, (4,)), 7)
    found = []
    for remat in (False, True):
        model = Model(dataclasses.replace(TINY, remat=remat), 1, 7)
        state = start_state(random_bank([7]), optimizer, [0])
        step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer))
        found.append(step(state, random_params(), batch)[0].trainable["prompt"]["bank"])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["a bias a layer", "shared bias"])
def test_scanned_layers_train_as_layers_one_by_one(remat, shared):
    optimizer = optim.over_slots(optim.adafactor, [7], [0.3])
    batch = layout.pack(random_items(4, [7]), layout.Shape(48, 16, (4,)), 7)
    plain = dataclasses.replace(TINY, shared_relative_bias=shared)
    params = random_params(plain)
    found = []
    for scan_layers in (False, True):
        model = Model(dataclasses.replace(plain, scan_layers=scan_layers, remat=remat and scan_layers), 1, 7)
        state = start_state(random_bank([7]), optimizer, [0])
        step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, dropout_rate=0.1))
        state, metrics = step(state, stacked(params) if scan_layers else params, batch)
        found.append((metrics["loss"], metrics["gradient_norm"], state.trainable["prompt"]["bank"]))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@functools.cache
def unsound_steps(lengths, rates):
    """A compiled step of several slots in shared rows, its state over a bank, and a batch."""
    model, optimizer = Model(TINY, len(lengths), max(lengths)), optim.over_slots(optim.adafactor, lengths, rates)
    state_of = lambda bank: start_state(bank, optimizer, list(range(len(lengths))))
    step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, dropout_rate=0.1))
    return step, state_of, layout.pack(random_items(5, lengths), layout.Shape(64, 24, (12,)), max(lengths))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e30, -1e30])
def test_an_unsound_slot_leaves_out_its_step_alone_and_the_others_do_not_notice(bad):
    lengths, rates = (4, 7, 4, 3), (0.3, 0.1, 0.03, 1e30)
    step, state_of, batch = unsound_steps(lengths, rates)
    slots_of_rows = [set(batch.example_slots[row[row > 0] - 1]) for row in np.asarray(batch.encoder_segments)]
    assert max(map(len, slots_of_rows)) > 2, "slots share rows"
    bank = random_bank(lengths)
    poisoned = bank.copy()
    poisoned[1, 2, 5] = bad
    (whole, metrics), (found, told) = (step(state_of(b), random_params(), batch) for b in (bank, poisoned))
    assert metrics["took"].tolist() == [True, True, True, False], "a learning rate of 1e30 ends in no prompt"
    assert told["took"].tolist() == [True, False, True, False] and told["failures"].tolist() == [0, 1, 0, 1]
    for k in (0, 2):
        of = lambda state, k=k: [state.trainable["prompt"]["bank"][k], *_states_of(state, lengths, k)]
        for one, other in zip(of(whole), of(found), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        assert float(metrics["loss"][k]) == float(told["loss"][k])
    kept = found.trainable["prompt"]["bank"]
    np.testing.assert_array_equal(kept[1], poisoned[1])
    np.testing.assert_array_equal(kept[3], bank[3])
    assert not np.array_equal(kept[0], bank[0])


def _states_of(state, lengths, k):
    """Adafactor's numbers of slot `k`."""
    place = [i for i, n in enumerate(lengths) if n == lengths[k]].index(k)
    return [leaf[place] for leaf in jax.tree.leaves(state.opt_state[str(lengths[k])])]


def test_a_slot_is_given_up_after_ten_unsound_steps_in_a_row_and_not_before():
    lengths = (4, 4)
    step, state_of, batch = unsound_steps(lengths, (0.3, 0.3))
    bank, state = random_bank(lengths), state_of(random_bank(lengths))
    run = lambda state, params: step(state, params, batch)[0]
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, random_params())
    for _ in range(9):
        state = run(state, broken)
    assert state.failures.tolist() == [9, 9] and np.array_equal(state.trainable["prompt"]["bank"], bank)
    sound = run(state, random_params())
    assert sound.failures.tolist() == [0, 0] and not np.array_equal(sound.trainable["prompt"]["bank"], bank)
    given_up = run(run(state, broken), random_params())
    assert given_up.failures.tolist() == [11, 11] and np.array_equal(given_up.trainable["prompt"]["bank"], bank)


def flops(function, *args) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_compiled_step_computes_no_gradient_of_frozen_matrices():
    model, params = Model(TINY, 1, 4), random_params()
    optimizer = optim.over_slots(optim.adafactor, [4], [0.3])
    state = start_state(random_bank([4]), optimizer, [0])
    batch = layout.pack(random_items(16, [4]), layout.Shape(24, 8, (16,)), 4)
    whole = params | {"prompt": state.trainable["prompt"]}
    forward = flops(functools.partial(slot_losses, model=model, z_loss=1e-4), whole, batch)
    step = flops(
        functools.partial(train_step, model=model, optimizer=optimizer, dropout_rate=0.0), state, params, batch
    )
    tuning = optim.whole(optim.adafactor, 1e-3)
    everything = state.replace(trainable=whole, opt_state=tuning.init(whole))
    full = flops(functools.partial(train_step, model=model, optimizer=tuning, dropout_rate=0.0), everything, {}, batch)
    assert step < 2.3 * forward, "forward, and one more pass for activations"
    assert full > 2.8 * forward, "model tuning needs the third pass, so the measure can tell"


def test_leaving_unsound_slots_out_costs_no_work_worth_measuring():
    lengths = [4, 7, 4]
    batch, bank = layout.pack(random_items(8, lengths), layout.Shape(48, 16, (12,)), 7), random_bank(lengths)
    guarded = optim.over_slots(optim.adafactor, lengths, [0.3] * 3)
    found = []
    for optimizer in (guarded, guarded._replace(choose=lambda slots, new, old: new)):
        step = functools.partial(train_step, model=Model(TINY, 3, 7), optimizer=optimizer)
        found.append(flops(step, start_state(bank, optimizer, [0, 1, 2]), random_params(), batch))
    assert found[0] < 1.01 * found[1]


def test_model_tuning_is_the_same_step_with_everything_trainable():
    params = random_params()
    optimizer = optim.whole(optim.adafactor, 1e-2)
    state = start_state(random_bank([1]), optimizer, [0]).replace(trainable=params, opt_state=optimizer.init(params))
    step = jax.jit(functools.partial(train_step, model=Model(TINY), optimizer=optimizer))
    batch = layout.pack(random_items(8, [0]), layout.Shape(24, 8, (8,)))
    losses = []
    for _ in range(10):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < losses[0] - 0.5


def test_a_prompt_is_not_rounded_with_the_table_it_stands_in_front_of():
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params())
    model, bank = Model(dataclasses.replace(TINY, factors=jnp.bfloat16), 1, 4), jnp.asarray(random_bank([4]))
    batch = layout.pack(random_items(3, [4]), layout.Shape(24, 8, (3,)), 4)
    encoded = lambda bank: model.encode(stored | {"prompt": {"bank": bank}}, batch)
    assert model.apply(stored, "embed", batch.encoder_tokens).dtype == jnp.float32
    assert (encoded(bank) != encoded(bank.astype(jnp.bfloat16).astype(jnp.float32))).any()


def test_scores_of_labels_equal_scores_of_single_targets():
    rng = np.random.default_rng(0)
    labels = [rng.integers(2, 97, n).astype(np.int32) for n in (1, 3, 2)]
    inputs = [rng.integers(2, 97, n).astype(np.int32) for n in (5, 9, 4)]
    bank = random_bank([4])
    params = random_params() | {"prompt": {"bank": jnp.asarray(bank)}}
    model = Model(TINY, 1, 4)
    shape = layout.Shape(40, 24, (2,))
    together = score_targets(
        params, layout.pack([layout.Item(x, labels, 0, 0, 4) for x in inputs], shape, 4), model=model
    )
    for i, x in enumerate(inputs):
        for j, label in enumerate(labels):
            one = layout.pack([layout.Item(x, [label], 0, 0, 4)], shape, 4)
            np.testing.assert_allclose(together[3 * i + j], score_targets(params, one, model=model)[0], rtol=1e-5)
