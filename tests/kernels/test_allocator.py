"""A training process on a CPU keeps the memory that it frees, and does not fragment it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from needs import needs_glibc

PROGRAM = """
import resource, sys, torch
from resim.kernels.allocator import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory() and keep_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(10_000_000) for _ in range(4)]  # 40 MB each
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(3):  # malloc has its memory by then, whether the system has pages of 2 MB or of 4 KB
    faults()
print(faults(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@needs_glibc
def test_freed_memory_is_not_allocated_again() -> None:
    results = {}
    for mode in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        results[mode] = [int(word) for word in done.stdout.split()]
    assert results["default"][0] > 10_000  # pages of 4 KB
    # not 0: a system that reclaims idle pages by itself (DAMON) takes some of the kept ones back
    assert results["keep"][0] < results["default"][0] / 100
    assert results["keep"][1] < 2 * results["default"][1]  # half of the machine's memory is reserved, but not used


IN_HEAP = """
def in_heap(tensor):
    lines = [line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    places = [[int(address, 16) for address in line.split()[0].split("-")] for line in lines]
    return any(start <= tensor.data_ptr() < end for start, end in places)
"""

PARTED = (
    IN_HEAP
    + """
import os, sys, torch
from resim.kernels.allocator import keep_memory, keep_memory_if_parted, part_memory
if sys.argv[1] == "part":
    assert part_memory() and part_memory()

if sys.argv[2] == "worker" and os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
if sys.argv[2] == "worker":
    keep_memory_if_parted()
torch.ones(4_000_000)  # freed: with default settings glibc allocates tensors of that size on the heap from now on
print(in_heap(torch.ones(2_000_000)), end=" ")
keep_memory()
print(in_heap(torch.ones(2_000_000)), flush=True)
"""
)


@pytest.mark.slow
@needs_glibc
def test_first_allocations_are_not_on_the_heap() -> None:
    def run(*modes: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", PARTED, *modes], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert run("part", "here") == ["False", "True"]
    assert run("default", "here") == ["True", "True"]
    assert run("part", "worker") == ["True", "True"]


STEP = (
    IN_HEAP
    + """
import torch
from resim.model.encoder import ModelConfig
from resim.runs.config import OptimConfig
from resim.distributed.processes import Processes
from resim.training.step import make_stepper
from resim.views.views import Views

model = ModelConfig(backbone="resnet18", queue_size=16, group_size=2)
stepper = make_stepper(model, OptimConfig(), Processes(0, 1, torch.device("cpu"), 1), precision="float32")
crops = torch.tensor([[0.0, 0.0, 64.0, 64.0]] * 2, dtype=torch.float64)
views = [Views(torch.randn(2, 3, 64, 64), crops) for _ in range(2)]
stepper(*views, None)
large = [p for p in stepper.model.query.parameters() if p.nbytes > 2**20]
momenta = [stepper.optimizer.state[p]["momentum_buffer"] for p in large]
print(len(large) > 5, any(map(in_heap, large + momenta)), in_heap(torch.ones(2_000_000)))
"""
)


@pytest.mark.slow
@needs_glibc
def test_parameters_of_a_training_are_not_on_the_heap_and_other_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]
