"""What the C library does with memory that a CPU program gives back."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Large buffers come from a heap that never shrinks; False where the C library is not glibc.

    XLA allocates a program's temporary buffers at each call. glibc maps each of them anew, and the kernel clears every
    page again: a quarter to a third of a training step on a CPU. To be called before threads start.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
