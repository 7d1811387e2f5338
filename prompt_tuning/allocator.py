"""What the C library does with memory that a CPU program gives back."""

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Large buffers come from a heap that never shrinks; False where the C library is not glibc.

    XLA allocates a program's temporary buffers at each call. glibc maps each of them anew, and the kernel clears every
    page again: a quarter to a third of a training step on a CPU. To be called before threads start.
    """
    libc = _glibc()
    return bool(libc) and all(
        [libc.mallopt(_MMAP_MAX, 0), libc.mallopt(_TRIM_THRESHOLD, -1), libc.mallopt(_ARENA_MAX, 1)]
    )


def give_back_freed_memory() -> None:
    """The kernel has what is free now, once: between programs, whose buffers do not fit into one another's."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None  # musl has neither
