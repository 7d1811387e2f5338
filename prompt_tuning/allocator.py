"""What the C library does with a CPU program's memory."""

import contextlib
import ctypes
import os
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def start_in_huge_pages() -> None:
    """Starts this process again, once, with a glibc that asks the kernel for huge pages.

    XLA allocates a program's temporary buffers at each call, and the kernel clears every page of them anew: a tenth of
    a training step in pages of 4 KiB. Kept in a heap they would be lost to it one by one: as they are aligned, what is
    free of one is a little too small for the next. glibc reads this wish only as a process starts.
    """
    asked = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or not sys.executable or "glibc.malloc.hugetlb" in asked:
        return
    os.environ["GLIBC_TUNABLES"] = f"{asked}:{HUGE_PAGES}" if asked else HUGE_PAGES
    with contextlib.suppress(OSError):
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - itself


def give_back_freed_memory() -> None:
    """The kernel has what is free now, once: between programs, whose buffers do not fit into one another's."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # musl has none
        libc.malloc_trim(0)
