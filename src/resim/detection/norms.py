"""Normalisation of detectors: BatchNorm of one process or of all, fixed, and its statistics recomputed.

Shapes: N images, C channels, maps of H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from resim.distributed.processes import Processes
from resim.distributed.rows import sum_over_processes_


class _NormalizeTogether(torch.autograd.Function):
    """Batch norm over the images of all processes, by two sums there and two sums back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = torch.cat([wide.sum((0, 2, 3)), count])
        sum_over_processes_(sums)
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = wide - mean.view(-1, 1, 1)
        squares = centred.square().sum((0, 2, 3))
        sum_over_processes_(squares)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        normal = centred * scale.view(-1, 1, 1)
        ctx.save_for_backward(normal, weight, scale, count)
        unbiased = squares / (count - 1).clamp(min=1)
        ctx.mark_non_differentiable(mean, unbiased)
        return (normal * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).to(x.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, weight, scale, count = ctx.saved_tensors
        grad = grads[0].to(normal.dtype)
        grad_weight, grad_bias = (grad * normal).sum((0, 2, 3)), grad.sum((0, 2, 3))
        sums = torch.stack([grad_weight, grad_bias])
        sum_over_processes_(sums)
        means = (sums / count).unsqueeze(-1).unsqueeze(-1)
        grad_x = (grad - means[1] - normal * means[0]) * (weight * scale).view(-1, 1, 1)
        return grad_x.to(grads[0].dtype), grad_weight, grad_bias, None


class AllReduceBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all processes, on any device: PyTorch's SyncBatchNorm refuses CPU tensors."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for it
        """Normalise (N, C, H, W). In training all processes must call it alike."""
        if not self.training:
            return super().forward(input)
        result: Any = _NormalizeTogether.apply(input, self.weight, self.bias, self.eps)
        out, mean, unbiased = result
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                assert running is not None
                running.mul_(1 - share).add_(new.to(running.dtype), alpha=share)
        return out


def norm_layer(kind: Literal["sync", "batch", "frozen"], processes: Processes | None) -> Callable[[int], nn.Module]:
    """The constructor of a normalisation, called with the number of channels.

    Args:
        kind: over all processes, of each process, or fixed.
        processes: that take part; None: this one alone.
    """
    if kind == "frozen":
        return FrozenBatchNorm2d
    if kind == "batch" or processes is None or processes.count == 1:
        return nn.BatchNorm2d
    return nn.SyncBatchNorm if processes.device.type == "cuda" else AllReduceBatchNorm2d


def freeze(module: nn.Module) -> None:
    """Stop training the parameters of `module`; its BatchNorms keep their statistics."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for name, child in list(module.named_modules()):
        if not isinstance(child, _BatchNorm):
            continue
        fixed = FrozenBatchNorm2d(child.num_features, eps=child.eps)
        fixed.load_state_dict(child.state_dict())
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, fixed.to(child.weight.device))


@torch.no_grad()
def recompute_statistics(model: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any]) -> None:
    """Replace the running statistics of every BatchNorm by the plain mean over `batches` ("precise" BatchNorm).

    The model is in training mode while `forward` is called with each batch; weights do not change. Over several
    processes every process calls it, and layers that are not synchronised are averaged by the caller.

    Source: Wu and Johnson, arXiv 2105.07576, section 3.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    was_training, momenta = model.training, [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    for batch in batches:
        forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
