"""The processes of one host, which torchrun numbers one after the other, and rows gathered among them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from resim.distributed.rows import world
from resim.errors import UserError

_groups: dict[str, tuple[Any, Any]] = {}  # of this host: the group of all processes that it belongs to, and its group


def processes_of_host() -> range:
    """The ranks of the processes of this host; all ranks where there is one host.

    Raises:
        UserError: torchrun's variables are missing, or do not fit the number of processes.
    """
    rank, processes = world()
    if processes == 1:
        return range(1)
    local_rank, local_count = (os.environ.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if not (local_rank.isdecimal() and local_count.isdecimal()):
        raise UserError(
            "negatives=node: LOCAL_RANK and LOCAL_WORLD_SIZE say which processes are on one host, and are not set: "
            "start the processes by torchrun, or set negatives=all or negatives=group"
        )
    ranks = range(rank - int(local_rank), rank - int(local_rank) + int(local_count))
    if rank not in ranks or ranks.start < 0 or ranks.stop > processes:
        raise UserError(
            f"negatives=node: LOCAL_RANK {local_rank} and LOCAL_WORLD_SIZE {local_count} do not fit rank {rank} of "
            f"{processes}: start the processes by torchrun, which numbers those of a host one after the other"
        )
    return ranks


def is_one_host() -> bool:
    """Whether all processes run on one host. Raises as `processes_of_host`."""
    return len(processes_of_host()) == world()[1]


def gather_rows_of_host(rows: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of this host's L processes in the order of their ranks: (L * n, ...). No gradient.

    All processes of the host must call this.
    """
    ranks = processes_of_host()
    rows = rows.contiguous()
    out = rows.new_empty((len(ranks) * len(rows), *rows.shape[1:]))
    dist.all_gather_into_tensor(out, rows, group=_group_of(ranks))
    return out


def _group_of(ranks: range) -> Any:
    """The process group of some ranks, made once; it waits as long as the group of all processes does."""
    everybody, group = _groups.get("host", (None, None))
    if everybody is not dist.group.WORLD:
        timeout = _timeout_of(dist.group.WORLD)
        group = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
        _groups["host"] = dist.group.WORLD, group
    return group


def _timeout_of(group: Any) -> timedelta | None:
    """How long a process group waits; None: PyTorch's default."""
    backend = group._get_backend(group._device_types[0])
    return getattr(backend.options, "_timeout", None)
