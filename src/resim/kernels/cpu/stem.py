"""The stem of a ResNet: its convolution, and BatchNorm, ReLU and max pooling fused into one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.weight_grad import fits_stem, weight_grad
from resim.layers.grouped_norm import GroupedBatchNorm2d

POOLING = (3, 2, 1)
"""Kernel, stride and padding of the pooling that the kernel computes."""
WIDEST = 4096
"""Largest number of channels, as in norm.c."""


def stem(images: Tensor, conv: nn.Conv2d, norm: GroupedBatchNorm2d) -> Tensor:
    """(N, 3, S, S) -> (N, C, S / 4, S / 4) bfloat16 in channels-last memory.

    The images receive no gradient and must not change before the backward pass.
    """
    assert conv.out_channels <= WIDEST
    out: Any = _Stem.apply(conv, norm, images, conv.weight, norm.weight, norm.bias)
    return out


def _to_bfloat16(images: Tensor) -> Tensor:
    return images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def _convolve(conv: nn.Conv2d, images: Tensor, weight: Tensor) -> Tensor:
    padding: Any = conv.padding
    return torch.conv2d(images, weight, None, conv.stride, padding).contiguous(memory_format=torch.channels_last)


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, conv: nn.Conv2d, norm: GroupedBatchNorm2d, images: Tensor, *parameters: Tensor) -> Tensor:
        weight = parameters[0].to(torch.bfloat16)
        x = _convolve(conv, _to_bfloat16(images), weight)
        n, channels, h, w = x.shape
        coefficients = norms.coefficients(*norms.partial_sums(x), norms.shape(x)[0], norm)
        size = (n, channels, (h + 1) // 2, (w + 1) // 2)
        out = torch.empty(size, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
        argmax = torch.empty(size, dtype=torch.uint8, device="cpu", memory_format=torch.channels_last)
        pointers = (norms.address(tensor) for tensor in (x, coefficients, out, argmax))
        norms.native().resim_norm_pool(*pointers, n, h, w, channels, torch.get_num_threads())
        ctx.conv = conv
        ctx.save_for_backward(
            images, weight, coefficients, argmax, parameters[0]
        )  # not x: large, and cheap to recompute
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        images, weight, coefficients, argmax, _ = ctx.saved_tensors
        conv: nn.Conv2d = ctx.conv
        images = _to_bfloat16(images)
        x = _convolve(conv, images, weight)
        n, channels, h, w = x.shape
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        dz = torch.empty_like(x)
        partial = norms.floats(n * h, 2, channels)
        pointers = (norms.address(tensor) for tensor in (grad, argmax, x, coefficients, dz, partial))
        norms.native().resim_norm_pool_backward(*pointers, n, h, w, channels, torch.get_num_threads())
        slopes, (grad_scale, grad_shift) = norms.slopes(partial, coefficients, norms.shape(x)[0])
        if fits_stem(conv):
            grad_weight = weight_grad(conv, images, dz, product=x, norm=coefficients, slopes=slopes)
            return None, None, None, grad_weight, grad_scale, grad_shift
        grad_x = norms.normalize_backward(dz, x, coefficients, slopes, out=dz)
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_x, images, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], 1,
            [False, True, False],
        )  # fmt: skip
        return None, None, None, grad_weight.float(), grad_scale, grad_shift
