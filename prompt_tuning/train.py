"""Training, of prompts or of a whole model: read from top to bottom, `train` is one run.

python -m prompt_tuning.train --gin_file=runs/sst2_small.gin --gin.MODEL_DIR=runs/sst2
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import (
    allocator,
    configure,
    device,
    disk,
    job,
    layout,
    optim,
    report,
    run_folder,
    slots,
    split,
)
from prompt_tuning.batches import Feed, prefetched
from prompt_tuning.checkpoint import Best, Checkpointer, Identity, Restored
from prompt_tuning.errors import UserError
from prompt_tuning.log import Clock, Log, bytes_in_words
from prompt_tuning.preemption import Interrupted, Stop
from prompt_tuning.program import Program
from prompt_tuning.progress import bar
from prompt_tuning.run import Opened, Run, open_run
from prompt_tuning.slots import Slot
from prompt_tuning.step import GIVEN_UP, Model, TrainState, train_step
from prompt_tuning.tuning import Metrics  # and gin's names of the tunings


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to."""

    step: int
    best: Best
    names: tuple[str, ...]
    stopped: bool = False  # it was asked to stop, and goes on when it is started again


def train(given: Run | Opened) -> Result:
    """Trains every slot of a run, evaluating and saving every EVAL_PERIOD steps; goes on from the newest checkpoint."""
    with Stop() as stop:
        return _train(given, stop)


def _train(given: Run | Opened, stop: Stop) -> Result:
    clock = Clock()
    watched = lambda batches, total: bar(stop.leaving(batches), total)
    opened = dataclasses.replace(given if isinstance(given, Opened) else open_run(given), progress=watched)
    run, way = opened.run, opened.run.tuning
    slots.check_file_names(opened.slots)
    optimizer, evaluate, feed = way.optimizer(opened), way.evaluator(opened), way.feed(opened)
    state, frozen = first_state(opened, optimizer)
    best = Best.none(way.kept(state.trainable), len(opened.slots))
    identity = Identity(opened.base.digest, settings_of(run, opened.slots) | _given(opened, feed))

    held = job.first(run_folder.held(run.folder))
    with held, contextlib.closing(Checkpointer(run.folder)) as saved, device.on(opened.mesh):
        if saved.latest is None:
            _refuse_old_model(run)
            start = Restored(state, best, evaluated=True)
        else:
            start = saved.restore(state, best, identity)
        state, best = start.state, start.best
        if job.writes():
            with disk.replacing(run.folder / "config.gin") as file:
                file.write(gin.operative_config_str().encode())
        with contextlib.closing(Log(run.folder if job.writes() else None, int(state.step), start.evaluated)) as log:
            for state, evaluates in _periods(opened, feed, optimizer, start, frozen, log, clock, stop):
                done, cut_short = int(state.step), None
                if evaluates:
                    best, cut_short = _evaluated(opened, evaluate, state, frozen, best, log)
                log.flush()
                way.save(opened, state.trainable, done)  # before the checkpoint: what resumes from it saves it no more
                saved.save(state, best, identity, evaluated=cut_short is None)
                if cut_short and not isinstance(cut_short, Interrupted):
                    log.say(f"step {done} is saved but could not be evaluated; the same command begins there", "bold")
                    raise cut_short
                if stop.is_set():
                    break
                if _out_of_patience(run, best, done):
                    log.say(f"no slot got better in {run.patience} evaluations: stopping early", "bold")
                    break
            if stop.is_set():
                log.say(f"stopped at step {int(state.step)} and saved; the same command goes on from there", "bold")
            for line in way.finish(opened, state, best):
                log.say(line, "bold")
            log.flush()
            if job.writes() and (picture := report.curves(run.folder)):
                log.say(f"curves in {picture}", "dim")
    if _all_given_up(state):
        raise UserError(
            f"Nothing is left to train: every loss or gradient has been no finite number for {GIVEN_UP} steps."
            " Type prompt-tuning doctor with the same flags, and start again in another MODEL_DIR with a lower"
            " LEARNING_RATE or with FROZEN_DTYPE=float32."
        )
    return Result(int(state.step), best, tuple(slot.name for slot in opened.slots), stop.is_set())


def _refuse_old_model(run: Run) -> None:
    """Raises UserError where the model of an earlier run, whose checkpoints are gone, would be taken for this one's."""
    if run.tuning.whole_model and (run.folder / "base").is_dir():
        raise UserError(
            f"{run.folder / 'base'} holds the model of an earlier run, and no checkpoint to go on from is there. Give"
            " another MODEL_DIR, or delete that folder to start anew."
        )


def _all_given_up(state: TrainState) -> bool:
    return bool((np.asarray(state.failures) >= GIVEN_UP).all())


def _out_of_patience(run: Run, best: Best, step: int) -> bool:
    return run.patience is not None and step - best.step.max() >= run.patience * run.eval_period


def _periods(
    opened: Opened, feed: Feed, optimizer: optim.Optimizer, start: Restored, frozen: split.Params,
    log: Log, clock: Clock, stop: Stop,
) -> Iterator[tuple[TrainState, bool]]:  # fmt: skip
    """(state, True) after every EVAL_PERIOD steps and the last one, to evaluate; (state, False) where it ends early."""
    run, state, shape = opened.run, start.state, feed.plan()
    first = int(state.step)
    for note in start.notes:
        log.say(note, "bold")
    log.ledger(_ledger(opened, feed, shape, state, frozen))
    if not start.evaluated:
        yield state, True
    elif _out_of_patience(run, start.best, first):
        return
    model = dataclasses.replace(opened.model, filled=shape.filled)
    pure = functools.partial(
        train_step, model=model, optimizer=optimizer, dropout_rate=run.dropout_rate, z_loss=run.z_loss,
    )  # fmt: skip
    step = Program(pure, _computed(opened, model), state, lambda line: log.say(line, "dim"))
    window: list[tuple[Any, float, float]] = []
    with contextlib.closing(prefetched(lambda n: feed.batch(n, shape), first, run.train_steps)) as batches:
        for n, batch, waited in batches:
            if n == first and stop.is_set():  # compiling would take long, and nothing is to be saved
                return
            compiling = step.compiling
            state, metrics = step(state, frozen, device.put_batch(batch, opened.mesh))
            clock.leave_out(step.compiling - compiling)  # it is not the pace of the run
            window.append((metrics, shape.padding(batch), waited))
            done = n + 1
            if done == first + 1:
                jax.block_until_ready(state)
                log.say(f"first step after {clock.since_start():.0f} s", "dim")
                clock.pause()  # nor is what else the first step takes
            stopped = stop.after(done)
            evaluates = done % run.eval_period == 0 or done == run.train_steps
            if done % run.log_period == 0 or evaluates or stopped:
                timed = len(window) - (done == first + len(window))
                _log_window(log, clock, opened, feed, window, done, timed)
                window = []
                stopped = stopped or _all_given_up(state)
            if evaluates or stopped:
                yield state, evaluates
                clock.pause()  # nor is evaluating
            if stopped:
                return


def _evaluated(
    opened: Opened, evaluate: Callable[[split.Params], tuple[Metrics, np.ndarray]], state: TrainState,
    frozen: split.Params, best: Best, log: Log,
) -> tuple[Best, Exception | None]:  # fmt: skip
    """The best after an evaluation, and what cut it short: a stop, or an error of a task's own metric, say.

    An error is returned, so that what was trained can be saved before it is raised.
    """
    allocator.give_back_freed_memory()
    try:
        metrics, scores = evaluate(split.merge(state.trainable, frozen))
        best = best.updated(opened.run.tuning.kept(state.trainable), scores, int(state.step))
        _log_evaluation(log, opened, metrics, scores, best, int(state.step))
    except Exception as error:
        if job.several() and not isinstance(error, Interrupted):  # the other processes may not be here
            raise
        return best, error
    finally:
        allocator.give_back_freed_memory()
    return best, None


def _log_evaluation(
    log: Log, opened: Opened, metrics: Metrics, scores: np.ndarray, best: Best, step: int
) -> None:  # fmt: skip
    """A line for each slot."""
    for slot, found, new, score, at in zip(opened.slots, metrics, scores, best.score, best.step, strict=True):
        shown = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
        note = "best so far" if at == step else f"best {opened.run.tuning.shown(score):.2f} at step {at}"
        note = note if np.isfinite(new) else "no number, so no step to be the best"
        log.say(f"{step:>8}  {slot.name}  {shown}  ({note})", "good" if at == step else "")
    log.record(step, {"eval": {slot.name: found for slot, found in zip(opened.slots, metrics, strict=True)}})


def first_state(opened: Opened, optimizer: optim.Optimizer) -> tuple[TrainState, split.Params]:
    """The state before the first step, each leaf where it will stay, and the frozen parameters."""
    trainable, frozen = opened.run.tuning.start(opened)
    everywhere = functools.partial(device.put_everywhere, mesh=opened.mesh)
    rng, step = jnp.asarray(slots.rng_of(opened.slots)), jnp.zeros((), jnp.int32)
    opt_state = device.put_beside(optimizer.init(trainable), trainable, opened.mesh)
    failures = jnp.zeros(len(opened.slots), jnp.int32)
    return TrainState(trainable, opt_state, everywhere(step), everywhere(rng), everywhere(failures)), frozen


def settings_of(run: Run, slots: Sequence[Slot]) -> dict[str, Any]:
    """Everything that decides what the prompts become and which step's are the best, as plain values.

    Not where it is computed, and so not FROZEN_DTYPE: a run may go on on another kind of machine.
    """
    word = lambda value: configure.word(value) if callable(value) else value
    described = [{f.name: word(getattr(s, f.name)) for f in dataclasses.fields(s)} for s in slots]
    names = ("batch_size", "rows_at_once", "packing", "z_loss", "dropout_rate", "eval_period")
    tuned = type(run.tuning).__name__, {f.name: getattr(run.tuning, f.name) for f in dataclasses.fields(run.tuning)}
    functions = {"optimizer": run.optimizer, "schedule": run.schedule}
    functions |= {f"init of {slot.name}": slot.init for slot in slots}
    settings = {name: getattr(run, name) for name in names} | {"slots": described, "lengths": dict(run.data.lengths)}
    settings["tuning"] = {tuned[0]: tuned[1]}
    settings |= {"eval_split": run.data.eval_split, "eval_lengths": dict(run.data.eval_lengths or {})}
    settings["predict"] = configure.plain(run.predict)
    return settings | {name: {word(function): configure.bound(function)} for name, function in functions.items()}


def _given(opened: Opened, feed: Feed) -> dict[str, Any]:
    """What tasks and their files decide besides, as plain values."""
    drawn = {
        slot.name: {task.name: rate for task, rate in zip(mixture.tasks, mixture.rates, strict=True)}
        for slot, mixture in zip(opened.slots, opened.mixtures, strict=True)
    }
    return {"training examples": feed.digest, "rates": drawn} | opened.run.tuning.scored_on(opened)


def _computed(opened: Opened, model: Model) -> dict[str, Any]:
    """Everything that decides what a training step computes, as plain values."""
    run = opened.run
    functions = [
        f"{f.__module__}.{f.__qualname__}" for f in (run.optimizer, run.schedule) if hasattr(f, "__qualname__")
    ]
    return settings_of(run, opened.slots) | {"model": model, "functions": functions}


def _ledger(opened: Opened, feed: Feed, shape: layout.Shape, state: TrainState, frozen: split.Params) -> dict[str, str]:
    """What the run is made of."""
    run, base, first = opened.run, opened.base, int(state.step)
    whole = run.tuning.whole_model
    trainable = split.count(state.trainable) if whole else sum(s.length for s in opened.slots) * base.config.emb_dim
    batch = feed.batch(first, shape)
    share = trainable / (trainable + split.count(frozen))
    count = batch.rows if batch.in_parts or len(shape.rows) == 1 else f"{shape.rows[0]} to {shape.rows[-1]}"
    rows = {
        "base": f"{base.path} ({base.digest[:12]})" if base.step != 0 else base.path,
        "frozen": f"{split.count(frozen):,} parameters, {bytes_in_words(split.size_in_bytes(frozen))}",
        "trainable": f"{trainable:,} parameters, {bytes_in_words(4 * trainable)} ({share:.4%})",
        "devices": device.describe(opened.mesh),
        "examples": feed.described,
        "batch": f"{len(opened.slots)} x {run.batch_size} examples in {count} rows of"
        f" {shape.row_length} positions, {shape.padding(batch):.0%} padding",
        "writes to": str(run.folder),
    }
    if not whole and not base.config.factors and device.multiplies_bfloat16():
        rows["quicker"] = "--gin.FROZEN_DTYPE=bfloat16, which this CPU multiplies faster"
    if base.step and run.train_steps > base.step:  # as typed for T5X, where it would be a tuning of the difference
        rows["steps"] = (
            f"{run.train_steps:,} of this run alone. If the base's {base.step:,} are among them, as T5X counts, type"
            f" --gin.TRAIN_STEPS={run.train_steps - base.step}"
        )
    if first:
        rows["resumes"] = f"at step {first} of {run.train_steps}"
    return rows


def _log_window(log: Log, clock: Clock, opened: Opened, feed: Feed, window: list, done: int, timed: int) -> None:
    """One line about the steps since the last one, and one for each slot that left some out."""
    run = opened.run
    every, padding, waited = zip(*window, strict=True)
    read = {name: np.array([metrics[name] for metrics in every]) for name in every[0]}  # [steps K]
    seconds = clock.window(timed)
    names = [slot.name for slot in opened.slots]
    scheduled = float(run.schedule(np.float32(done - 1)))
    record = {
        "loss": dict(zip(names, _means(read["loss"], read["took"]), strict=True)),
        "gradient_norm": dict(zip(names, _means(read["gradient_norm"], read["took"]), strict=True)),
        "learning_rate": {slot.name: slot.learning_rate * scheduled for slot in opened.slots},
        "examples_per_second": timed * run.batch_size * len(names) / seconds if timed else None,
        "padding": float(np.mean(padding)),
        "waiting": sum(waited[-timed:]) / seconds if timed else None,  # for input, as a share of the time
        "memory": device.peak_memory(),
    }
    if not read["took"].all():
        record["left_out"] = _left_out(log, opened, feed, read["failures"], done)
    log.train(done, run.train_steps, record, clock.left(run.train_steps - done))


def _means(values: np.ndarray, took: np.ndarray) -> list[float | None]:
    """Each slot's mean over the steps it took; None if it took none."""
    return [float(v[t].mean()) if t.any() else None for v, t in zip(values.T, took.T, strict=True)]


def _left_out(log: Log, opened: Opened, feed: Feed, failures: np.ndarray, done: int) -> dict[str, list[int]]:
    """Says which examples a slot's first unsound step had, and when it is given up; the steps left out, by slot."""
    first = done - len(failures) + 1
    for k, slot in enumerate(opened.slots):
        for step, count in enumerate(failures[:, k].tolist(), first):
            if count == 1:
                log.say(f"{slot.name}: step {step} left out, its loss, gradient or prompt was no finite number; {feed.told(step - 1, k)}", "bold")  # fmt: skip # noqa: E501
            elif count == GIVEN_UP:
                log.say(f"{slot.name}: {count} steps in a row left out; it stays as it was at step {step - count}. Lower its learning rate, or look at these examples.", "bold")  # fmt: skip # noqa: E501
    told = (failures > 0) & (failures <= GIVEN_UP)
    missing = {slot.name: (np.flatnonzero(told[:, k]) + first).tolist() for k, slot in enumerate(opened.slots)}
    return {name: steps for name, steps in missing.items() if steps}


def main() -> int:
    """T5X's flags: --gin_file (any number, in any order), --gin.NAME=VALUE, --gin_search_paths."""
    from prompt_tuning import cli

    return cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
