"""What is planned for batches costs least and holds every batch."""

import numpy as np
import pytest
from conftest import random_items

from prompt_tuning import layout, planning


def of_length(length: int, number: int = 0) -> layout.Item:
    return layout.Item(np.full(length, 5, np.int32), [np.array([6, 1], np.int32)], 0, number)


@pytest.mark.parametrize(("inputs", "targets"), [(9, 1), (1, 5)])
def test_an_example_longer_than_a_row_is_refused(inputs, targets):
    item = layout.Item(np.full(inputs, 5, np.int32), [np.full(targets, 6, np.int32)])
    with pytest.raises(ValueError, match="a row 8"):
        layout.pack([item], layout.Shape(8, 4, (1,)))


def test_a_batch_takes_the_fewest_of_the_rows_that_are_worth_a_program():
    batch = lambda count: [of_length(128, n) for n in range(count)]  # no two fit into a row
    counts = [8, 8, 8, 8, 8, 8, 12, 12, 20]
    shape = planning.plan([batch(count) for count in counts], (128, 2))
    assert (shape.row_length, shape.rows) == (128, (8, 20, 21))
    assert [layout.pack(batch(count), shape).rows for count in (1, 8, 9, 12, 13, 21)] == [8, 8, 20, 20, 20, 21]
    assert layout.pack(batch(22), shape).rows == 24, "one that nobody foresaw has a few more rows"
    assert planning.plan([batch(count) for count in counts], (128, 2), more=False).rows == (20,)


def test_counts_that_save_little_are_no_program_of_their_own():
    batch = lambda count: [of_length(128, n) for n in range(count)]
    assert planning.plan([batch(count) for count in [100, 101] * 4], (128, 2)).rows == (101, 102)
    many = planning.plan([batch(count) for count in range(4, 40)], (128, 2)).rows
    assert len(many) == planning.COUNTS + 1 and many[-2:] == (39, 40)


def test_a_run_of_few_steps_compiles_one_program():
    batch = lambda count: [of_length(128, n) for n in range(count)]
    counts = [8, 8, 8, 8, 8, 8, 12, 12, 20]  # 8.2 rows fewer than 21, on the mean: 1,000 positions a step
    rows = lambda steps: planning.plan([batch(count) for count in counts], (128, 2), steps=steps).rows
    assert (rows(100), rows(200)) == ((21,), (8, 20, 21))


def test_rows_are_shared_out_among_devices():
    batch = lambda count: [of_length(128, n) for n in range(count)]
    rows = planning.plan([batch(count) for count in (5, 6, 7, 8, 30, 31)], (128, 2), multiple=4).rows
    assert rows == (8, 32, 36), "the last one is for a batch that needs a row more"


def test_a_line_is_as_long_as_what_a_device_has_and_no_longer_than_it_may_be():
    items = random_items(40, [100])
    taken = sum(item.length for item in items)
    shape = planning.plan([items], (120, 4), line=10_000)
    assert shape.at_once == 1 and taken < shape.row_length <= 1.1 * taken + shape.filled.block
    assert 512 <= planning.plan([items], (120, 4), line=512).row_length < 512 + 256
    assert planning.plan([items], (240, 4), line=64).row_length >= 240, "the longest example has to fit"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("devices", [1, 2])
def test_batches_that_no_plan_foresaw_have_its_shape(seed, devices):
    rng = np.random.default_rng(seed)
    item = lambda length: layout.Item(np.full(length, 5, np.int32), [np.array([6, 1], np.int32)], 0, 0, 20)
    batch = lambda most: [item(n) for n in rng.integers(1, most, 24)]
    shape = planning.plan([batch(60) for _ in range(4)], (300, 3), multiple=devices, line=512)
    assert len({layout.pack(batch(most), shape).encoder_tokens.shape for most in (2, 60, 280)}) == 1


def test_widths_are_those_that_waste_least_and_hold_the_longest():
    item = lambda n: layout.Item(np.full(n, 5, np.int32), [np.array([6, 1], np.int32)], 0, 0)
    plan = lambda lengths, longest: planning.plan([[item(n) for n in lengths]], (longest, 2), line=512).filled.widths
    assert plan([30, 31, 100, 101], 300) == (32, 112, 304)
    assert plan([30, 31, 32], 32) == (32,)
    assert plan([*[20] * 50, *[60] * 50, *[100] * 50, *[140] * 50, 180], 190) == (64, 112, 144, 192)


def test_padding_of_a_line_is_that_of_the_blocks_in_which_something_stands():
    items = [layout.Item(np.full(100, 5, np.int32), [np.array([6, 1], np.int32)], 0, n) for n in range(5)]
    shape = planning.plan([items], (100, 2), line=2048)
    block = shape.filled.block
    assert shape.row_length % block == 0
    for count in (1, 3, 5):
        computed = -(-100 * count // block) * block
        assert shape.padding(layout.pack(items[:count], shape)) == pytest.approx(1 - 100 * count / computed)


def test_the_size_of_blocks_is_that_which_fits_the_batches():
    of = lambda length: [[layout.Item(np.full(length, 5, np.int32), [np.array([6, 1], np.int32)])] for _ in range(3)]
    block = lambda length: planning.plan(of(length), (length, 2), line=4096).filled.block
    assert [block(n) for n in (480, 512, 700)] == [240, 256, 240]


@pytest.mark.parametrize("devices", [1, 8])
def test_a_roomy_shape_holds_its_examples_and_not_much_more(devices):
    rng = np.random.default_rng(0)
    shapes = set()
    for count in [*range(1, 20), *range(20, 200, 20)]:
        items = [of_length(int(n), i) for i, n in enumerate(rng.integers(20, 300, count))]
        shape = planning.roomy([items], (max(item.length for item in items), 2), devices)
        batch = layout.pack(items, shape)
        assert batch.encoder_tokens.shape == (shape.rows[0], shape.row_length), "no row more than was planned"
        assert batch.rows % devices == 0
        assert count < 40 or devices > 1 or shape.padding(batch) < 0.4
        shapes.add(batch.encoder_tokens.shape)
    assert len(shapes) < 20
    longer = planning.roomy([[of_length(1500)]], (1500, 2), devices)
    assert (longer.row_length, longer.rows) == (2048, (devices,))


def test_batches_that_are_all_there_is_have_no_part_in_vain():
    rng = np.random.default_rng(0)
    batches = [[of_length(int(n)) for n in rng.integers(10, 100, count)] for count in (60, 60, 13)]
    shape = planning.plan(batches, (100, 2), multiple=2, line=512, more=False)
    packed = [layout.pack(batch, shape) for batch in batches]
    filled = [(batch.encoder_segments > 0).any((1, 2)).reshape(2, -1).sum(1) for batch in packed]
    assert len({batch.encoder_segments.shape for batch in packed}) == 1
    assert np.max(filled) == shape.rows[0] // 2 < planning.plan(batches, (100, 2), multiple=2, line=512).rows[0] // 2


def test_few_groups_are_padded_to_one_length_and_many_to_few():
    assert planning.source_lengths([500, 301, 100]) == [512] * 3
    longest = [500] * 8 + [130, 110] * 8
    assert planning.source_lengths(longest) == [512] * 8 + [144] * 16 or len(set(planning.source_lengths(longest))) == 3
    assert all(at >= n for at, n in zip(planning.source_lengths(longest), longest, strict=True))
    assert len(set(planning.source_lengths(list(range(1, 500))))) == planning.WIDTHS
