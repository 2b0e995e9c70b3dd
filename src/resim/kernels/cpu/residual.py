"""Residual blocks of ResNets in bfloat16 on a CPU, with fewer passes over memory, which limits a training step there.

For its backward pass a block stores its input, the products of its inner convolutions, and its output or, if that is
enough, the mask of its ReLU. The products of its last convolution and of its shortcut are recomputed if these are
1 x 1, or not needed at all (`ClosingLayer`).

Source: He et al., arXiv 1512.03385.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.layer import Layer, LayerOutput, Saved
from resim.kernels.cpu.pointwise import ClosingLayer, PointwiseLayer
from resim.kernels.cpu.weight_grad import TiledLayer, fits
from resim.layers.grouped_norm import GroupedBatchNorm2d


@dataclass(frozen=True)
class Residual:
    """Layers with a ReLU after each; before the last ReLU the input, or the output of `shortcut`, is added."""

    layers: tuple[Layer, ...]
    shortcut: Layer | None
    stride: int
    """Stride of the shortcut, pixels."""

    @property
    def all_layers(self) -> list[Layer]:
        """The layers, and the shortcut last."""
        return [*self.layers, *([self.shortcut] if self.shortcut else [])]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) bfloat16 in channels-last memory -> the block's output."""
        parameters = [p for layer in self.all_layers for p in (layer.conv.weight, layer.norm.weight, layer.norm.bias)]
        with torch.autocast("cpu", enabled=False):
            out: Any = _Residual.apply(self, x.contiguous(memory_format=torch.channels_last), *parameters)
        return out

    def shortcut_input(self, x: Tensor) -> Tensor:
        """The input of the shortcut: every `stride`-th pixel of `x`."""
        return x[:, :, :: self.stride, :: self.stride].contiguous(memory_format=torch.channels_last)


def build_residual(block: Any) -> Residual:
    """Build a `Residual` that shares the parameters of a torchvision block (BasicBlock or Bottleneck)."""
    pairs = [(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    layers = [_layer(conv, norm) for conv, norm in pairs]
    shortcut, stride = None, 1
    if block.downsample is not None:
        conv, norm = block.downsample
        stride = conv.stride[0]
        dense = copy.copy(conv)  # shares the parameters
        dense.stride = (1, 1)
        shortcut = _layer(dense, norm)
    ends = [layers[0], layers[-1], *([shortcut] if shortcut else [])]
    if all(PointwiseLayer.fits(layer) for layer in ends):
        first, *middle, last = layers
        layers = [PointwiseLayer(first.conv, first.norm), *middle, ClosingLayer(last.conv, last.norm)]
        shortcut = ClosingLayer(shortcut.conv, shortcut.norm) if shortcut else None
    return Residual(tuple(layers), shortcut, stride)


def _layer(conv: nn.Conv2d, norm: GroupedBatchNorm2d) -> Layer:
    return TiledLayer(conv, norm) if fits(conv) else Layer(conv, norm)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Residual, x: Tensor, *parameters: Tensor) -> Tensor:
        *inner, last = block.layers
        weights = parameters[::3]  # saved, so that autograd reports a change of them before backward
        narrow = [weight.to(torch.bfloat16) for weight in weights]
        outputs: list[LayerOutput] = []
        hidden, norm = x, None
        for weight, layer in zip(narrow, inner, strict=False):
            outputs.append(layer.forward(weight, hidden, norm))
            hidden, norm = outputs[-1].product, outputs[-1].norm
            assert hidden is not None
        addend, addend_norm = x, None
        if block.shortcut is not None:
            of_shortcut = block.shortcut.forward(narrow[-1], block.shortcut_input(x), None)
            addend, addend_norm = of_shortcut.product, of_shortcut.norm
            assert addend is not None
            outputs.append(replace(of_shortcut, product=None))
        out, top = last.finish(narrow[len(inner)], hidden, norm, addend, addend_norm)
        outputs.insert(len(inner), top)
        ctx.block = block
        kept = ((w, output.norm, output.product, output.moments) for w, output in zip(narrow, outputs, strict=True))
        kept = [tensor for tensors in kept for tensor in tensors]
        ctx.save_for_backward(x, out if top.mask is None else None, top.mask, *kept, *weights)
        return out

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        block: Residual = ctx.block
        layers, shortcut, count = block.layers, block.shortcut, len(block.layers)
        x, y, mask, *rest = ctx.saved_tensors
        kept = [list(tensors) for tensors in zip(*[iter(rest[: 4 * len(block.all_layers)])] * 4, strict=True)]
        grad: Tensor = grads[0].contiguous(memory_format=torch.channels_last)
        dz, addend, addend_mask, sparse = None, None, None, None
        of_shortcut: tuple[Tensor, ...] = ()
        if shortcut is not None:
            weight, norm, product, moments = kept[-1]
            saved = Saved(weight, block.shortcut_input(x), None, norm, product, moments, y=y, mask=mask)
            addend, of_shortcut, _ = _backward(shortcut, saved, grad, None)
            if block.stride > 1:
                addend, sparse = None, addend
        elif mask is not None:
            addend, addend_mask = grad, mask
        else:
            addend = dz = torch.empty_like(grad)
        of_layers: list[tuple[Tensor, ...]] = []
        partial: Tensor | None = None
        for i in reversed(range(count)):
            weight, norm, product, moments = kept[i]
            _, hidden_norm, hidden, _ = (None, None, x, None) if i == 0 else kept[i - 1]
            saved = Saved(weight, hidden, hidden_norm, norm, product, moments)
            kept[i][2] = product = None
            extra: dict[str, Tensor | None] = {}
            if i == count - 1:
                saved, extra = replace(saved, y=y, mask=mask), {"dz": dz}
            if i == 0:
                extra |= {"addend": addend, "addend_mask": addend_mask}
            grad, gradients, partial = _backward(layers[i], saved, grad, partial, **extra)
            of_layers.insert(0, gradients)
        if sparse is not None:
            grad[:, :, :: block.stride, :: block.stride] += sparse
        return None, grad, *(gradient for layer in [*of_layers, of_shortcut] for gradient in layer)


def _backward(
    layer: Layer, saved: Saved, grad: Tensor, partial: Tensor | None, **extra: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """The gradients of a layer's input and parameters, and the partial sums for the layer before it."""
    if partial is None:
        partial, saved = layer.backward_sums(saved, grad)
    slopes, (grad_scale, grad_shift) = norms.slopes(partial, saved.norm, norms.shape(grad)[0])
    grad_x, grad_weight, below = layer.backward(saved, grad, slopes, **extra)
    return grad_x, (grad_weight.float(), grad_scale, grad_shift), below
