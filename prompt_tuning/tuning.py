"""What a run trains: prompts of a frozen model, the whole model on a task, or a model from plain text.

The loop in `train` is the same for all three; a `Tuning` says what changes, what it is fed, how it is scored and what
is left in the end.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import gin
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import batches, configure, device, disk, infer, job, kinds, optim, prompt_file, slots, split
from prompt_tuning.base import save_t5x
from prompt_tuning.checkpoint import Best
from prompt_tuning.errors import UserError
from prompt_tuning.examples import digest
from prompt_tuning.run import Opened, Run
from prompt_tuning.step import TrainState

Metrics = list[dict[str, float]]  # of each slot


class Tuning(Protocol):
    """What `train` asks of a way to train."""

    whole_model: ClassVar[bool]  # else the base stays frozen
    may_start_anew: ClassVar[bool]  # without a base, from random weights

    def slots(self, run: Run) -> tuple[slots.Slot, ...]: ...

    def start(self, opened: Opened) -> tuple[split.Params, split.Params]:
        """The trainable and the frozen parameters before the first step."""
        ...

    def optimizer(self, opened: Opened) -> optim.Optimizer: ...

    def feed(self, opened: Opened) -> batches.Feed: ...

    def evaluator(self, opened: Opened) -> Callable[[split.Params], tuple[Metrics, np.ndarray]]:
        """From the merged parameters to each slot's metrics and the score `[K]` that its best step is chosen by."""
        ...

    def scored_on(self, opened: Opened) -> dict[str, Any]:
        """What decides the scores, as plain values; none where text is read as it comes."""
        ...

    def shown(self, score: float) -> float:
        """A score as people are told it."""
        ...

    def kept(self, trainable: split.Params) -> split.Params:
        """What of the best step is kept."""
        ...

    def save(self, opened: Opened, trainable: split.Params, step: int) -> None:
        """What every save writes beside the checkpoint."""
        ...

    def finish(self, opened: Opened, state: TrainState, best: Best) -> list[str]:
        """Writes what the run was for, as far as it came, and says so, a line each."""
        ...


class _OnTasks:
    """Fed by tasks, scored by their metrics; the best step is kept."""

    scored_by: ClassVar[str] = "mean of the task's metrics"

    def feed(self, opened: Opened) -> batches.Feed:
        return batches.TrainingData(opened)

    def evaluator(self, opened: Opened) -> Callable[[split.Params], tuple[Metrics, np.ndarray]]:
        answerer, held_out = opened.answerer(), opened.held_out()

        def evaluate(params: split.Params) -> tuple[Metrics, np.ndarray]:
            metrics = infer.evaluate(answerer, params, held_out, opened.run.predict)
            return metrics, np.array([infer.mean_metric(found) for found in metrics])

        return evaluate

    def scored_on(self, opened: Opened) -> dict[str, Any]:
        held = [held for of_slot in opened.held_out() for held in of_slot]
        pairs = zip(opened.labels, opened.mixtures, strict=True)
        labels = [own or task.labels for own, mixture in pairs for task in mixture.tasks]
        methods = [opened.run.predict or infer.method_of(each) for each in labels]
        distinct = {id(one.examples): one.examples for one in held}.values()
        by = {configure.word(method): configure.bound(method) for method in methods}
        metrics = {one.task.name: list(one.task.metrics) for one in held if hasattr(one.task, "metrics")}
        names = [slot.name for slot in opened.slots]
        ranked = {name: list(labels) for name, labels in zip(names, opened.labels, strict=True)}
        return {"held-out examples": digest(distinct), "scored by": by, "metrics": metrics, "labels": ranked}

    def shown(self, score: float) -> float:
        return score

    def kept(self, trainable: split.Params) -> split.Params:
        return jax.tree.map(device.fetch, trainable) if job.several() else trainable


@dataclasses.dataclass(frozen=True)
class _OnText:
    """Fed by text without labels as it comes, so that a corpus may be larger than memory.

    It is scored by the mean loss of a target token on the first `eval_examples` of EVAL_SPLIT.
    """

    scored_by: ClassVar[str] = "minus the loss of a target token"
    eval_examples: int = 1024

    def __post_init__(self) -> None:
        kinds.check(kinds.WHOLE, **{f"{type(self).__name__}.eval_examples": self.eval_examples})

    def feed(self, opened: Opened) -> batches.Feed:
        return batches.StreamedData(opened)

    def evaluator(self, opened: Opened) -> Callable[[split.Params], tuple[Metrics, np.ndarray]]:
        answerer, slots = opened.answerer(), range(len(opened.slots))
        held_out = opened.run.data.eval_split
        items = batches.StreamedData(opened, held_out).first(self.eval_examples)
        if len({item.slot for item in items}) < len(slots):
            raise UserError(f"EVAL_SPLIT {held_out!r} holds no text to compute a loss on.")

        def evaluate(params: split.Params) -> tuple[Metrics, np.ndarray]:
            sums = np.zeros((2, len(slots)))  # of log-likelihoods, and of target tokens
            for item, found in zip(items, answerer.likelihoods(params, items), strict=True):
                sums[:, item.slot] += found.sum(), item.target_length
            losses = -sums[0] / sums[1]
            return [{"validation_loss": float(loss)} for loss in losses], -losses

        return evaluate

    def scored_on(self, opened: Opened) -> dict[str, Any]:
        return {}

    def shown(self, score: float) -> float:
        return -score  # a loss


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PromptTuning(_OnTasks):
    """Prompts alone are trained, the model is frozen (Lester et al. 2021)."""

    whole_model: ClassVar[bool] = False
    may_start_anew: ClassVar[bool] = False

    def slots(self, run: Run) -> tuple[slots.Slot, ...]:
        wanted = slots.expand(run.slots, run.grid)
        if empty := [slot.name for slot in wanted if not slot.length]:
            raise UserError(f"{empty[0]} has a PROMPT_LENGTH of 0: there is nothing to train. Set it from 1 to 512.")
        return wanted

    def start(self, opened: Opened) -> tuple[split.Params, split.Params]:
        trainable = {"prompt": {"bank": jnp.asarray(opened.start_bank())}}
        return device.put_everywhere(trainable, opened.mesh), opened.base.params

    def optimizer(self, opened: Opened) -> optim.Optimizer:
        lengths, rates = [s.length for s in opened.slots], [s.learning_rate for s in opened.slots]
        return optim.over_slots(opened.run.optimizer, lengths, rates, opened.run.schedule)

    def save(self, opened: Opened, trainable: split.Params, step: int) -> None:
        """The prompts of this step as bare arrays, where the authors' code puts them."""
        if not job.writes():
            return
        folder = opened.run.folder / "numpy_checkpoints" / f"checkpoint_{step}"
        bank = np.asarray(trainable["prompt"]["bank"])
        for k, slot in enumerate(opened.slots):
            place = folder / slot.name if len(opened.slots) > 1 else folder
            prompt_file.save_npy(place / prompt_file.BARE, bank[k, : slot.length])

    def finish(self, opened: Opened, state: TrainState, best: Best) -> list[str]:
        """The best prompt of each slot that was evaluated, with its card."""
        said = []
        for k, slot in enumerate(opened.slots):
            if not math.isfinite(best.score[k]):
                if int(state.step) >= opened.run.eval_period:
                    said.append(f"{slot.name}: no evaluation gave a number, so no prompt is the best; numpy_checkpoints has them all")  # fmt: skip # noqa: E501
                continue
            path, data = opened.run.folder / "prompts" / f"{slot.name}.safetensors", opened.run.data
            card = prompt_file.Card(
                name=slot.name, task=opened.mixtures[k].name, labels=opened.labels[k],
                placement=slot.placement.__name__, init=str(configure.plain(slot.init)), seed=slot.seed,
                step=int(best.step[k]), score=float(best.score[k]), metric=self.scored_by,
                base=opened.base.path, base_digest=opened.base.digest,
                input_length=(data.eval_lengths or data.lengths)["inputs"], target_length=data.lengths["targets"],
            )  # fmt: skip
            if job.writes():
                vectors = best.params["prompt"]["bank"][k, : slot.length]
                prompt_file.save_safetensors(path, prompt_file.Prompt(vectors, card))
            said.append(f"{slot.name}: {self.shown(best.score[k]):.2f} at step {best.step[k]}, prompt in {path}")
        return said


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PromptPretraining(_OnText, PromptTuning):
    """Prompts alone are trained on text without labels: SPoT's source C4 (Vu et al. 2022, §2.1)."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelTuning(_OnTasks):
    """The whole model is trained on a task, with no prompt: the paper's baseline (Lester et al. 2021, §3.1)."""

    whole_model: ClassVar[bool] = True
    may_start_anew: ClassVar[bool] = False

    def slots(self, run: Run) -> tuple[slots.Slot, ...]:
        found = slots.expand(run.slots, run.grid)
        if len(found) > 1:
            raise UserError(
                f"Only prompts can be trained {len(found)} at once; a whole model is one of its own. Leave SLOTS and"
                " GRID at None, and start a run for each."
            )
        return tuple(dataclasses.replace(slot, length=0) for slot in found)

    def start(self, opened: Opened) -> tuple[split.Params, split.Params]:
        return opened.base.params, {}

    def optimizer(self, opened: Opened) -> optim.Optimizer:
        return optim.whole(opened.run.optimizer, opened.slots[0].learning_rate, opened.run.schedule)

    def save(self, opened: Opened, trainable: split.Params, step: int) -> None:
        """Nothing: the checkpoint holds the model."""

    def finish(self, opened: Opened, state: TrainState, best: Best) -> list[str]:
        """The model of the best step as a T5X checkpoint."""
        if not math.isfinite(best.score[0]):
            return []
        path = save_model(opened, best.params, int(best.step[0]))
        return [f"{opened.slots[0].name}: {best.score[0]:.2f} at step {best.step[0]}, model in {path}"]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Pretraining(_OnText, ModelTuning):
    """The whole model is trained on text without labels: pretraining, or the paper's LM adaptation (§3.2)."""

    may_start_anew: ClassVar[bool] = True

    def kept(self, trainable: split.Params) -> split.Params:
        return {}  # the last is what counts, and a copy of a large model would cost as much again

    def finish(self, opened: Opened, state: TrainState, best: Best) -> list[str]:
        """The model as it is now as a T5X checkpoint."""
        return [f"model in {save_model(opened, state.trainable, (opened.base.step or 0) + int(state.step))}"]


def save_model(opened: Opened, params: split.Params, step: int) -> str:
    """Writes MODEL_DIR/base/checkpoint_<step> in T5X's layout with the vocabulary beside it, unless it is there."""
    folder = opened.run.folder / "base"
    if job.several():
        params = jax.tree.map(device.fetch, params)  # which all processes take part in
    if not job.writes():
        return str(folder / f"checkpoint_{step}")
    if (folder / f"checkpoint_{step}").is_dir():
        return str(folder / f"checkpoint_{step}")
    with disk.replacing(folder / "spiece.model") as file:
        file.write(Path(opened.vocabulary.path).read_bytes())
    return save_t5x(params, folder, step)
