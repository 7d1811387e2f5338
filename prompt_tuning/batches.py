"""What the trainer is fed: each slot's examples in its own order, packed ahead of the step by a thread."""

import abc
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from prompt_tuning import device, layout, planning
from prompt_tuning.errors import UserError
from prompt_tuning.examples import Examples, Mixture, Task, digest
from prompt_tuning.layout import Batch, Item
from prompt_tuning.order import Order, Turns
from prompt_tuning.run import Opened

STOPS_WITHIN = 10  # seconds: it may be in the middle of a batch, or of a read that hangs
PREFETCH = 4  # batches laid out ahead of the step
SAMPLED = 16  # batches that the row shape is planned from


class Feed(abc.ABC):
    """The examples of every step, and the rows they are packed into."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.run = opened, opened.run

    @abc.abstractmethod
    def items(self, step: int) -> list[Item]:
        """The K * B examples of one step."""

    @property
    @abc.abstractmethod
    def longest(self) -> tuple[int, int]:
        """The longest input with its prompt, and the longest target, of all that will come."""

    @property
    @abc.abstractmethod
    def described(self) -> str:
        """What there is, in words."""

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 of the examples; empty where they are not known beforehand."""

    @abc.abstractmethod
    def told(self, step: int, slot: int) -> str:
        """Which examples a slot has in a step, in words."""

    def plan(self) -> layout.Shape:
        """The rows that the run's batches are packed into, planned from its first ones."""
        sample = [self.items(step) for step in range(SAMPLED)]
        if missing := sorted(set(range(len(self.opened.slots))) - {item.slot for group in sample for item in group}):
            raise UserError(f"{self.opened.slots[missing[0]].name}: nothing to train on: {self.described} is empty.")
        line = None if self.run.tuning.whole_model else device.line(self.opened.mesh)
        devices = self.opened.mesh.shape["data"]
        at_once, steps = self.run.rows_at_once, self.run.train_steps
        return planning.plan(sample, self.longest, self.run.packing, devices, at_once, line, steps=steps)

    def batch(self, step: int, shape: layout.Shape) -> Batch:
        """The packed batch of one step."""
        return layout.pack(self.items(step), shape, self.opened.model.length)


class TrainingData(Feed):
    """The training examples of every slot, in the slot's own order."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        loaded = {id(task): task.load("train") for mixture in opened.mixtures for task, rate in _drawn(mixture)}
        self.sets = [[loaded[id(task)] for task, _ in _drawn(mixture)] for mixture in opened.mixtures]
        for sets, slot in zip(self.sets, opened.slots, strict=True):
            if not any(len(examples) for examples in sets):
                raise UserError(
                    f"{slot.name}: nothing to train on: it has no task with a train split and a rate above 0."
                )
        self.orders = [
            Order([len(e) for e in sets], [rate for _, rate in _drawn(mixture)], slot.seed)
            for sets, mixture, slot in zip(self.sets, opened.mixtures, opened.slots, strict=True)
        ]

    def items(self, step: int) -> list[Item]:
        made = []
        for k, (slot, sets, order) in enumerate(zip(self.opened.slots, self.sets, self.orders, strict=True)):
            for n, (t, i) in enumerate(order(step * self.run.batch_size, self.run.batch_size)):
                made.append(Item(sets[t].inputs[i], [sets[t].targets[i]], k, n, slot.length, slot.placement))
        return made

    @property
    def digest(self) -> str:
        return digest(self._distinct)

    def told(self, step: int, slot: int) -> str:
        drawn, sets = self.orders[slot](step * self.run.batch_size, self.run.batch_size), self.sets[slot]
        return "training examples, from 0: " + ", ".join(f"{sets[t].task} {i}" for t, i in drawn)

    @property
    def longest(self) -> tuple[int, int]:
        source = max(
            int(examples.inputs.lengths.max()) + slot.length
            for sets, slot in zip(self.sets, self.opened.slots, strict=True)
            for examples in sets
        )
        return source, max(int(examples.targets.lengths.max()) for sets in self.sets for examples in sets)

    @property
    def described(self) -> str:
        cut = sum(e.truncated for e in self._distinct)
        sets = ", ".join(f"{e.task} {len(e):,}" for e in self._distinct)
        return sets + (f"; {cut:,} inputs cut at {self.run.data.lengths['inputs']} tokens" if cut else "")

    @property
    def _distinct(self) -> list[Examples]:
        """Each training set once, however many slots draw from it."""
        return list({id(examples): examples for sets in self.sets for examples in sets}.values())


class StreamedData(Feed):
    """Text as it comes from SeqIO tasks, each slot's in its own order; a resumed run reads on from the step's place."""

    def __init__(self, opened: Opened, split: str = "train") -> None:
        super().__init__(opened)
        for mixture in opened.mixtures:
            if not all(hasattr(task, "stream") for task, _ in _drawn(mixture)):
                raise UserError(
                    f"{mixture.name} cannot be read as a stream, which SeqIO tasks can: give a task such as"
                    " text_span_corruption (DATA_DIR/corpus/*.txt) or c4_prefix_lm as MIXTURE_OR_TASK_NAME."
                )
        self.tasks: list[list[Any]] = [[task for task, _ in _drawn(mixture)] for mixture in opened.mixtures]
        self.split = split
        self.turns = [
            Turns([rate for _, rate in _drawn(mixture)], slot.seed)
            for mixture, slot in zip(opened.mixtures, opened.slots, strict=True)
        ]
        self._next = -1
        self._streams: list[list[Iterator]] = []
        self._read: dict[int, list[Item]] = {}  # the last step, and those that `plan` looks at: they are read once

    def items(self, step: int) -> list[Item]:
        """Quick for the last step asked for, and the next; any other is read for from the start."""
        if step in self._read:
            return self._read[step]
        start = step * self.run.batch_size
        if step != self._next:
            self._streams = [
                [task.stream(self.split, slot.seed, n) for task, n in zip(tasks, turns.before(start), strict=True)]
                for tasks, turns, slot in zip(self.tasks, self.turns, self.opened.slots, strict=True)
            ]
        self._next = step + 1
        taken = self._taken(self._streams, start, self.run.batch_size)
        self._read = {n: items for n, items in self._read.items() if n < SAMPLED} | {step: taken}
        return taken

    def told(self, step: int, slot: int) -> str:
        size = self.run.batch_size
        return f"examples {step * size} to {step * size + size - 1} of the stream, from 0"

    def first(self, count: int) -> list[Item]:
        """The first examples of a split that ends, for each slot, up to the turn of a task that has no more."""
        return self._taken([[task.stream(self.split, None) for task in tasks] for tasks in self.tasks], 0, count)

    def _taken(self, streams: Sequence[Sequence[Iterator]], start: int, count: int) -> list[Item]:
        taken: list[Item] = []
        for k, (turns, own, slot) in enumerate(zip(self.turns, streams, self.opened.slots, strict=True)):
            for n in range(count):
                task, _ = turns(start + n)
                if (texts := next(own[task], None)) is None:
                    break
                taken.append(Item(texts[0], [texts[1]], k, n, slot.length, slot.placement))
        return taken

    @property
    def digest(self) -> str:
        return ""

    @property
    def longest(self) -> tuple[int, int]:
        lengths = self.run.data.lengths
        return lengths["inputs"] + max(slot.length for slot in self.opened.slots), lengths["targets"]

    @property
    def described(self) -> str:
        names = dict.fromkeys(task.name for tasks in self.tasks for task in tasks)
        return f"{', '.join(names)}, read as it comes"


def _drawn(mixture: Mixture) -> list[tuple[Task, float]]:
    return [(task, rate) for task, rate in zip(mixture.tasks, mixture.rates, strict=True) if rate > 0]


def prefetched(make: Callable[[int], Batch], first: int, last: int) -> Generator[tuple[int, Batch, float], None, None]:
    """(n, make(n), seconds waited for it) for n from `first` to `last - 1`, by a thread that stays `PREFETCH` ahead."""
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
        while True:
            asked = time.monotonic()
            if (thing := ready.get()) is None:
                return
            if isinstance(thing, BaseException):
                raise thing
            yield *thing, time.monotonic() - asked
    finally:
        closed.set()
        thread.join(STOPS_WITHIN)
