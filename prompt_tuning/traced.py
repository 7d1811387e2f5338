"""A training step as it was traced, kept on disk: the same step need not be traced again by a later start.

On a CPU and in a single process, where it was measured; a step of other code than this project's and the installed
packages' is traced each time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export

from prompt_tuning import made_from
from prompt_tuning.disk import replacing

Step = Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]]

MOST = 32  # steps that are kept; those written first go first


def step(pure: Step, told: Mapping[str, Any], state: Any, frozen: Any, batch: Any) -> Step:
    """`pure(state, frozen, batch)`, the next state and metrics, or what an earlier start has traced of it.

    `told` is everything that `pure` computes with beside its arguments, and the code; a step of something that only an
    address tells from others (a function) is not kept.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    alone = jax.default_backend() == "cpu" and jax.process_count() == 1
    plain = json.dumps(told, sort_keys=True, default=repr)
    if not (folder and alone and made_from.nothing_else_loaded()) or " at 0x" in plain:
        return pure
    path = Path(folder) / "traced" / _key(plain, (state, frozen, batch))
    leaves, tree = jax.tree.flatten((state, frozen, batch))
    if (found := _read(path)) is None:
        names: list[str] = []

        def flat(*leaves: Any) -> list[Any]:
            after, metrics = pure(*jax.tree.unflatten(tree, leaves))
            names[:] = metrics
            return jax.tree.leaves((after, metrics))

        program = export.export(jax.jit(flat))(*leaves).serialize()
        _write(path, program, sorted(names))
        found = export.deserialize(program), sorted(names)  # as it will be found: else it would be compiled again
    exported, metrics = found
    made = jax.tree.structure((state, dict.fromkeys(metrics, 0)))

    def train_step(state: Any, frozen: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        return jax.tree.unflatten(made, exported.call(*jax.tree.leaves((state, frozen, batch))))

    return train_step


def _key(plain: str, arguments: Any) -> str:
    settings = {name: repr(value) for name, value in jax.config.values.items() if "cache" not in name}
    leaves = [f"{jax.typeof(leaf)} {leaf.sharding}" for leaf in jax.tree.leaves(arguments)]
    flags = {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return made_from.digest([plain, settings, flags, leaves, str(jax.tree.structure(arguments)), made_from.code()])


def _read(path: Path) -> tuple[export.Exported, list[str]] | None:
    """What is kept, and the names of the metrics; None if there is none or it is not as it was written."""
    try:
        head, _, program = path.read_bytes().partition(b"\n")
        about = json.loads(head)
        if about["sha256"] != _seal(program, about["metrics"]):
            return None
        return export.deserialize(bytearray(program)), about["metrics"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _write(path: Path, program: bytes | bytearray, metrics: list[str]) -> None:
    """Keeps a step where that is possible."""
    head = json.dumps({"metrics": metrics, "sha256": _seal(program, metrics)}).encode()
    with contextlib.suppress(OSError):
        with replacing(path) as file:
            file.write(head + b"\n" + program)
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)


def _seal(program: bytes | bytearray, metrics: list[str]) -> str:
    return hashlib.sha256(json.dumps(metrics).encode() + program).hexdigest()
