"""What waits for the model: bounded, oldest first, gathered into batches within a bound on the wait."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.bank import Entry
from prompt_tuning.serve.ladder import Size


class Full(Exception):
    """There is no room to wait."""


class Closed(Exception):
    """The server is stopping."""


@dataclasses.dataclass(eq=False)
class Job:
    """One text on its way to the model."""

    entry: Entry  # the prompt, as it was when the request came
    tokens: np.ndarray  # int32[T]
    labels: tuple[str, ...]  # to rank; empty: the answer is written
    size: Size
    tell: Callable[[Any], None]  # is told pieces, then an infer.Answer or an exception
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    given_up: bool = False  # nobody listens any more


class Queue:
    """Jobs between the threads that bring them and the one thread that has the model."""

    def __init__(self, bound: int, window: float) -> None:
        """At most `bound` jobs wait; a batch is begun at most `window` seconds after its first job came."""
        self.bound, self.window = bound, window
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, jobs: Sequence[Job]) -> None:
        """Lets all of them wait or none. Raises Full or Closed."""
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(jobs) > self.bound:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify()

    def take(self, room: int, busy: bool) -> list[Job] | None:
        """What waits, once `room` positions wait or the window of the oldest is over; None when closed and empty.

        While the caller is `busy` it does not block: the list is empty until a batch is due. The jobs go on waiting
        until they are removed.
        """
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if not job.given_up]
                if self._closed and not self._waiting:
                    return None
                left = self._left(room)
                if left is not None and left <= 0:
                    return list(self._waiting)
                if busy:
                    return []
                self._changed.wait(left)

    def _left(self, room: int) -> float | None:
        """Seconds until a batch is due; None if nothing waits."""
        if not self._waiting:
            return None
        if self._closed or sum(job.size.length for job in self._waiting) >= room:
            return 0.0
        return self._waiting[0].arrived + self.window - time.monotonic()

    def remove(self, jobs: Sequence[Job]) -> None:
        """These no longer wait."""
        gone = set(map(id, jobs))
        with self._changed:
            self._waiting = [job for job in self._waiting if id(job) not in gone]

    def close(self) -> None:
        """Nothing more may come; what waits is still taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()
