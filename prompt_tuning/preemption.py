"""When a run is asked to stop: a scheduler's signals, and the notices that JAX's coordination service passes round."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import jax

# kill and cloud schedulers send SIGTERM, Ctrl-C SIGINT, SLURM what --signal names
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Interrupted(Exception):
    """An evaluation was left in the middle because the run is to stop."""


class Stop:
    """Inside, a signal asks the run to save after the running step, instead of killing it.

    In a job of several processes JAX's coordination service agrees with all of them on the step to stop after. It
    listens for SIGTERM, as which a TPU's maintenance and preemption arrive; the other signals are handed to it.
    """

    def __init__(self) -> None:
        self._wanted = False  # no Event: its lock would be waited for by a signal that comes while it is set
        self._old: dict[int, Any] = {}

    @property
    def _together(self) -> bool:
        return jax.distributed.is_initialized()

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            signals = [s for s in SIGNALS if s != signal.SIGTERM] if self._together else SIGNALS
            self._old = {number: signal.signal(number, self._heard) for number in signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _heard(self, *_: object) -> None:
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._wanted = True

    def is_set(self) -> bool:
        """Whether the run is to save and end now."""
        return self._wanted

    def after(self, step: int) -> bool:
        """Whether the run ends after `step`; every process asks once at every step, and all get the same answer."""
        if self._together:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._wanted = True
        return self._wanted

    def leaving(self, batches: Iterable) -> Iterator:
        """The batches of an evaluation. Raises Interrupted as soon as the run is to stop.

        In a job of several processes the evaluation is finished: only a whole step can be agreed on.
        """
        for batch in batches:
            if self._wanted and not self._together:
                raise Interrupted
            yield batch
