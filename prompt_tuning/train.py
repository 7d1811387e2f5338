"""Training, of prompts or of a whole model: read from top to bottom, `train` is one run.

python -m prompt_tuning.train --gin_file=runs/sst2_small.gin --gin.MODEL_DIR=runs/sst2
"""

import contextlib
import dataclasses
import functools
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import configure, device, layout, optim, report, slots, split
from prompt_tuning.batches import Feed, prefetched
from prompt_tuning.checkpoint import Best, Checkpointer, Identity
from prompt_tuning.log import Clock, Log, bytes_in_words
from prompt_tuning.program import Program
from prompt_tuning.run import Opened, Run, open_run
from prompt_tuning.step import TrainState, train_step
from prompt_tuning.tuning import Metrics  # and gin's names of the tunings


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to."""

    step: int
    best: Best
    names: tuple[str, ...]


def train(run: Run) -> Result:
    """Trains every slot of `run`, evaluating and saving every EVAL_PERIOD steps; goes on from the newest checkpoint."""
    clock, way = Clock(), run.tuning
    opened = open_run(run)
    optimizer, feed, evaluate = way.optimizer(opened), way.feed(opened), way.evaluator(opened)
    state, frozen = _first_state(opened, optimizer)
    best = Best.none(way.kept(state.trainable), len(opened.slots))
    identity = Identity(opened.base.digest, _settings(opened))

    run.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Checkpointer(run.folder)) as checkpointer, device.on(opened.mesh), _stop_signal() as stop:
        if checkpointer.latest is not None:
            state, best = checkpointer.restore(state, best, identity)
        (run.folder / "config.gin").write_text(gin.operative_config_str(), "utf-8")
        with contextlib.closing(Log(run.folder, int(state.step))) as log:
            periods = _periods(opened, feed, optimizer, state, frozen, log, clock, stop)
            for state, stopped in periods:
                done = int(state.step)
                if not stopped:
                    metrics, scores = evaluate(split.merge(state.trainable, frozen))
                    best = best.updated(way.kept(state.trainable), scores, done)
                    _log_evaluation(log, opened, metrics, best, done)
                log.flush()
                checkpointer.save(state, best, identity)
                way.save(opened, state.trainable, done)
                if stopped:
                    log.say(f"stopped at step {done} and saved; the same command goes on from there", "bold")
                elif run.patience and done - best.step.max() >= run.patience * run.eval_period:
                    log.say(f"no slot got better in {run.patience} evaluations: stopping early", "bold")
                    break
            for line in way.finish(opened, state, best):
                log.say(line, "bold")
            log.flush()
            if picture := report.curves(run.folder):
                log.say(f"curves in {picture}", "dim")
    return Result(int(state.step), best, tuple(slot.name for slot in opened.slots))


def _periods(
    opened: Opened, feed: Feed, optimizer: optim.Optimizer, state: TrainState, frozen: split.Params,
    log: Log, clock: Clock, stop: threading.Event,
) -> Iterator[tuple[TrainState, bool]]:  # fmt: skip
    """(state, False) after every EVAL_PERIOD steps and the last one; (state, True) once, when `stop` is set."""
    run, first, shape = opened.run, int(state.step), feed.plan()
    log.ledger(_ledger(opened, feed, shape, state, frozen))
    pure = functools.partial(
        train_step, model=opened.model, optimizer=optimizer, dropout_rate=run.dropout_rate, z_loss=run.z_loss,
        at_once=shape.at_once,
    )  # fmt: skip
    step = Program(pure, state, lambda line: log.say(line, "dim"))
    window: list[tuple[Any, float, float]] = []
    with contextlib.closing(prefetched(lambda n: feed.batch(n, shape), first, run.train_steps)) as batches:
        for n, batch, waited in batches:
            state, metrics = step(state, frozen, device.put_batch(batch, opened.mesh))
            window.append((metrics, batch.padding(shape), waited))
            done = n + 1
            if done == first + 1:
                jax.block_until_ready(state)
                log.say(f"first step after {clock.since_start():.0f} s", "dim")
                clock.pause()  # compiling is not the pace of the run
            stopped = stop.is_set()
            evaluates = done % run.eval_period == 0 or done == run.train_steps
            if done % run.log_period == 0 or evaluates or stopped:
                timed = len(window) - (done == first + len(window))
                _log_window(log, clock, opened, window, done, timed)
                window = []
            if evaluates and not stopped:
                yield state, False
                clock.pause()  # nor is evaluating
            if stopped or stop.is_set():
                yield state, True
                return


def _log_evaluation(log: Log, opened: Opened, metrics: Metrics, best: Best, step: int) -> None:
    """A line for each slot."""
    for slot, found, score, at in zip(opened.slots, metrics, best.score, best.step, strict=True):
        shown = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
        note = "best so far" if at == step else f"best {abs(score):.2f} at step {at}"
        log.say(f"{step:>8}  {slot.name}  {shown}  ({note})", "good" if at == step else "")
    log.record(step, {"eval": {slot.name: found for slot, found in zip(opened.slots, metrics, strict=True)}})


def _first_state(opened: Opened, optimizer: optim.Optimizer) -> tuple[TrainState, split.Params]:
    """The state before the first step, each leaf where it will stay, and the frozen parameters."""
    trainable, frozen = opened.run.tuning.start(opened)
    everywhere = functools.partial(device.put_everywhere, mesh=opened.mesh)
    rng, step = jnp.asarray(slots.rng_of(opened.slots)), jnp.zeros((), jnp.int32)
    opt_state = device.put_beside(optimizer.init(trainable), trainable, opened.mesh)
    return TrainState(trainable, opt_state, everywhere(step), everywhere(rng)), frozen


def _settings(opened: Opened) -> dict[str, Any]:
    """Everything that decides what the prompts become, as plain values."""
    run = opened.run
    word = lambda value: getattr(value, "__name__", None) or value
    bound = lambda function: {name: word(v) for name, v in configure.bound(function).items()}
    described = [{f.name: word(getattr(s, f.name)) for f in dataclasses.fields(s)} for s in opened.slots]
    names = ("batch_size", "rows_at_once", "packing", "z_loss", "dropout_rate", "eval_period", "log_period")
    tuned = type(run.tuning).__name__, {f.name: getattr(run.tuning, f.name) for f in dataclasses.fields(run.tuning)}
    functions = {"optimizer": run.optimizer, "schedule": run.schedule}
    functions |= {f"init of {slot.name}": slot.init for slot in opened.slots}
    settings = {name: getattr(run, name) for name in names} | {"slots": described, "lengths": dict(run.data.lengths)}
    settings["tuning"] = {tuned[0]: tuned[1]}
    return settings | {name: {word(function): bound(function)} for name, function in functions.items()}


def _ledger(opened: Opened, feed: Feed, shape: layout.Shape, state: TrainState, frozen: split.Params) -> dict[str, str]:
    """What the run is made of."""
    run, base, first = opened.run, opened.base, int(state.step)
    whole = run.tuning.whole_model
    trainable = split.count(state.trainable) if whole else sum(s.length for s in opened.slots) * base.config.emb_dim
    batch = feed.batch(first, shape)
    share = trainable / (trainable + split.count(frozen))
    rows = {
        "base": f"{base.path} ({base.digest[:12]})" if base.step != 0 else base.path,
        "frozen": f"{split.count(frozen):,} parameters, {bytes_in_words(split.size_in_bytes(frozen))}",
        "trainable": f"{trainable:,} parameters, {bytes_in_words(4 * trainable)} ({share:.4%})",
        "devices": device.describe(),
        "examples": feed.described,
        "batch": f"{len(opened.slots)} x {run.batch_size} examples in {len(batch.encoder_tokens)} rows of"
        f" {shape.row_length} positions, {batch.padding(shape):.0%} padding",
        "writes to": str(run.folder),
    }
    if first:
        rows["resumes"] = f"at step {first} of {run.train_steps}"
    return rows


def _log_window(log: Log, clock: Clock, opened: Opened, window: list, done: int, timed: int) -> None:
    """One line about the steps since the last one."""
    run = opened.run
    metrics, padding, waited = zip(*window, strict=True)
    losses, norms = (np.mean([np.asarray(m[name]) for m in metrics], axis=0) for name in ("loss", "gradient_norm"))
    seconds = clock.window(timed)
    names = [slot.name for slot in opened.slots]
    rate = opened.slots[0].learning_rate * float(run.schedule(np.float32(done - 1)))
    record = {
        "loss": dict(zip(names, losses.tolist(), strict=True)),
        "gradient_norm": dict(zip(names, norms.tolist(), strict=True)),
        "learning_rate": rate,
        "examples_per_second": timed * run.batch_size * len(names) / seconds if timed else None,
        "padding": float(np.mean(padding)),
        "waiting": sum(waited[-timed:]) / seconds if timed else None,  # for input, as a share of the time
        "memory": device.peak_memory(),
    }
    log.train(done, run.train_steps, record, clock.left(run.train_steps - done))


class _stop_signal:
    """Inside, SIGTERM and Ctrl-C ask for a stop after the running step instead of killing it."""

    def __enter__(self) -> threading.Event:
        event = threading.Event()
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, lambda *_: event.set())
        return event

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def main() -> int:
    """T5X's flags: --gin_file (any number, in any order), --gin.NAME=VALUE, --gin_search_paths."""
    from prompt_tuning import cli

    return cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
