"""A training process on a CPU keeps the memory that it frees, and what stays out of its way."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from resim.training.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory() and keep_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(10_000_000) for _ in range(4)]  # 40 MB each
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
def test_freed_memory_is_not_asked_for_again() -> None:
    found = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        found[how] = [int(word) for word in done.stdout.split()]
    assert found["leave"][0] > 10_000  # pages of 4 KB
    assert found["keep"][0] < 100
    assert found["keep"][1] < found["leave"][1] + 64  # MB: what is set aside is not taken


PARTED = """
import sys, torch
from resim.training.memory import keep_memory, part_memory
if sys.argv[1] == "part":
    assert part_memory() and part_memory()

def heap():
    line = next(line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
    return (int(address, 16) for address in line.split()[0].split("-"))

def in_heap(tensor):
    start, end = heap()
    return start <= tensor.data_ptr() < end

torch.ones(4_000_000)  # freed: with its own settings glibc takes tensors of that size from the heap from now on
print(in_heap(torch.ones(2_000_000)), end=" ")
keep_memory()
print(in_heap(torch.ones(2_000_000)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
def test_what_is_asked_for_at_first_stays_out_of_the_heap() -> None:
    found = {}
    for how in ("part", "leave"):
        done = subprocess.run([sys.executable, "-c", PARTED, how], capture_output=True, text=True, check=True)
        found[how] = done.stdout.split()
    assert found == {"part": ["False", "True"], "leave": ["True", "True"]}
