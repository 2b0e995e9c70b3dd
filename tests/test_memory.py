"""A training process on a CPU keeps the memory that it frees."""

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
