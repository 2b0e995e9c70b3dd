"""How the processes of a run meet, also where torchrun has started them again.

torchrun keeps one store for all starts, and PyTorch's processes would read in it the addresses of those that have ended
("Connection refused"). So the first process of every start makes a name that no other start has, under which all keys
of this start lie, and gives it to the others.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from resim.errors import LostProcessError

_PAUSE = 0.01  # seconds between two readings of the store


def join_group(backend: str, timeout: timedelta) -> None:
    """Start the process group of the processes that torchrun started.

    Args:
        backend: nccl or gloo.
        timeout: of the meeting, and of every collective operation.

    Raises:
        LostProcessError: not all processes came in time.
    """
    minutes = timeout.total_seconds() / 60
    try:
        store, rank, count = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        name = _name_start(store, rank, count, time.monotonic() + timeout.total_seconds())
    except RuntimeError as error:  # of the store
        raise LostProcessError(
            f"the processes of the run did not meet within --timeout-minutes {minutes:g}: check that torchrun runs on "
            "all hosts, and that they reach each other's ports"
        ) from error
    dist.init_process_group(
        backend, store=PrefixStore(name, store), rank=rank, world_size=count, timeout=timeout
    )  # fmt: skip


def _name_start(store: Store, rank: int, count: int, deadline: float) -> str:
    """The name of this start, the same on every process of it.

    Each process asks with a number of its own, which the first one answers; what processes of an earlier start asked
    has other numbers, and the first one waits until those of this start have the name.
    """
    if rank:
        ours = uuid.uuid4().hex
        store.set(f"resim/question/{rank}", ours)
        name = store.get(f"resim/answer/{ours}").decode()
        store.set(f"{name}/has/{rank}", "1")
        return name
    name = f"resim/{uuid.uuid4().hex}"
    answered: dict[int, bytes] = {}
    missing = list(range(1, count))
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {missing} did not ask for the name of the start")
        for other in missing:
            if store.check([f"resim/question/{other}"]):
                asked = store.get(f"resim/question/{other}")
                if answered.get(other) != asked:
                    store.set(f"resim/answer/{asked.decode()}", name)
                    answered[other] = asked
        missing = [other for other in missing if not store.check([f"{name}/has/{other}"])]
        if missing:
            time.sleep(_PAUSE)
    return name
