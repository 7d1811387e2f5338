"""Which texts share a batch: the oldest is always in it, nothing overflows, and nobody waits longer than the window."""

import threading
import time

import numpy as np
import pytest

from prompt_tuning import layout
from prompt_tuning.bank import Entry
from prompt_tuning.prompt_file import Card
from prompt_tuning.serve.ladder import Size, fit, for_reading, ladder
from prompt_tuning.serve.waiting import Closed, Full, Job, Queue
from prompt_tuning.slots import Slot

LONGEST = Size(612, 256)
SHAPES = ladder(20, LONGEST, 6, 2048)


def sizes(count: int, seed: int, longest: int = 60) -> list[Size]:
    rng = np.random.default_rng(seed)
    return [Size(int(rng.integers(2, longest)), int(rng.integers(2, 12))) for _ in range(count)]


def rows_used(chosen: list[Size], shape: layout.Shape) -> int:
    items = [layout.Item(np.ones(s.length, np.int32), [np.ones(s.target_length, np.int32)]) for s in chosen]
    return len(layout.assign_rows(items, shape))


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_holds_the_oldest_and_fits_the_rows_that_were_compiled(seed):
    waiting = sizes(1 + 6 * seed, seed, 60 if seed % 2 else 600)
    shape, chosen = fit(waiting, SHAPES)
    assert shape in SHAPES and chosen[0] == 0 and len(set(chosen)) == len(chosen)
    assert rows_used([waiting[i] for i in chosen], shape) <= shape.rows[0]


def test_every_shape_stays_within_the_room_and_one_holds_the_longest():
    assert all(s.rows[0] * s.row_length <= 2048 for s in SHAPES)
    assert fit([LONGEST], SHAPES)[1] == [0]
    assert len(SHAPES) <= 12


def test_a_lone_text_takes_the_smallest_batch_and_a_crowd_a_full_one():
    alone, _ = fit([Size(40, 4)], SHAPES)
    assert alone == min(SHAPES, key=lambda s: s.rows[0] * s.row_length)
    crowd = [size._replace(target_length=4) for size in sizes(200, 1)]
    shape, chosen = fit(crowd, SHAPES)
    assert sum(crowd[i].length for i in chosen) > 0.7 * shape.rows[0] * shape.row_length > 0.5 * 2048


def test_devices_divide_the_rows_of_every_shape():
    assert all(s.rows[0] % 8 == 0 for s in ladder(20, LONGEST, 6, 2048, devices=8))


def test_two_shapes_read_what_is_written_to():
    short, longest = for_reading(SHAPES)
    assert short.row_length < longest.row_length >= LONGEST.length


def job(length: int = 10) -> Job:
    return Job(Entry(Slot(length=4), (), Card()), np.ones(length, np.int32), (), Size(length, 0), lambda _: None)


def test_a_batch_waits_for_company_until_the_window_of_the_first_is_over():
    queue = Queue(8, 1.0)
    first = job()
    queue.put([first])
    threading.Timer(0.03, queue.put, [[job()]]).start()
    assert len(queue.take(1000, busy=False)) == 2
    assert time.monotonic() - first.arrived > 0.99


def test_a_full_batch_does_not_wait_and_a_busy_model_is_not_held_up():
    queue = Queue(8, 60.0)
    queue.put([job()])
    assert queue.take(1000, busy=True) == []
    queue.put([job(990)])
    assert len(queue.take(1000, busy=False)) == 2


def test_what_does_not_fit_is_refused_whole_and_what_was_given_up_is_dropped():
    queue = Queue(3, 0.0)
    jobs = [job(), job()]
    queue.put(jobs)
    with pytest.raises(Full):
        queue.put([job(), job()])
    assert len(queue) == 2
    jobs[0].given_up = True
    assert queue.take(1000, busy=False) == jobs[1:]


def test_a_closed_queue_gives_what_waits_and_takes_no_more():
    queue = Queue(3, 60.0)
    waiting = job()
    queue.put([waiting])
    queue.close()
    with pytest.raises(Closed):
        queue.put([job()])
    assert queue.take(1000, busy=False) == [waiting]
    queue.remove([waiting])
    assert queue.take(1000, busy=False) is None
