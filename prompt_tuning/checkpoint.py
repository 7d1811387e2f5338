"""A run's memory: what changed, the best so far, and whose it is; kilobytes to a few megabytes at any size of base."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct

from prompt_tuning.errors import UserError
from prompt_tuning.step import TrainState

KEEP = 2  # the newest, and the one before it in case the newest is damaged


@struct.dataclass
class Best:
    """Each slot at its best evaluation: its prompt, or (K = 1) the whole model."""

    params: Any  # {"prompt": {"bank": float32[K P D]}} or a model's tree
    score: np.ndarray  # float64[K], -inf before the first evaluation
    step: np.ndarray  # int64[K]

    @classmethod
    def none(cls, params: Any, slots: int) -> "Best":
        return cls(jax.tree.map(np.array, params), np.full(slots, -np.inf), np.zeros(slots, np.int64))

    def updated(self, params: Any, scores: np.ndarray, step: int) -> "Best":
        """With the slots whose score rose at `step`."""
        better = scores > self.score
        take = lambda new, old: np.where(better.reshape(-1, *[1] * (old.ndim - 1)), np.asarray(new), old)
        return Best(
            jax.tree.map(take, params, self.params) if better.any() else self.params,
            np.where(better, scores, self.score),
            np.where(better, step, self.step),
        )


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; resuming under another one would be another run."""

    base_digest: str
    settings: dict[str, Any]  # everything that decides the prompts, slots included


class Checkpointer:
    """Saves and restores under `MODEL_DIR/checkpoints/<step>` with Orbax: written aside, then renamed."""

    def __init__(self, model_dir: Path) -> None:
        import orbax.checkpoint as ocp  # a second of imports that other commands need not pay

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self.folder = Path(model_dir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=False, enable_async_checkpointing=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "identity"))

    @property
    def latest(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, best: Best, identity: Identity) -> None:
        """Writes the checkpoint of `state.step`; a save that fails leaves the older ones as they were."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave({"state": state, "best": best}),
            identity=self._ocp.args.JsonSave(dataclasses.asdict(identity)),
        )
        try:
            self._manager.save(step, args=items)
            self._manager.wait_until_finished()
        except Exception as error:  # TensorStore's own types
            if "No space left" not in str(error) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"The disk of {self.folder} is full: the checkpoint of step {step} could not be written, those before"
                " it are whole. Free some space and type the same command to go on."
            ) from error

    def restore(self, state: TrainState, best: Best, identity: Identity) -> tuple[TrainState, Best]:
        """The newest checkpoint, in the shapes and places of `state` and `best`.

        Raises UserError if it was written over another base or under other settings, naming each.
        """
        step = self.latest
        folder = self.folder / str(step)
        saved = self._manager.restore(step, args=self._ocp.args.Composite(identity=self._ocp.args.JsonRestore()))
        _refuse_other(folder, saved["identity"], json.loads(json.dumps(dataclasses.asdict(identity))))
        target = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, {"state": state, "best": best})
        items = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(target))
        restored = self._manager.restore(step, args=items)["state"]
        return restored["state"], jax.tree.map(np.asarray, restored["best"])

    def restore_best(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(step, {"bank", "score", "step"}, identity) of the newest checkpoint, for evaluation."""
        step = self.latest
        items = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(), identity=self._ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return int(step or 0), jax.tree.map(np.asarray, restored["state"]["best"]), restored["identity"]

    def close(self) -> None:
        self._manager.close()


def _refuse_other(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    if saved["base_digest"] != wanted["base_digest"]:
        raise UserError(
            f"The checkpoint {folder} was trained over another base ({saved['base_digest'][:12]}, this one is"
            f" {wanted['base_digest'][:12]}). Give its own INITIAL_CHECKPOINT_PATH, or another MODEL_DIR."
        )
    old, new = saved["settings"], wanted["settings"]
    changed = [
        f"{key} was {old.get(key)} and is {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"The checkpoint {folder} was written under other settings: {'; '.join(changed)}."
            " Set them back to go on with that run, or give another MODEL_DIR to start a new one."
        )
