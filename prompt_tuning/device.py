"""Devices: the mesh, where parameters and batches live on it, and what JAX is told before it starts."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning import disk
from prompt_tuning.errors import UserError
from prompt_tuning.layout import Batch
from prompt_tuning.stack import T5Config
from prompt_tuning.t5 import parameter_axes

# T5X's logical axis names -> mesh axes
RULES = (
    ("batch", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("embed", None),
    ("kv", None),
    ("length", None),
    ("relpos_buckets", None),
)

LINE = 2560  # positions that a device of a CPU takes at a time, at most: more need more memory
SHARING = 2  # devices that share the cores of a CPU
CPUINFO = Path("/proc/cpuinfo")  # of Linux


def share_cpu() -> None:
    """Makes two devices of a CPU, before JAX starts: while one does what a single core can, the other has the rest.

    Left alone where somebody has decided how many devices there are.
    """
    decided = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    single = not jax.distributed.is_initialized() and (os.cpu_count() or 1) >= SHARING
    if single and not decided and _sharing() == -1:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", SHARING)


def _sharing() -> int:
    """How many devices a CPU was divided into; -1: it was not."""
    return jax.config.values["jax_num_cpu_devices"]


def make_mesh(model_parallel: int = 1, whole_model: bool = False) -> Mesh:
    """All devices as [data, model]; `model_parallel` of them share one copy of the frozen parameters.

    A `whole_model` is trained on one of the devices that share a CPU: each would hold and change a copy.
    """
    devices = jax.devices()
    if whole_model and _sharing() == SHARING and devices[0].platform == "cpu":
        devices = devices[:1]
    if model_parallel < 1 or len(devices) % model_parallel:
        raise UserError(f"MODEL_PARALLEL={model_parallel} does not divide the {len(devices)} devices there are.")
    return Mesh(np.asarray(devices).reshape(-1, model_parallel), ("data", "model"))


@contextlib.contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Inside, logical axis names mean axes of `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def summed_over_data(f: Callable[..., Any], batch: Any, *everywhere: Any) -> Any:
    """`f(batch, *everywhere)`, for each device of the data axis with its own parts of `batch`, added up."""
    return _over_data(f, lambda found: jax.lax.psum(found, "data"), PartitionSpec(), batch, everywhere)


def joined_over_data(f: Callable[..., Any], batch: Any, *everywhere: Any) -> Any:
    """`f(batch, *everywhere)`, for each device of the data axis with its own share of `batch`, one after another."""
    return _over_data(f, lambda found: found, PartitionSpec("data"), batch, everywhere)


def _over_data(f: Callable[..., Any], then: Callable, out: PartitionSpec, batch: Any, everywhere: tuple) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return f(batch, *everywhere)

    def one(batch: Any, *everywhere: Any) -> Any:
        with nn.logical_axis_rules([(name, None if axis == "data" else axis) for name, axis in RULES]):
            return then(f(batch, *everywhere))

    specs = PartitionSpec("data"), *[PartitionSpec()] * len(everywhere)
    spread = jax.shard_map(one, in_specs=specs, out_specs=out, axis_names={"data"}, check_vma=False)
    return spread(batch, *everywhere)


def frozen_shardings(config: T5Config, mesh: Mesh) -> Any:
    """Where each parameter of a T5 stands, as T5X shards it.

    Raises UserError where the devices of the model axis cannot share out what it divides.
    """
    rules, parts = dict(RULES), mesh.shape["model"]
    for name, count in {"heads": config.num_heads, "MLP columns": config.mlp_dim, "pieces": config.vocab_size}.items():
        if count % parts:
            raise UserError(f"MODEL_PARALLEL={parts} does not divide this model's {count:,} {name}: choose another.")
    place = lambda axes: NamedSharding(mesh, PartitionSpec(*(rules[axis] for axis in axes)))
    return jax.tree.map(place, parameter_axes(config), is_leaf=lambda x: isinstance(x, PartitionSpec))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The one step from host to device."""
    return _put(batch, batch_shardings(batch, mesh))


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
    """Where a batch stands: parts, or rows, over the data axis; what is told of examples with its parts."""
    shared_out, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return Batch(*(shared_out if batch.in_parts or array.ndim > 1 else everywhere for array in batch))


def put_everywhere(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree` on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return _put(tree, jax.tree.map(lambda _: everywhere, tree))


def put_frozen(host: np.ndarray, place: Any) -> jax.Array:
    """A parameter on its devices; those that share a CPU share it too."""
    if place is None:
        return jax.device_put(host)
    array = jax.make_array_from_callback(host.shape, place, lambda index: host[index])
    if not (jax.default_backend() == "cpu" and place.is_fully_replicated and place.is_fully_addressable):
        return array
    first, *others = (shard.data for shard in array.addressable_shards)
    view = np.asarray(first)  # no copy, and neither is what is put
    shared = [first, *(jax.device_put(view, next(iter(other.devices())), may_alias=True) for other in others)]
    return jax.make_array_from_single_device_arrays(host.shape, place, shared)


def _put(tree: Any, places: Any) -> Any:
    """A tree on its devices; in a job of several processes each puts its own part of what all of them hold."""
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def one(leaf: Any, place: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, place)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    return jax.tree.map(one, tree, places)


def fetch(array: Any) -> np.ndarray:
    """A host's copy, also of what is spread over several processes: then all of them ask for it at the same time."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def put_beside(opt_state: Any, params: Any, mesh: Mesh) -> Any:
    """An optimizer's state on the devices: what is shaped as its parameter beside it, the rest everywhere."""
    keys = lambda path: "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
    places: dict[str, Any] = {keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path: Any, leaf: Any) -> Any:
        found = places.get(keys(path))
        if found is None or found.shape != leaf.shape:
            return _put(leaf, everywhere)
        return _put(leaf, found.sharding)

    return jax.tree_util.tree_map_with_path(place, opt_state)


def frozen_dtype() -> Any:
    """What frozen weights are stored as: bfloat16 on TPU and GPU, float32 on CPU."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def multiplies_bfloat16() -> bool:
    """Whether this is a CPU that multiplies matrices of bfloat16 faster than of float32: with AMX, or AMD's AVX-512.

    Intel's AVX-512 alone is half as fast with them.
    """
    if jax.default_backend() != "cpu":
        return False
    try:
        told = CPUINFO.read_text()
    except OSError:  # not Linux
        return False
    return "amx_bf16" in told or ("AuthenticAMD" in told and "avx512_bf16" in told)


def types(dtype: Any) -> dict[str, Any]:
    """The types of a T5Config whose weights are stored, or multiplied, as `dtype`.

    A CPU computes in float32 and multiplies what is narrower where it has instructions for that, an accelerator
    computes all in `dtype`.
    """
    if jax.default_backend() == "cpu" and jnp.dtype(dtype) != jnp.float32:
        return {"dtype": jnp.float32, "factors": jnp.dtype(dtype if multiplies_bfloat16() else jnp.float32)}
    return {"dtype": jnp.dtype(dtype), "factors": None}


def compiler_options() -> dict[str, str] | None:
    """How a training step is compiled: on a CPU, in the order that needs the least memory (a third less, as fast)."""
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if jax.default_backend() == "cpu" else None


def line(mesh: Mesh) -> int | None:
    """How many positions each device takes at a time, as one row of which only what is filled is computed.

    None: rows are computed whole, as suits an accelerator and a model that is spread over devices.
    """
    return LINE if mesh.devices.flat[0].platform == "cpu" and mesh.shape["model"] == 1 else None


def describe(mesh: Mesh) -> str:
    """The devices of a mesh in words."""
    devices = mesh.devices.ravel()
    if devices[0].platform != "cpu":
        kind = devices[0].device_kind
        return f"{len(devices)} x {kind}" if len(devices) > 1 else kind
    return f"CPU, {os.cpu_count()} cores" + (f", as {len(devices)} devices" if len(devices) > 1 else "")


def peak_memory() -> int | None:
    """Most bytes in use so far: of the first accelerator, or of this process on a CPU."""
    if (peak := _memory_stats().get("peak_bytes_in_use")) is not None:
        return int(peak)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory() -> int | None:
    """Bytes that programs may take of the first accelerator; None on a CPU, where nobody says so."""
    return _memory_stats().get("bytes_limit")


def _memory_stats() -> dict[str, Any]:
    """What the first accelerator tells of its memory; nothing on a CPU."""
    return (jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None) or {}


def too_little_memory(error: BaseException) -> UserError | None:
    """What to say where XLA found too little memory on a device; None of any other error."""
    reason = str(error).partition("RESOURCE_EXHAUSTED: ")[2]
    known = isinstance(error, jax.errors.JaxRuntimeError) and reason  # TensorStore says so of a disk
    return beyond_memory(reason.splitlines()[0][:160]) if known else None


def beyond_memory(reason: str) -> UserError:
    """A device's memory is too small, and what takes less of it."""
    more = " JAX takes three quarters of a GPU's: with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 set there is more."
    return UserError(
        f"The device's memory is too small: {reason}. Less is needed with fewer rows at a time (--gin.ROWS_AT_ONCE=16),"
        " if backward computes layers again (--gin.REMAT=True), with a smaller BATCH_SIZE, or with the model shared out"
        f" over devices (MODEL_PARALLEL).{more if jax.default_backend() == 'gpu' else ''}"
    )


def keep_compiled_programs(folder: str | None) -> None:
    """Compiled programs are kept in `folder` (default: the user's cache), so that the next start is quick."""
    where = Path(folder).expanduser() if folder else disk.cache() / "jax"
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the small ones before a step: 1 s in all
