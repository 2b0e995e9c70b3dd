"""How a process's memory is asked of the system, where the C library lets that be chosen."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_LARGE = 2**18  # bytes
_HUGE_PAGE = 2**21  # bytes


@functools.cache
def part_memory() -> bool:
    """Keep large tensors out of this process's heap until `keep_memory`.

    At its first step a training asks for much that stays: the network's parameters and their momentum, and what
    libraries remember of every shape of a convolution. In the heap it would lie among tensors that are soon gone, and
    cut what these leave into pieces that are too small for others.

    Returns:
        Whether the settings were taken, as `keep_memory`.
    """
    libc = _c_library()
    return libc is not None and bool(libc.mallopt(_MMAP_THRESHOLD, _LARGE))


@functools.cache
def keep_memory() -> bool:
    """Let this process keep what it frees, and have its heap in pages of 2 MB, from now on.

    A training step on a CPU asks for the same large tensors again and again; with glibc's own settings they go back to
    the system each time, and their next pages are cleared and mapped one by one: a tenth of a step. It concerns what
    the main thread asks for.

    Returns:
        Whether the settings were taken: on Linux with glibc.
    """
    libc = _c_library()
    if libc is None:
        return False
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None
    libc.sbrk.argtypes, libc.sbrk.restype = (ctypes.c_ssize_t,), ctypes.c_void_p
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1)):
        return False
    if _counted_when_asked_for():
        return True
    # the heap grows by this much and is given back to malloc at once; pages are taken as they are first written to
    block = libc.malloc(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    if block:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        end = libc.sbrk(0)
        if end > start:  # else it came from elsewhere than the heap: another thread's arena
            libc.madvise(start, end - start, mmap.MADV_HUGEPAGE)
        libc.free(block)
    return True


def keep_memory_if_parted() -> None:
    """For a process forked from one that has called `part_memory`: what it asks for stays for good, or is soon gone."""
    if part_memory.cache_info().currsize:
        keep_memory()


def _c_library() -> ctypes.CDLL | None:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def _counted_when_asked_for() -> bool:
    """Whether the system counts memory that nobody has written to yet (vm.overcommit_memory = 2)."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
