"""The processes of a run, started by torchrun: their devices, and what they agree on and average."""

from __future__ import annotations

import inspect
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resim.distributed.meeting import join_group
from resim.distributed.peers import Address, OpenPort, describe_lost, is_of_a_collective
from resim.distributed.rows import mean_over_processes
from resim.errors import LostProcessError, StoppedError, UserError
from resim.exit_codes import CRASHED, STOPPED, USER_ERROR
from resim.signals import end_at_once

_STORE_SECONDS = 5.0  # for an answer of the store, whose host may be the one that is lost


@dataclass(frozen=True)
class Processes:
    """The place of this process among the processes of a run."""

    rank: int
    count: int
    device: torch.device
    cores: int
    """Number of processor cores for this process."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def agree(self, *flags: bool) -> list[bool]:
        """The logical or of each flag over all processes, which must all call this."""
        if self.count == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in tensor.tolist()]

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace floating-point tensors in place by their mean over the processes, added in float64."""
        if self.count == 1:
            return
        for tensor, mean in zip(tensors, mean_over_processes(tensors, dtype=torch.float64), strict=True):
            tensor.copy_(mean)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def in_parallel(module: nn.Module, processes: Processes) -> nn.Module:
    """The module in DistributedDataParallel, without synchronised buffers; with one process the module itself."""
    if processes.count == 1:
        return module
    # PyTorch 2.15 deprecates the older name
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    settings: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, **settings)


def averaging(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Context of one of a step's backward passes: gradients are averaged over the processes in the last one only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


@contextmanager
def start_processes(
    device: Literal["auto", "cpu", "cuda"] = "auto", *, timeout_minutes: float = 10.0
) -> Iterator[Processes]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or run as the only process.

    A process group that the caller has started is used and not destroyed. If a UserError is raised inside, it ends this
    process. If several processes raise one, the first raises it, and the others exit with code 2 without a message.
    Likewise the first one to miss another process raises a LostProcessError, and the others exit with code 1. If all
    raise a StoppedError, rank 0 raises it, and the others exit with code 75.

    Args:
        device: where to compute.
        timeout_minutes: how long the processes wait for each other: at the start, and in every collective operation.

    Raises:
        UserError: `device` is "cuda" and no GPU is available, or there are more processes than GPUs.
        LostProcessError: another process has ended, or cannot be reached.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is available: use --device cpu, or check the output of nvidia-smi")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{local_count} processes but {torch.cuda.device_count()} GPUs: start torchrun with one process per GPU"
        )
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, available // local_count)
    started_here = False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # PyTorch's warnings about its own collectives, of which a user can change nothing
        warnings.filterwarnings("ignore", module=r"torch\.distributed\.|torch\.nn\.parallel\.")
        with end_at_once():  # the meeting waits in PyTorch's C++
            join_group("nccl" if kind == "cuda" else "gloo", timedelta(minutes=timeout_minutes))
        started_here = True
        if kind == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 if it is unset
            torch.set_num_threads(cores)
    has_group = dist.is_initialized()
    processes = Processes(
        rank=dist.get_rank() if has_group else 0,
        count=dist.get_world_size() if has_group else 1,
        device=place,
        cores=cores,
    )
    port, addresses = None, []
    try:
        if started_here:
            is_alone = local_count == processes.count
            port = OpenPort(is_alone=is_alone, meeting=os.environ.get("MASTER_ADDR", "127.0.0.1"))
            addresses = processes.gather_objects(port.address)
        yield processes
    except UserError:
        if started_here and _count_in_store("resim/user_errors") > 1:
            raise SystemExit(USER_ERROR) from None
        raise
    except StoppedError:
        if started_here and not processes.first:
            raise SystemExit(STOPPED) from None
        raise
    except RuntimeError as error:
        if not started_here or not is_of_a_collective(error):
            raise
        raise _lost(error, addresses, processes.rank, timeout_minutes) from error
    finally:
        if port is not None:
            port.close()
        if started_here:
            dist.destroy_process_group()


def _lost(
    error: RuntimeError, addresses: list[Address], rank: int, timeout_minutes: float
) -> LostProcessError | SystemExit:
    """What a process raises whose collective operation has failed."""
    lost = describe_lost(addresses, rank)
    if _count_in_store("resim/user_errors", 0) > 0:  # the process that has ended reports why
        return SystemExit(USER_ERROR)
    if _count_in_store("resim/lost") > 1:  # another process reports it
        return SystemExit(CRASHED)
    if not lost:
        if not re.search(r"timed out|timeout", str(error), re.I):
            lost = f"a collective operation failed though all processes run ({str(error).splitlines()[0][:200]})"
        else:
            lost = (
                f"no answer from another process within --timeout-minutes {timeout_minutes:g}, though all of them run: "
                "a link is down, or the first one needs longer than that for a probe or an evaluation"
            )
    return LostProcessError(lost)


def _count_in_store(key: str, more: int = 1) -> int:
    """Add to a counter that all processes share; 0 where the store does not answer."""
    counts: list[int] = []

    def add() -> None:
        try:
            counts.append(dist.distributed_c10d._get_default_store().add(key, more))
        except RuntimeError:  # the process that holds it has ended
            counts.append(0)

    asking = threading.Thread(target=add, daemon=True)
    asking.start()
    asking.join(_STORE_SECONDS)
    return counts[0] if counts else 0
