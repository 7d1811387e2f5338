"""What the trainer is fed: each slot's examples in its own order, packed ahead of the step by a thread."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

from prompt_tuning import layout
from prompt_tuning.errors import UserError
from prompt_tuning.examples import Examples, Mixture, Task
from prompt_tuning.layout import Batch, Item
from prompt_tuning.order import Order
from prompt_tuning.run import Opened

PREFETCH = 4  # batches laid out ahead of the step
SAMPLED = 16  # batches that the row shape is planned from


class TrainingData:
    """The training examples of every slot, in the slot's own order."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.run = opened, opened.run
        loaded = {id(task): task.load("train") for mixture in opened.mixtures for task, rate in _drawn(mixture)}
        self.sets = [[loaded[id(task)] for task, _ in _drawn(mixture)] for mixture in opened.mixtures]
        for sets, slot in zip(self.sets, opened.slots, strict=True):
            if not any(len(examples) for examples in sets):
                raise UserError(f"{slot.name}: its training split is empty.")
        self.orders = [
            Order([len(e) for e in sets], [rate for _, rate in _drawn(mixture)], slot.seed)
            for sets, mixture, slot in zip(self.sets, opened.mixtures, opened.slots, strict=True)
        ]

    def items(self, step: int) -> list[Item]:
        """The K * B examples of one step."""
        made = []
        for k, (slot, sets, order) in enumerate(zip(self.opened.slots, self.sets, self.orders, strict=True)):
            for n, (t, i) in enumerate(order(step * self.run.batch_size, self.run.batch_size)):
                made.append(Item(sets[t].inputs[i], [sets[t].targets[i]], k, n, slot.length, slot.placement))
        return made

    def plan(self) -> layout.Shape:
        """The rows that the run's batches are packed into, planned from its first ones."""
        longest = max(
            int(examples.inputs.lengths.max()) + slot.length
            for sets, slot in zip(self.sets, self.opened.slots, strict=True)
            for examples in sets
        )
        target = max(int(examples.targets.lengths.max()) for sets in self.sets for examples in sets)
        sample = [self.items(step) for step in range(SAMPLED)]
        return layout.plan(
            sample, (longest, target), self.run.packing, self.opened.mesh.shape["data"] * self.run.microbatches
        )

    @property
    def distinct(self) -> list[Examples]:
        """Each training set once, however many slots draw from it."""
        return list({id(examples): examples for sets in self.sets for examples in sets}.values())

    def batch(self, step: int, shape: layout.Shape) -> Batch:
        """The packed batch of one step."""
        return layout.pack(self.items(step), shape, self.opened.model.length)


def _drawn(mixture: Mixture) -> list[tuple[Task, float]]:
    return [(task, rate) for task, rate in zip(mixture.tasks, mixture.rates, strict=True) if rate > 0]


def prefetched(make: Callable[[int], Batch], first: int, last: int) -> Generator[tuple[int, Batch], None, None]:
    """(n, make(n)) for n from `first` to `last - 1`, made by a thread that stays `PREFETCH` ahead."""
    ready: queue.Queue = queue.Queue(PREFETCH)
    closed = threading.Event()

    def offer(thing: Any) -> None:
        while not closed.is_set():
            try:
                return ready.put(thing, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for n in range(first, last):
                if closed.is_set():
                    return
                offer((n, make(n)))
            offer(None)
        except BaseException as error:
            offer(error)

    thread = threading.Thread(target=work, daemon=True, name="layout")
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        closed.set()
