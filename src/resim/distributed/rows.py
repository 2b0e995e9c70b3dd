"""Rows of a global batch that several processes hold: gather them, or exchange them to put the batch in another order.

Process r of W holds rows r * n to (r + 1) * n of the global batch. With one process everything here is local.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from resim.transfers import to_device


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) where no process group was started."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes_(tensor: Tensor) -> None:
    """Replace a tensor, in place, by its sum over all processes. All processes must call it; no gradient."""
    dist.all_reduce(tensor)


class PendingRows:
    """Rows of other processes whose transfer has begun; `wait` returns them.

    Computation goes on until then. All processes must wait for their transfers in the same order.
    """

    def __init__(
        self,
        rows: Tensor,
        finish: Callable[[Tensor], Tensor] | None = None,
        *,
        work: dist.Work | None = None,
        source: Tensor | None = None,
    ) -> None:
        self._rows, self._finish, self._work = rows, finish, work
        self._source = source  # is read until the transfer ends

    def wait(self) -> Tensor:
        """The rows; again the same at the next call. On a GPU the stream waits for them and not the host."""
        if self._work is not None:
            self._work.wait()
            self._work = self._source = None
        if self._finish is not None:
            self._rows, self._finish = self._finish(self._rows), None
        return self._rows

    def then(self, step: Callable[[Tensor], Tensor]) -> PendingRows:
        """The same rows after one more step, which is computed when they are waited for."""
        return PendingRows(self._rows, lambda _: step(self.wait()))


def gather_rows(rows: Tensor) -> PendingRows:
    """Gather every process's rows (n, ...) one after the other: (W * n, ...). No gradient."""
    _, processes = world()
    if processes == 1:
        return PendingRows(rows)
    rows = rows.contiguous()
    out = rows.new_empty((processes * len(rows), *rows.shape[1:]))
    return PendingRows(out, work=dist.all_gather_into_tensor(out, rows, async_op=True), source=rows)


def mean_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the processes, all in one message; all must have the same dtype. No gradient."""
    _, processes = world()
    if processes == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / processes).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def exchange_rows(rows: Tensor, order: Tensor | None) -> PendingRows:
    """Put the global batch into another order: new global row i is old row `order[i]`. No gradient.

    Each row is sent once, directly to the process that needs it.

    Args:
        rows: (n, ...), this process's rows.
        order: (W * n,) permutation, int64 on the CPU, the same on every process; None leaves all as it is.

    Returns:
        (n, ...), this process's rows of the reordered batch.
    """
    if order is None:
        return PendingRows(rows)
    rank, processes = world()
    n = len(rows)
    if processes == 1:
        return PendingRows(rows[to_device(order, rows.device)])
    mine = order[rank * n : (rank + 1) * n]
    wanted = [order[r * n : (r + 1) * n] for r in range(processes)]
    outgoing = [w[w // n == rank] - rank * n for w in wanted]
    source = mine // n
    incoming = torch.bincount(source, minlength=processes).tolist()
    outgoing_rows = rows[to_device(torch.cat(outgoing), rows.device)].contiguous()
    received = torch.empty_like(outgoing_rows)
    work = dist.all_to_all_single(received, outgoing_rows, incoming, [len(o) for o in outgoing], async_op=True)
    place = torch.argsort(source, stable=True)  # received rows are sorted by their process
    back = torch.empty_like(place)
    back[place] = torch.arange(n)
    return PendingRows(
        received, lambda arrived: arrived[to_device(back, arrived.device)], work=work, source=outgoing_rows
    )


def inverse_order(order: Tensor | None) -> Tensor | None:
    """The permutation that undoes `order`."""
    return None if order is None else torch.argsort(order)
