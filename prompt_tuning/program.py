"""The training step as compiled programs, one for each number of rows; how much memory it takes is known beforehand."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from prompt_tuning import allocator, device, split, traced
from prompt_tuning.layout import Batch
from prompt_tuning.log import bytes_in_words
from prompt_tuning.step import TrainState


class Program:
    """`pure(state, frozen, batch)` compiled; the state stays where it is, and its buffers are used again.

    `told` is everything that decides what `pure` computes. `say` hears of every compilation, so that one that nobody
    expected is seen.
    """

    def __init__(
        self,
        pure: Callable[..., tuple[TrainState, Any]],
        told: Mapping[str, Any],
        state: TrainState,
        say: Callable[[str], None],
    ) -> None:
        self._pure, self._told = pure, told
        self._places = jax.tree.map(lambda leaf: leaf.sharding, state), state.step.sharding  # metrics: everywhere
        self._compiled: dict[int, Any] = {}
        self._say = say
        self.compiling = 0.0  # seconds so far

    def __call__(self, state: TrainState, frozen: split.Params, batch: Batch) -> tuple[TrainState, Any]:
        """The next state and the step's metrics. Raises UserError where the devices have too little memory for it."""
        rows = batch.rows
        try:
            if rows not in self._compiled:
                self._compiled[rows] = self._compile(state, frozen, batch)
            return self._compiled[rows](state, frozen, batch)
        except RuntimeError as error:
            if too_little := device.too_little_memory(error):
                raise too_little from error
            raise

    def _compile(self, state: TrainState, frozen: split.Params, batch: Batch) -> Any:
        started, again = time.monotonic(), " again" if self._compiled else ""
        step = jax.jit(
            traced.step(self._pure, self._told, state, frozen, batch),
            donate_argnames="state",
            out_shardings=self._places,
            compiler_options=device.compiler_options(),
        )
        compiled = step.lower(state, frozen, batch).compile()
        allocator.give_back_freed_memory()  # what loading and compiling took
        seconds, needs, room = time.monotonic() - started, needed(compiled), device.memory()
        memory = bytes_in_words(needs)
        if room and needs > room:
            reason = f"a step of {batch.rows} rows needs {memory}, and there are {bytes_in_words(room)}"
            raise device.beyond_memory(reason)
        self.compiling += seconds
        self._say(f"compiled{again} for {batch.rows} rows in {seconds:.0f} s; a step needs {memory}")
        return compiled


def needed(compiled: Any) -> int:
    """Bytes on each device while a program runs: what it is given, what it makes, and what it computes on the way."""
    found = compiled.memory_analysis()
    given_and_made = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(given_and_made + found.temp_size_in_bytes)
