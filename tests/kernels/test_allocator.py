"""A training process on a CPU keeps the memory that it frees, and what stays out of its way."""

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

for _ in range(3):  # malloc has taken its places by then, whether the system has pages of 2 MB to give or of 4 KB
    faults()
print(faults(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@needs_glibc
def test_freed_memory_is_not_asked_for_again() -> None:
    found = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        found[how] = [int(word) for word in done.stdout.split()]
    assert found["leave"][0] > 10_000  # pages of 4 KB
    assert found["keep"][0] < 10
    assert found["keep"][1] < 2 * found["leave"][1]  # half of the machine's memory is set aside, and not taken


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
torch.ones(4_000_000)  # freed: with its own settings glibc takes tensors of that size from the heap from now on
print(in_heap(torch.ones(2_000_000)), end=" ")
keep_memory()
print(in_heap(torch.ones(2_000_000)), flush=True)
"""
)


@pytest.mark.slow
@needs_glibc
def test_what_is_asked_for_at_first_stays_out_of_the_heap() -> None:
    def run(*how: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", PARTED, *how], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert run("part", "here") == ["False", "True"]
    assert run("leave", "here") == ["True", "True"]
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
def test_a_training_asks_for_what_stays_outside_the_heap_and_keeps_the_rest() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]
