"""Residual blocks of ResNets in bfloat16 on a CPU, where a training step waits for memory more than it computes.

A block keeps for its backward pass its input, what its inner convolutions give, and its output or, where that is
enough, the bits of its ReLU. What its last convolution and its shortcut give is made again where they are 1 x 1, or not
needed (`ClosingLayer`).

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
from resim.kernels.cpu.layer import Found, Layer, Seen
from resim.kernels.cpu.pointwise import ClosingLayer, PointwiseLayer
from resim.kernels.cpu.weight_grad import TiledLayer, fits
from resim.layers.grouped_norm import GroupedBatchNorm2d


@dataclass(frozen=True)
class Residual:
    """Layers with a ReLU after each, the last after the sum with the input or what `shortcut` makes of it."""

    layers: tuple[Layer, ...]
    shortcut: Layer | None
    stride: int
    """Between the pixels that the shortcut sees."""

    @property
    def every(self) -> list[Layer]:
        """The shortcut comes last."""
        return [*self.layers, *([self.shortcut] if self.shortcut else [])]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) bfloat16 in channels-last memory -> the block's output."""
        parameters = [p for layer in self.every for p in (layer.conv.weight, layer.norm.weight, layer.norm.bias)]
        with torch.autocast("cpu", enabled=False):
            out: Any = _Residual.apply(self, x.contiguous(memory_format=torch.channels_last), *parameters)
        return out

    def seen_by_shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel."""
        return x[:, :, :: self.stride, :: self.stride].contiguous(memory_format=torch.channels_last)


def make_residual(block: nn.Module) -> Residual:
    """The block of a torchvision ResNet (BasicBlock or Bottleneck) in this form, with its own parameters."""
    own: Any = block
    pairs = [(getattr(own, f"conv{i}"), getattr(own, f"bn{i}")) for i in (1, 2, 3) if hasattr(own, f"conv{i}")]
    layers = [_layer(conv, norm) for conv, norm in pairs]
    shortcut, stride = None, 1
    if own.downsample is not None:
        conv, norm = own.downsample
        stride = conv.stride[0]
        dense = copy.copy(conv)  # the same parameters
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
        weights = parameters[::3]  # kept by the graph, so that their changing before the way back is an error
        narrow = [weight.to(torch.bfloat16) for weight in weights]
        found: list[Found] = []
        hidden, norm = x, None
        for weight, layer in zip(narrow, inner, strict=False):
            found.append(layer.forward(weight, hidden, norm))
            hidden, norm = found[-1].product, found[-1].norm
            assert hidden is not None
        beside, beside_norm = x, None
        if block.shortcut is not None:
            of_shortcut = block.shortcut.forward(narrow[-1], block.seen_by_shortcut(x), None)
            beside, beside_norm = of_shortcut.product, of_shortcut.norm
            assert beside is not None
            found.append(replace(of_shortcut, product=None))
        out, top = last.finish(narrow[len(inner)], hidden, norm, beside, beside_norm)
        found.insert(len(inner), top)
        ctx.block = block
        kept = ((w, each.norm, each.product, each.moments) for w, each in zip(narrow, found, strict=True))
        kept = [tensor for of_layer in kept for tensor in of_layer]
        ctx.save_for_backward(x, out if top.passed is None else None, top.passed, *kept, *weights)
        return out

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        block: Residual = ctx.block
        layers, shortcut, count = block.layers, block.shortcut, len(block.layers)
        x, y, passed, *rest = ctx.saved_tensors
        kept = [list(of_layer) for of_layer in zip(*[iter(rest[: 4 * len(block.every)])] * 4, strict=True)]
        grad: Tensor = grads[0].contiguous(memory_format=torch.channels_last)
        dz, beside, beside_passed, sparse = None, None, None, None
        of_shortcut: tuple[Tensor, ...] = ()
        if shortcut is not None:
            weight, norm, product, moments = kept[-1]
            seen = Seen(weight, block.seen_by_shortcut(x), None, norm, product, moments, y=y, passed=passed)
            beside, of_shortcut, _ = _back(shortcut, seen, grad, None)
            if block.stride > 1:
                beside, sparse = None, beside
        elif passed is not None:
            beside, beside_passed = grad, passed
        else:
            beside = dz = torch.empty_like(grad)
        of_layers: list[tuple[Tensor, ...]] = []
        partial: Tensor | None = None
        for i in reversed(range(count)):
            weight, norm, product, moments = kept[i]
            _, hidden_norm, hidden, _ = (None, None, x, None) if i == 0 else kept[i - 1]
            seen = Seen(weight, hidden, hidden_norm, norm, product, moments)
            kept[i][2] = product = None
            more: dict[str, Tensor | None] = {}
            if i == count - 1:
                seen, more = replace(seen, y=y, passed=passed), {"dz": dz}
            if i == 0:
                more |= {"beside": beside, "beside_passed": beside_passed}
            grad, gradients, partial = _back(layers[i], seen, grad, partial, **more)
            of_layers.insert(0, gradients)
        if sparse is not None:
            grad[:, :, :: block.stride, :: block.stride] += sparse
        return None, grad, *(gradient for layer in [*of_layers, of_shortcut] for gradient in layer)


def _back(
    layer: Layer, seen: Seen, grad: Tensor, partial: Tensor | None, **more: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """A layer back: gradients of its input and of its weight and norm, and what the layer before starts from."""
    if partial is None:
        partial, seen = layer.backward_sums(seen, grad)
    slopes, (of_scale, of_shift) = norms.slopes(partial, seen.norm, norms.shape(grad)[0])
    grad_x, grad_weight, below = layer.backward(seen, grad, slopes, **more)
    return grad_x, (grad_weight.float(), of_scale, of_shift), below
