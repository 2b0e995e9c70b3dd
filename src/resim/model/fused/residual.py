"""Residual blocks of ResNets in bfloat16 on a CPU, where a training step waits for memory more than it computes.

A block keeps for its backward pass its input, its output and what its inner convolutions give; the last one's and the
shortcut's products are made again where they are 1 x 1.

Source: He et al., arXiv 1512.03385.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resim.model.fused import norm as norms
from resim.model.fused.layer import Layer, Seen
from resim.model.fused.pointwise import PointwiseLayer


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
        out: Any = _Residual.apply(self, x.contiguous(memory_format=torch.channels_last), *parameters)
        return out

    def seen_by_shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel."""
        return x[:, :, :: self.stride, :: self.stride].contiguous(memory_format=torch.channels_last)


def make_residual(block: nn.Module) -> Residual:
    """The block of a torchvision ResNet (BasicBlock or Bottleneck) in this form, with its own parameters."""
    own: Any = block
    layers = [Layer(getattr(own, f"conv{i}"), getattr(own, f"bn{i}")) for i in (1, 2, 3) if hasattr(own, f"conv{i}")]
    shortcut, stride = None, 1
    if own.downsample is not None:
        conv, norm = own.downsample
        stride = conv.stride[0]
        dense = copy.copy(conv)  # the same parameters
        dense.stride = (1, 1)
        shortcut = Layer(dense, norm)
    ends = [layers[0], layers[-1], *([shortcut] if shortcut else [])]
    if all(PointwiseLayer.fits(layer) for layer in ends):
        layers = [PointwiseLayer(each.conv, each.norm) if each in ends else each for each in layers]
        shortcut = PointwiseLayer(shortcut.conv, shortcut.norm) if shortcut else None
    return Residual(tuple(layers), shortcut, stride)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Residual, x: Tensor, *parameters: Tensor) -> Tensor:
        *inner, last = block.layers
        products: list[Tensor] = []
        found: list[Tensor] = []
        hidden, norm = x, None
        for layer in inner:
            hidden, norm = layer.forward(hidden, norm)
            products.append(hidden)
            found.append(norm)
        beside, beside_norm = x, None
        if block.shortcut is not None:
            beside, beside_norm = block.shortcut.forward(block.seen_by_shortcut(x), None)
        out, top_norm, product, passed = last.finish(hidden, norm, beside, beside_norm)
        ctx.block = block
        weights = parameters[::3]  # kept by the graph, so that their changing before the way back is an error
        ctx.save_for_backward(x, out, product, passed, beside_norm, *weights, *products, *found, top_norm)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        block: Residual = ctx.block
        layers, shortcut, count = block.layers, block.shortcut, len(block.layers)
        x, out, product, passed, beside_norm, *rest = ctx.saved_tensors
        weights = [weight.to(x.dtype) for weight in rest[: len(block.every)]]
        rest = rest[len(weights) :]
        products, found = [*rest[: count - 1], product], rest[count - 1 :]
        grad: Tensor = grads[0].contiguous(memory_format=torch.channels_last)
        y = out if passed is None else None
        dz, beside, beside_passed, sparse = None, None, None, None
        of_shortcut: tuple[Tensor, ...] = ()
        if shortcut is not None:
            seen = Seen(weights[-1], block.seen_by_shortcut(x), None, beside_norm, y=y, passed=passed)
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
            hidden, norm = (x, None) if i == 0 else (products[i - 1], found[i - 1])
            seen = Seen(weights[i], hidden, norm, found[i], products[i])
            products[i] = None
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
