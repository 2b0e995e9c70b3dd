"""ReLU of bfloat16 on a CPU as an integer operation: a bfloat16 and the int16 of the same bits have the same sign.

PyTorch converts bfloat16 to float32 and back for every operation; comparing integers takes a fraction of the time. A
NaN whose sign bit is set becomes 0, so NaNs cannot be detected after a ReLU; `commit_statistics` detects those that
reach a BatchNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _BitReLU(torch.autograd.Function):
    """max(x, 0) of bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        bits = x.view(torch.int16)
        if inplace:
            ctx.mark_dirty(x)
            bits.clamp_min_(0)
            out = x
        else:
            out = bits.clamp_min(0).view(torch.bfloat16)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        passes = out.view(torch.int16).clamp_max(1)  # 1 where the output is above 0, else 0
        return (grads[0].view(torch.int16) * passes).view(torch.bfloat16), None


class ReLU(nn.ReLU):
    """nn.ReLU, faster for bfloat16 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch.nn
        """max(input, 0)."""
        if input.dtype is not torch.bfloat16 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        out: Any = _BitReLU.apply(input, self.inplace)
        return out


def quicken_relus(module: nn.Module) -> None:
    """Replace every nn.ReLU in `module` by a `ReLU`."""
    for name, child in list(module.named_children()):
        if type(child) is nn.ReLU:
            setattr(module, name, ReLU(inplace=child.inplace))
        else:
            quicken_relus(child)
