"""Which example stands at which position of a training stream: a function of the seed, so that it can be resumed."""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 1024  # positions whose tasks are drawn at once


class Turns:
    """Which task of a mixture has its turn at which position: tasks drawn at their rates, without end."""

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        """A task of rate 0 is never drawn."""
        self.seed = seed
        self.rates = np.asarray(rates, np.float64) / np.sum(rates)
        self._drawn = [np.zeros(len(self.rates), np.int64)]  # how often each task was drawn before each block

    def __call__(self, position: int) -> tuple[int, int]:
        """The task of a position, and how many positions before it are the task's."""
        if len(self.rates) == 1:
            return 0, position
        block, inside = divmod(position, BLOCK)
        tasks = self._tasks(block)
        task = int(tasks[inside])
        return task, int(self._before(block)[task] + np.count_nonzero(tasks[:inside] == task))

    def before(self, position: int) -> list[int]:
        """How many positions before this one each task has."""
        if len(self.rates) == 1:
            return [position]
        block, inside = divmod(position, BLOCK)
        counts = np.bincount(self._tasks(block)[:inside], minlength=len(self.rates))
        return [int(n) for n in self._before(block) + counts]

    @functools.lru_cache(maxsize=4)  # noqa: B019 - it lives as long as its run
    def _tasks(self, block: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0xB10C, block]).choice(len(self.rates), BLOCK, p=self.rates)

    def _before(self, block: int) -> np.ndarray:
        while len(self._drawn) <= block:
            counts = np.bincount(self._tasks(len(self._drawn) - 1), minlength=len(self.rates))
            self._drawn.append(self._drawn[-1] + counts)
        return self._drawn[block]


class Order:
    """Endless order over the tasks of a mixture: each task shuffled anew every epoch, tasks drawn at their rates."""

    def __init__(self, sizes: Sequence[int], rates: Sequence[float], seed: int) -> None:
        """`sizes` are the tasks' numbers of examples."""
        self.sizes, self.seed = tuple(sizes), seed
        self.turns = Turns(rates, seed)
        self._permutation = functools.lru_cache(maxsize=2 * len(self.sizes))(self._shuffled)

    def __call__(self, start: int, count: int) -> list[tuple[int, int]]:
        """(task, example) at positions `start` to `start + count - 1`."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> tuple[int, int]:
        task, nth = self.turns(position)
        epoch, inside = divmod(nth, self.sizes[task])
        return task, int(self._permutation(task, epoch)[inside])

    def _shuffled(self, task: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, task, epoch]).permutation(self.sizes[task])
