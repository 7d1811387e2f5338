"""T5X's checkpoint folders: one Zarr array a parameter, through TensorStore.

The released ones, and those written here, have a msgpack index `checkpoint`. T5X's newer default is Orbax's layout: a
folder `state`, where arrays are called after their parameters.
"""

import math
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from prompt_tuning import disk
from prompt_tuning.base_source import Source, Tensor, numbers, of_a_t5
from prompt_tuning.errors import UserError
from prompt_tuning.stack import T5Config

VERSION = 3  # of the format; before it, bfloat16 was stored as uint16
SMALL, DENSEST = 1 << 24, 2000  # bytes that need no proof, and a bound on how much smaller compression makes zeros
BIAS = "relpos_bias/rel_embedding"


def newest(path: str) -> str:
    """`path` itself if it is a checkpoint, else the one of the highest step in it."""
    if not path.startswith("gs://"):
        if Path(path, "checkpoint").is_file() or Path(path, "state").is_dir():
            return path
        names = [entry.name for entry in Path(path).iterdir()]
    else:
        if _get(path, "checkpoint") is not None:
            return path
        keys = _wait(path, ts.KvStore.open(_kvstore(path, "")), "opened").list().result()
        names = [key.decode().partition("/")[0] for key in keys]
        if "state" in names:
            return path
    steps = [int(m[1]) for name in names if (m := re.fullmatch(r"checkpoint_(\d+)", name))]
    if not steps:
        raise UserError(
            f"There is no T5X checkpoint in {path}: expected a file `checkpoint`, a folder `state`, or folders"
            " checkpoint_N."
        )
    return f"{path}/checkpoint_{max(steps)}"


def open_checkpoint(path: str, expected: T5Config | None = None) -> Source:
    """Opens `checkpoint_N`; sizes come from the tensors' shapes, the gate's activation from `expected` if given."""
    state, target = state_and_target(path, read_index(path))
    tensors = {name: tensor for name, tensor in open_tensors(path, target).items() if "prompt" not in name}
    tensors = _joined(_unscanned(path, tensors))
    return Source(path, _config(path, tensors, expected), tensors, step=step_of(state))


def save_t5x(params: dict[str, Any], path: str | Path, step: int, dtype: Any = jnp.float32) -> str:
    """Writes `path/checkpoint_<step>`, whole or not at all, so that T5X restores it; returns the folder."""
    final = Path(path).expanduser().resolve() / f"checkpoint_{step}"
    with disk.writing("the model", final.parent), disk.new_folder(final) as folder:
        _write_all(params, folder, step, dtype)
    return str(final)


def _write_all(params: dict[str, Any], folder: Path, step: int, dtype: Any) -> None:
    index: dict[str, Any] = {}
    for name, array in traverse_util.flatten_dict(params, sep="/").items():
        stored = f"target.{name.replace('/', '.')}"
        spec = _write(folder / stored, np.asarray(array).astype(dtype))
        index[f"target/{name}"] = {**spec, "kvstore": {"driver": "file", "path": f"{stored}/"}}
    tree = traverse_util.unflatten_dict(index, sep="/")
    tree["state"] = {"step": np.int32(step)}  # T5X reads no empty node where optimizer states would stand
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize({"version": VERSION, "optimizer": tree}))


def _write(folder: Path, array: np.ndarray) -> dict[str, Any]:
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "metadata": {"shape": list(array.shape), "chunks": list(array.shape), "compressor": {"id": "gzip"}},
    }
    kvstore = {"driver": "file", "path": f"{folder}/"}
    # an all-zero tensor is written too, so that a missing chunk always means a broken copy
    opened = {**spec, "kvstore": kvstore, "store_data_equal_to_fill_value": True}
    ts.open(opened, create=True).result().write(array).result()
    return spec


def read_index(path: str) -> dict[str, Any]:
    """What a folder checkpoint_N says of its arrays. Raises UserError for what is no T5X checkpoint."""
    data = _get(path, "checkpoint")
    if data is None and (state := _orbax_state(path)):
        return state
    if data is None:
        raise UserError(
            f"There is neither a file {path}/checkpoint nor an array in {path}/state; expected a T5X folder"
            " checkpoint_N that was saved to its end."
        )
    if data.startswith(b"model_checkpoint_path"):
        raise UserError(
            f"{path} is a Mesh TensorFlow checkpoint. Use the T5X one of the same model, for example"
            " gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_base/checkpoint_1100000."
        )
    try:
        contents = serialization.msgpack_restore(data)
    except Exception as error:  # msgpack, numpy and flax each raise their own kinds for garbage
        raise UserError(f"{path}/checkpoint is not a readable T5X index ({error!r:.200}): copy it again.") from error
    if not isinstance(contents, dict) or (_has_state_below(contents) and "optimizer" not in contents):
        raise UserError(f"{path}/checkpoint is msgpack, but not a T5X index: it has no entry `optimizer`.")
    return contents


def _orbax_state(path: str) -> dict[str, Any]:
    """The step, and where the parameters stand in Orbax's layout; empty where nothing stands in it.

    Arrays are folders of `state`, or of the database that OCDBT keeps in its files.
    """
    inside = _kvstore(path, "state/")
    in_database = _get(path, "state/manifest.ocdbt") is not None
    if in_database:
        inside = {"driver": "ocdbt", "base": inside, "path": ""}
    kvstore = _wait(path, ts.KvStore.open(inside), "the folder state")
    state: dict[str, Any] = {}
    for key in _wait(path, kvstore.list(), "the folder state"):
        array = re.fullmatch(r"(target\..+|state\.step)/(\.zarray|zarr\.json)", key.decode(errors="replace"))
        if array:
            state[array[1].replace(".", "/")] = ts.Spec({
                "driver": "zarr" if array[2] == ".zarray" else "zarr3",
                "kvstore": {**inside, "path": f"{inside['path']}{array[1]}/"},
                "fill_missing_data_reads": in_database,  # it knows what it holds, and zeros need not be
            })  # fmt: skip
    if step := state.get("state/step"):
        store = _wait(path, ts.open(step, open=True), "the step")
        _refuse_more_than_held(path, "step", store)
        state["state/step"] = _wait(path, store.read(), "the step")
    return traverse_util.unflatten_dict(state, sep="/")


def state_and_target(path: str, contents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An index's state and, in it, the tree of parameters. Raises UserError where they are missing."""
    state = contents["optimizer"] if _has_state_below(contents) else contents
    target = state.get("target") if isinstance(state, dict) else None
    target = target.get("params", target) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise UserError(f"{path} has no entry `target`; it is not a T5X checkpoint of a model.")
    return state, target


def _has_state_below(contents: dict[str, Any]) -> bool:
    """Whether the index is of a version from 1, which has its state as an entry."""
    version = contents.get("version", 0)
    return isinstance(version, int | np.integer) and bool(version > 0)


def open_tensors(path: str, target: dict[str, Any]) -> dict[str, Tensor]:
    """Every array below `target`; stores are opened together, as each costs a round trip on gs://."""
    try:
        leaves = traverse_util.flatten_dict(target, is_leaf=lambda _, leaf: _is_spec(leaf), sep="/")
    except TypeError as error:
        raise UserError(f"{path}/checkpoint names its tensors with something else than text: copy it again.") from error
    opened = {name: _opening(path, name, leaf) for name, leaf in leaves.items() if _is_spec(leaf)}
    found = {}
    for name, leaf in leaves.items():
        if name in opened:
            store = _wait(path, opened[name], f"the tensor {name}")
            _refuse_more_than_held(path, name, store)
            found[name] = Tensor(tuple(store.shape), lambda at=..., store=store: _decoded(store[at].read().result()))
        elif isinstance(leaf, np.ndarray | np.generic):
            found[name] = Tensor(leaf.shape, lambda at=..., leaf=leaf: _decoded(np.asarray(leaf)[at]))
    return found


def _opening(path: str, name: str, spec: Any) -> Any:
    try:
        return ts.open(spec if isinstance(spec, ts.Spec) else _spec(path, name, spec), open=True)
    except ValueError as error:
        raise UserError(f"{path}/checkpoint has no folder's name for the tensor {name}: copy it again.") from error


def _refuse_more_than_held(path: str, name: str, store: ts.TensorStore) -> None:
    """Raises UserError where a local array, or a chunk of it, claims far more than its files can hold.

    TensorStore makes room first, and ends the process where there is none.
    """
    if path.startswith("gs://"):
        return
    kvstore: Any = store.kvstore
    folder = Path((kvstore.base or kvstore).path)  # a database's own, which holds all arrays
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    chunk = [n or 1 for n in store.chunk_layout.read_chunk.shape or ()]
    claimed = max(math.prod(store.shape), math.prod(chunk)) * store.dtype.numpy_dtype.itemsize
    if claimed > max(SMALL, held * DENSEST):
        raise UserError(
            f"The tensor {name} in {path} claims {claimed:,} bytes, and its files hold {held:,}: copy it again."
        )


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, ts.Spec) or (isinstance(leaf, dict) and "driver" in leaf)


def _spec(path: str, name: str, leaf: dict[str, Any]) -> dict[str, Any]:
    """A spec for here: of the stored one only the array's folder counts, as checkpoints move between machines."""
    while isinstance(leaf.get("base"), dict):
        leaf = leaf["base"]
    kvstore = leaf.get("kvstore")
    stored = kvstore.get("path") if isinstance(kvstore, dict) else None
    stored = str(stored or leaf.get("path") or f"target.{name.replace('/', '.')}").strip("/").rpartition("/")[2]
    return {"driver": "zarr", "kvstore": _kvstore(path, f"{stored}/"), "fill_missing_data_reads": False}


def _kvstore(path: str, inside: str) -> dict[str, Any]:
    if path.startswith("gs://"):
        bucket, _, key = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{key}/{inside}"}
    return {"driver": "file", "path": f"{path}/{inside}"}


def _get(path: str, name: str) -> bytes | None:
    """A whole small file, or None if it is not there."""
    store = _wait(path, ts.KvStore.open(_kvstore(path, "")), "the folder")
    result = _wait(path, store.read(name), name)
    return bytes(result.value) if result.state == "value" else None


def _wait(path: str, future: Any, what: str) -> Any:
    try:
        return future.result()
    except (ValueError, OSError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:300]
        hint = " On gs://, type gcloud auth application-default login." if path.startswith("gs://") else ""
        raise UserError(f"In {path}, {what} cannot be opened ({reason}): copy it again.{hint}") from error


def _decoded(array: np.ndarray) -> np.ndarray:
    return array.view(jnp.bfloat16) if array.dtype == np.uint16 else array


def step_of(state: dict[str, Any]) -> int | None:
    """The step an index's state was saved at, where it tells."""
    step = state.get("state", {}).get("step") if isinstance(state.get("state"), dict) else None
    known = isinstance(step, int | np.ndarray | np.generic) and np.size(step)
    return int(np.asarray(step).reshape(-1)[0]) if known else None


def _unscanned(path: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers stacked by `scan_layers` (`encoder/encoder/...`, layer axis 1) as one tensor a layer."""
    plain = {}
    tables = {name: tensor for name, tensor in tensors.items() if _is_stacked(name) and name.endswith(BIAS)}
    shared = all(_alike(path, name, tensor) for name, tensor in tables.items())
    for name, tensor in tensors.items():
        if not _is_stacked(name):
            plain[name] = tensor
            continue
        stack, _, rest = name.split("/", 2)
        if len(tensor.shape) < 2:
            raise UserError(f"{path}: {name} {tensor.shape} has no layer axis, though its layers are scanned.")
        shape = tensor.shape[:1] + tensor.shape[2:]
        layers = [Tensor(shape, lambda t=tensor, i=i: t.read(np.s_[:, i])) for i in range(tensor.shape[1])]
        if rest == BIAS and shared:
            plain[f"{stack}/{rest}"] = layers[0]
        else:
            plain |= {f"{stack}/layers_{i}/{rest}": layer for i, layer in enumerate(layers)}
    return plain


def _is_stacked(name: str) -> bool:
    return name.startswith(("encoder/encoder/", "decoder/decoder/"))


def _alike(path: str, name: str, tensor: Tensor) -> bool:
    """Whether all layers have one table, as in every T5 that was not trained with scanned layers."""
    tables = numbers(path, name, tensor)
    return bool((tables == tables[:, :1]).all())


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention kernels that keep heads and head width apart (T5X's scalable_t5), as the matrices they are."""
    joined = dict(tensors)
    for name, tensor in tensors.items():
        kernel = re.search(r"attention/(query|key|value|out)/kernel$", name)
        if kernel and len(tensor.shape) == 3:
            one, two, three = tensor.shape
            shape = (one * two, three) if kernel[1] == "out" else (one, two * three)
            joined[name] = Tensor(shape, lambda tensor=tensor, shape=shape: tensor.read().reshape(shape))
    return joined


def _config(path: str, tensors: dict[str, Tensor], expected: T5Config | None) -> T5Config:
    gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
    wi = f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"
    shared = f"encoder/{BIAS}" in tensors
    telling = {
        "token_embedder/embedding": 2, f"encoder/{BIAS}" if shared else f"encoder/layers_0/{BIAS}": 2,
        "encoder/layers_0/attention/query/kernel": 2, wi: 2,
    }  # fmt: skip
    absent = [name for name, rank in telling.items() if name not in tensors or len(tensors[name].shape) != rank]
    if absent:
        raise UserError(
            f"{path} is a T5X checkpoint, but not of a T5: {', '.join(absent)} missing or not of rank 2."
            f" It holds {', '.join(sorted(tensors)[:4]) or 'nothing'}, ..."
        )
    (vocab_size, emb_dim), (heads, _), (_, joined), (_, mlp_dim) = (tensors[name].shape for name in telling)
    activations: tuple[str, ...] = ("gelu", "linear") if gated else ("relu",)
    if expected is not None and len(expected.mlp_activations) == len(activations):
        activations = tuple(expected.mlp_activations)  # the function leaves no trace in the weights
    layers = lambda stack: (
        1 + max((int(m[1]) for name in tensors if (m := re.match(rf"{stack}/layers_(\d+)/", name))), default=-1)
    )
    config = T5Config(
        vocab_size, emb_dim, heads, joined // max(heads, 1), mlp_dim, layers("encoder"), layers("decoder"), activations,
        logits_via_embedding="decoder/logits_dense/kernel" not in tensors, shared_relative_bias=shared,
    )  # fmt: skip
    return of_a_t5(config, path)
