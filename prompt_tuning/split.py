"""Trainable and frozen parameters: merge the two trees, count one, tell whether it changed."""

import hashlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Params = dict[str, Any]


def merge(trainable: Params, frozen: Params) -> Params:
    """The whole tree again."""
    flat = traverse_util.flatten_dict(frozen, sep="/") | traverse_util.flatten_dict(trainable, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def count(params: Params) -> int:
    """How many numbers a tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def size_in_bytes(params: Params) -> int:
    """Bytes of a tree's leaves."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def digest(params: Params) -> str:
    """SHA-256 over names, shapes, types and bytes; equal only for trees that are equal to the bit."""
    total = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(leaf)
        total.update(f"{path} {array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
