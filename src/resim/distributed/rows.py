"""Tensors of several processes: rows of a global batch, gathered or exchanged; means and sums.

Process r of W has rows r * n to (r + 1) * n of the global batch. With one process nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from resim.transfers import to_device


def world() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes_(tensor: Tensor) -> None:
    """Replace a tensor in place by its sum over all processes, which must all call this. No gradient."""
    dist.all_reduce(tensor)


class PendingRows:
    """The result of a collective operation that has started; `wait` returns it.

    Computation continues in the meantime. All processes must wait for their operations in the same order.
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
        self._source = source  # must live until the transfer ends

    def wait(self) -> Tensor:
        """Return the rows, the same at every call. On a GPU the current stream waits for the transfer, not the host."""
        if self._work is not None:
            self._work.wait()
            self._work = self._source = None
        if self._finish is not None:
            self._rows, self._finish = self._finish(self._rows), None
        return self._rows

    def then(self, step: Callable[[Tensor], Tensor]) -> PendingRows:
        """The rows after `step`, which `wait` applies to them."""
        return PendingRows(self._rows, lambda _: step(self.wait()))


def gather_rows(rows: Tensor) -> PendingRows:
    """Concatenate the rows (n, ...) of all processes in the order of their ranks: (W * n, ...). No gradient."""
    _, processes = world()
    if processes == 1:
        return PendingRows(rows)
    rows = rows.contiguous()
    out = rows.new_empty((processes * len(rows), *rows.shape[1:]))
    return PendingRows(out, work=dist.all_gather_into_tensor(out, rows, async_op=True), source=rows)


def mean_over_processes(tensors: Sequence[Tensor], *, dtype: torch.dtype) -> list[Tensor]:
    """The mean of each tensor over all processes, in one message. No gradient.

    Args:
        tensors: of the same shapes on all processes.
        dtype: in which they are added.

    Returns:
        Means of the shapes of `tensors`, in `dtype`; with one process the tensors themselves.
    """
    _, processes = world()
    if processes == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.to(dtype).flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / processes).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def exchange_rows(rows: Tensor, order: Tensor | None) -> PendingRows:
    """Permute the global batch: new global row i is old global row `order[i]`. No gradient.

    Each row is transferred once, directly to the process that needs it.

    Args:
        rows: (n, ...), the rows of this process.
        order: (W * n,) permutation, int64 on the CPU, the same on every process; None: no permutation.

    Returns:
        (n, ...), the rows of this process in the permuted batch.
    """
    if order is None:
        return PendingRows(rows)
    rank, processes = world()
    n = len(rows)
    if processes == 1:
        return PendingRows(rows[to_device(order, rows.device)])
    needed = [order[r * n : (r + 1) * n] for r in range(processes)]  # old global rows, by the process that needs them
    outgoing = [indices[indices // n == rank] - rank * n for indices in needed]
    source = needed[rank] // n  # the process that has each of the rows needed here
    incoming = torch.bincount(source, minlength=processes).tolist()
    outgoing_rows = rows[to_device(torch.cat(outgoing), rows.device)].contiguous()
    received = torch.empty_like(outgoing_rows)
    outgoing_counts = [len(indices) for indices in outgoing]
    work = dist.all_to_all_single(received, outgoing_rows, incoming, outgoing_counts, async_op=True)
    place = torch.argsort(source, stable=True)  # received rows are sorted by their source process
    back = torch.empty_like(place)
    back[place] = torch.arange(n)
    return PendingRows(
        received, lambda arrived: arrived[to_device(back, arrived.device)], work=work, source=outgoing_rows
    )


def inverse_order(order: Tensor | None) -> Tensor | None:
    """The permutation that undoes `order`."""
    return None if order is None else torch.argsort(order)
