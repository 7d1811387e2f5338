"""A run's memory: what changed, the best so far, and whose it is; kilobytes to a few megabytes at any size of base."""

import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from prompt_tuning import __version__, disk, job
from prompt_tuning.errors import UserError
from prompt_tuning.step import TrainState

KEEP = 2  # the newest, and the one before it in case the newest is damaged
FORMAT = 1  # 0, without a number, had no digests and no TrainState.failures


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


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a run goes on from."""

    state: TrainState
    best: Best
    evaluated: bool  # else the step's evaluation was cut short, and is to be made up for
    notes: tuple[str, ...] = ()  # damage that was found on the way


class Damaged(Exception):
    """A checkpoint that cannot be read, or reads as something else than was written."""


class Checkpointer:
    """Saves and restores under `MODEL_DIR/checkpoints/<step>` with Orbax: written aside, then renamed."""

    def __init__(self, model_dir: Path) -> None:
        self.folder = Path(model_dir).resolve() / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def _ocp(self) -> Any:
        import orbax.checkpoint as ocp  # a second of imports, which the first step of a new run does not wait for

        logging.getLogger("absl").setLevel(logging.ERROR)
        return ocp

    @functools.cached_property
    def _manager(self) -> Any:
        options = self._ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=False, enable_async_checkpointing=False)
        return self._ocp.CheckpointManager(self.folder, options=options, item_names=("state", "identity"))

    @property
    def latest(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._manager.latest_step() if any(self.folder.iterdir()) else None

    def save(self, state: TrainState, best: Best, identity: Identity, evaluated: bool = True) -> None:
        """Writes the checkpoint of `state.step`; a save that fails leaves the older ones as they were."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        tree = {"state": state, "best": best}
        told = dataclasses.asdict(identity) | {"format": FORMAT, "version": __version__, "evaluated": evaluated}
        told = _plain(told | {"digest": _digest(tree)})
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(tree),
            identity=self._ocp.args.JsonSave(told | {"seal": _seal(told)}),
        )
        with disk.writing(f"the checkpoint of step {step}", self.folder):
            self._manager.save(step, args=items)
            self._manager.wait_until_finished()

    def restore(self, state: TrainState, best: Best, identity: Identity) -> Restored:
        """The newest whole checkpoint, in the shapes and places of `state` and `best`; damaged ones are set aside.

        Raises UserError if it was written over another base, under other settings or by a newer version, naming each,
        and if none is whole.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._read(step, state, best, identity)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            told = [
                f"checkpoint {self._set_aside(n)} is damaged ({why}): going on from step {step}"
                for n, why in damaged.items()
            ]
            job.together("damaged checkpoints are set aside")  # else a process may take one for saved already
            self._manager.reload()
            return dataclasses.replace(found, notes=tuple(told))
        listed = "; ".join(f"{step}: {why}" for step, why in damaged.items())
        raise UserError(
            f"No checkpoint in {self.folder} is whole ({listed}). Copy the folder again, or delete it to start anew:"
            " the prompts that were saved beside it stay."
        )

    def _read(self, step: int, state: TrainState, best: Best, identity: Identity) -> Restored:
        """One checkpoint. Raises Damaged, and UserError if it is another run's."""
        told = self._restored(step, identity=self._ocp.args.JsonRestore())["identity"]
        if told.keys() & {"format", "seal"} and told.pop("seal", None) != _seal(told):
            raise Damaged("its description is not what was written")
        if told.get("format", 0) > FORMAT:
            raise UserError(
                f"The checkpoint {self.folder / str(step)} was written by a newer version of prompt-tuning,"
                f" {told.get('version')} (its format is {told['format']}; this is {__version__}, which reads up to"
                f" {FORMAT}). Install that version to go on, or give another MODEL_DIR."
            )
        _refuse_other(self.folder / str(step), told, _plain(dataclasses.asdict(identity)))
        target = {"state": state, "best": best}
        if "format" not in told:  # from before failures were counted
            parts = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "failures"}
            target = {"state": parts, "best": best}
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, target)
        tree = self._restored(step, state=self._ocp.args.StandardRestore(shapes))["state"]
        if told.get("digest") not in (None, _digest(tree)):
            raise Damaged("its numbers are not those that were written")
        if "format" not in told:
            tree["state"] = TrainState(**tree["state"], failures=jnp.zeros_like(state.failures))
        return Restored(tree["state"], jax.tree.map(np.asarray, tree["best"]), told.get("evaluated", True))

    def _restored(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**items))
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # Orbax, TensorStore, zstd and json each have their own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Damaged(f"{reason:.200}") from error

    def _set_aside(self, step: int) -> Path:
        """Takes a damaged checkpoint out of the way of the one that will be written instead."""
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            aside, n = folder.with_name(f"damaged-{step}"), 1
            while aside.exists():
                aside, n = folder.with_name(f"damaged-{step}-{n}"), n + 1
            folder.rename(aside)
        return folder

    def close(self) -> None:
        if "_manager" in vars(self):
            self._manager.close()


def _plain(told: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(told))


def _seal(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _digest(tree: Any) -> str | None:
    """SHA-256 over the places and bytes of a tree's leaves; None if this process cannot see all of them."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return total.hexdigest()


def changes(old: dict[str, Any], new: dict[str, Any], of: str = "") -> list[str]:
    """Which settings differ, in words, of those that both versions write down; `of` is where they stand."""
    found: list[str] = []
    for key in sorted(key for key in old.keys() & new.keys() if old[key] != new[key]):
        was, now = old[key], new[key]
        inside = changes(was, now, f"{of}{key}: ") if isinstance(was, dict) and isinstance(now, dict) else []
        if key.endswith("examples"):  # known by their digest
            inside = [f"the {key} are others"]
        if key == "slots" and len(was) == len(now):
            inside = [words for a, b in zip(was, now, strict=True) for words in changes(a, b, f"{a.get('name')}: ")]
        found += inside or [f"{of}{key} was {was} and is {now}"]
    return found


def _refuse_other(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    if saved["base_digest"] != wanted["base_digest"]:
        raise UserError(
            f"The checkpoint {folder} was trained over another base ({saved['base_digest'][:12]}, this one is"
            f" {wanted['base_digest'][:12]}). Give its own INITIAL_CHECKPOINT_PATH, or another MODEL_DIR."
        )
    old, new = saved["settings"], wanted["settings"]
    if changed := changes(old, new):
        raise UserError(
            f"The checkpoint {folder} was written under other settings: {'; '.join(changed)}."
            " Set them back to go on with that run, or give another MODEL_DIR to start a new one."
        )
