"""Weights in bfloat16 on a CPU, made while a key encoder follows its query encoder."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.weak import WeakIdKeyDictionary

from resim.model.fused import norm as norms
from resim.model.fused.build import kernels

_kept: MutableMapping[Tensor, tuple[int, Tensor]] = WeakIdKeyDictionary()
"""Of some weights: in which version they were, and what they were in bfloat16."""


def low(weight: Tensor) -> Tensor:
    """A weight in bfloat16: what `follow` made of it, if it has not changed since."""
    kept = _kept.get(weight)
    return kept[1] if kept is not None and kept[0] == weight._version else weight.to(torch.bfloat16)


def forget(weights: Iterable[Tensor]) -> None:
    """Let go of what `follow` kept."""
    for weight in weights:
        _kept.pop(weight, None)


@torch.no_grad()
def follow(averages: list[Tensor], values: list[Tensor], momentum: float) -> None:
    """averages = momentum * averages + (1 - momentum) * values, in place.

    In bfloat16's autocast on a CPU one pass over memory also makes what convolutions will read: the weights of both in
    bfloat16. They are kept until `forget`.
    """
    if not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16) or not kernels():
        get_ema_multi_avg_fn(momentum)(averages, values, 0)
        return
    for average, value in zip(averages, values, strict=True):
        if not _fits(average, value):
            get_ema_multi_avg_fn(momentum)([average], [value], 0)
            continue
        lows = [torch.empty_like(each, dtype=torch.bfloat16) if each.dim() == 4 else None for each in (average, value)]
        pointers = (norms.address(tensor) for tensor in (average, value, *lows))
        norms.native().resim_follow(*pointers, 1 - momentum, average.numel(), torch.get_num_threads())
        torch.autograd.graph.increment_version(average)
        for weight, found in zip((average, value), lows, strict=True):
            if found is not None:
                _kept[weight] = (weight._version, found)


def _fits(average: Tensor, value: Tensor) -> bool:
    usual = all(x.device.type == "cpu" and x.dtype is torch.float32 for x in (average, value))
    dense = average.is_contiguous() or average.is_contiguous(memory_format=torch.channels_last)
    return usual and dense and average.stride() == value.stride()
