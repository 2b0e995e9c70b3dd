"""A training process on a CPU keeps the memory that it frees, and does not fragment it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from needs import needs_glibc

EACH_IN_A_FORK = """
import os, sys, torch
for mode in sys.argv[1:]:
    if not os.fork():
        break  # the child goes on with its mode, in memory of its own as it is after the import of torch
    if os.wait()[1]:
        sys.exit(f"{mode} failed")
else:
    sys.exit()
"""


def run(program: str, *modes: str) -> dict[str, list[str]]:
    """The words that a program prints in each mode."""
    command = [sys.executable, "-c", EACH_IN_A_FORK + program, *modes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {mode: line.split() for mode, line in zip(modes, done.stdout.splitlines(), strict=True)}


PROGRAM = """
import resource
from resim.kernels.allocator import keep_memory
if mode == "keep":
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
    results = {mode: [int(word) for word in words] for mode, words in run(PROGRAM, "keep", "default").items()}
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
from resim.kernels.allocator import keep_memory, keep_memory_if_parted, part_memory
if mode.startswith("part"):
    assert part_memory() and part_memory()

if mode.endswith("worker") and os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
if mode.endswith("worker"):
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
    assert run(PARTED, "part", "default", "part in a worker") == {
        "part": ["False", "True"], "default": ["True", "True"], "part in a worker": ["True", "True"],
    }  # fmt: skip


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
