"""Settings of glibc's memory allocator for training on a CPU: freed memory is kept, in huge pages."""

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
    """Allocate large tensors outside of this process's heap until `keep_memory` is called.

    Up to the end of its first step a training allocates much that it never frees: the parameters of the network, their
    momentum, and what libraries cache for each shape of a convolution. On the heap, these blocks would lie between
    tensors that are freed soon and fragment the free memory.

    Returns:
        Whether glibc accepted the setting.
    """
    libc = _c_library()
    return libc is not None and bool(libc.mallopt(_MMAP_THRESHOLD, _LARGE))


@functools.cache
def keep_memory() -> bool:
    """From now on, keep freed memory in this process, and use pages of 2 MB for its heap.

    A training step on a CPU allocates the same large tensors again and again. With its default settings glibc returns
    them to the system each time, and the system clears and maps the next pages one by one, which takes a tenth of a
    step. The settings apply to allocations of the main thread.

    Returns:
        Whether glibc accepted the settings; False on other systems.
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
    if _is_memory_committed_early():
        return True
    # grow the heap by one block and free it at once; the system provides its pages when they are first written
    block = libc.malloc(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    if block:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        end = libc.sbrk(0)
        if end > start:  # else the block is not on the heap but in another thread's arena
            libc.madvise(start, end - start, mmap.MADV_HUGEPAGE)
        libc.free(block)
    return True


def keep_memory_if_parted() -> None:
    """Call `keep_memory` in a process that was forked from one that has called `part_memory`."""
    if part_memory.cache_info().currsize:
        keep_memory()


def _c_library() -> ctypes.CDLL | None:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def _is_memory_committed_early() -> bool:
    """Whether the system counts memory as used before it is written to (vm.overcommit_memory = 2)."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
