"""One process or many: started by plain torchrun, each with its device; what they must agree on, they agree on here."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resim.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among all of the run's."""

    rank: int
    count: int
    device: torch.device
    cores: int
    """Processor cores for this process."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag, true on all processes if it is true on any. All processes must call it."""
        if self.count == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in tensor.tolist()]

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace floating tensors, in place, by their mean over the processes."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.double().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value, on every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def in_parallel(module: nn.Module, processes: Processes) -> nn.Module:
    """The module with its gradients averaged over the processes; itself where there is one. Buffers stay each one's."""
    if processes.count == 1:
        return module
    # the older name warns from PyTorch 2.15 on
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    settings: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, **settings)


def averaging(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around a step's passes: gradients are averaged over the processes once, in the last backward pass."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


@contextmanager
def start_processes(device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or be the only one.

    A process group that the caller has already started is used and left alone. A UserError inside ends the process
    that meets it; where several meet one, the first to do so tells it and the others end in silence (SystemExit 2).

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is available: use --device cpu, or check the output of nvidia-smi")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(f"{local_count} processes but {torch.cuda.device_count()} GPUs: start torchrun with one a GPU")
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, available // local_count)
    ours = False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        ours = True
        if kind == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 where nothing is set
            torch.set_num_threads(cores)
    together = dist.is_initialized()
    try:
        yield Processes(
            rank=dist.get_rank() if together else 0,
            count=dist.get_world_size() if together else 1,
            device=place,
            cores=cores,
        )
    except UserError:
        if ours and dist.distributed_c10d._get_default_store().add("resim/told", 1) > 1:
            raise SystemExit(2) from None
        raise
    finally:
        if ours:
            dist.destroy_process_group()


@contextmanager
def catch_termination() -> Iterator[list[int]]:
    """While inside, SIGTERM and SIGINT only add themselves to the list that is given; a second SIGINT interrupts."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: leave signals as they are
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
