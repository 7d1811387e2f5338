"""Layer scan: the layers of a stack as one that is gone through again and again, so that depth costs no compile time.

The frozen layers are held as one array a weight, `[N ...]` for N layers, as T5X's `scan_layers` has them.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from prompt_tuning.dropout import Keep, of_layer
from prompt_tuning.split import Params

STACKED = "layers"
_ONE = re.compile(r"layers_(\d+)")


def stacked(params: Params) -> Params:
    """`layers_0` to `layers_<N-1>` of each stack as `layers`, on the devices where they are; one weight at a time.

    The layers' arrays are deleted, so that a model takes its place once, and a weight's more.
    """
    found: dict[str, dict[int, Any]] = {}
    others = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if match := _ONE.search(path):
            found.setdefault(_ONE.sub(STACKED, path), {})[int(match[1])] = leaf
        else:
            others[path] = leaf
    whole = {path: _stack([layers[i] for i in range(len(layers))]) for path, layers in found.items()}
    return traverse_util.unflatten_dict(others | whole, sep="/")


def _stack(leaves: list[jax.Array]) -> jax.Array:
    """`[N ...]` of N arrays, which are given up; none of its devices holds more of it than before."""
    place = leaves[0].sharding
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(None, *place.spec))
        stack = jax.jit(lambda *each: jnp.stack(each), out_shardings=place)(*leaves)
    else:
        stack = jnp.stack(leaves)
    jax.block_until_ready(stack)
    for leaf in leaves:
        leaf.delete()
    return stack


def of_layers(keep: Keep, count: int) -> Keep:
    """A stack's dropout with the layers in front, `[N ...]`, under the names that a layer knows."""
    each = [of_layer(keep, i) for i in range(count)]
    return {name: jnp.stack([one[name] for one in each]) for name in each[0]}


def through(layer: Callable[..., tuple[Any, Any]], x: Any, *each: Any, remat: bool = False) -> tuple[Any, Any]:
    """`x` after every layer, and what the layers gave beside it, stacked.

    `layer(x, *one)` is handed its part of `each`: trees of arrays with the layers in front.
    """
    one = jax.checkpoint(layer) if remat else layer
    return jax.lax.scan(lambda carry, parts: one(carry, *parts), x, each)
