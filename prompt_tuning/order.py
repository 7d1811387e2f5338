"""Which example stands at which position of a training stream: a function of the seed, so that it can be resumed."""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 1024  # positions whose tasks are drawn at once


class Order:
    """Endless order over the tasks of a mixture: each task shuffled anew every epoch, tasks drawn at their rates."""

    def __init__(self, sizes: Sequence[int], rates: Sequence[float], seed: int) -> None:
        """`sizes` are the tasks' numbers of examples; a task of rate 0 is never drawn."""
        self.sizes, self.seed = tuple(sizes), seed
        self.rates = np.asarray(rates, np.float64) / np.sum(rates)
        self._drawn = [np.zeros(len(sizes), np.int64)]  # how often each task was drawn before each block
        self._permutation = functools.lru_cache(maxsize=2 * len(self.sizes))(self._shuffled)

    def __call__(self, start: int, count: int) -> list[tuple[int, int]]:
        """(task, example) at positions `start` to `start + count - 1`."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> tuple[int, int]:
        if len(self.sizes) == 1:
            task, nth = 0, position
        else:
            block, inside = divmod(position, BLOCK)
            tasks = self._tasks(block)
            task = int(tasks[inside])
            nth = int(self._before(block)[task] + np.count_nonzero(tasks[:inside] == task))
        epoch, inside = divmod(nth, self.sizes[task])
        return task, int(self._permutation(task, epoch)[inside])

    def _shuffled(self, task: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, task, epoch]).permutation(self.sizes[task])

    @functools.lru_cache(maxsize=4)  # noqa: B019 - an Order lives as long as its run
    def _tasks(self, block: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0xB10C, block]).choice(len(self.sizes), BLOCK, p=self.rates)

    def _before(self, block: int) -> np.ndarray:
        while len(self._drawn) <= block:
            counts = np.bincount(self._tasks(len(self._drawn) - 1), minlength=len(self.sizes))
            self._drawn.append(self._drawn[-1] + counts)
        return self._drawn[block]
