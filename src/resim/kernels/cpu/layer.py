"""A convolution between two BatchNorms, forward and back, as residual.py strings them together.

Shapes: maps are (N, C, H, W), bfloat16 in channels-last memory; their rows are (N * H * W, C), the same memory.

A layer's input is normalised first by the coefficients `x_norm` and goes through a ReLU, or is taken as it is where
they are None. What its convolution gives is its product, which its own BatchNorm normalises by `norm`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resim.kernels.cpu import norm as norms
from resim.layers.grouped_norm import GroupedBatchNorm2d

FEW = 1024
"""Rows up to which products are quicker another way round than PyTorch would have them."""
UNFOLDED = 2**21
"""Weights of a k x k convolution from which it is quicker as a product with every pixel's neighbours."""


def rows_of(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """(N * H * W, C) -> (N, C, H, W), with N, H and W of `like`."""
    n, _, h, w = like.shape
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows (R, K) @ matrix (K, N); in two halves where much is added up to little."""
    k, n = matrix.shape
    if len(rows) > FEW or k < 4 * n:
        return rows @ matrix
    return torch.cat([rows @ part for part in matrix.chunk(2, dim=1)], dim=1)


def like_weight(found: Tensor, weight: Tensor) -> Tensor:
    """(outputs, inputs) -> the shape and, where it is dense, the strides of a 1 x 1 convolution's weight."""
    found = found.contiguous()
    if weight.stride()[:2] == found.stride():
        return found.as_strided(weight.shape, weight.stride())
    return found.view_as(weight)


@dataclass(frozen=True)
class Found:
    """What a layer forward finds."""

    norm: Tensor
    """(4, C) coefficients of the product's normalisation."""
    product: Tensor | None
    """None: it was not kept."""
    moments: Tensor | None = None
    """As in `Seen`."""
    passed: Tensor | None = None
    """As in `Seen`."""


@dataclass(frozen=True)
class Seen:
    """What a layer's way back starts from."""

    weight: Tensor
    """Of the convolution, in bfloat16."""
    x: Tensor
    """The layer's input."""
    x_norm: Tensor | None
    """(4, C) coefficients by which the input is normalised first; None: it is taken as it is."""
    norm: Tensor
    """(4, C) coefficients of the product's normalisation."""
    product: Tensor | None = None
    """None: made again, or not needed."""
    moments: Tensor | None = None
    """(1 + inputs, inputs): the mean of the convolution's input, and the sums of the products of its deviations."""
    grad_sum: Tensor | None = None
    """(outputs,) sums of what of the gradient passed the ReLU."""
    grad_weight: Tensor | None = None
    """(outputs, inputs) sums of its products with the input's deviations."""
    y: Tensor | None = None
    """The output of the ReLU after a sum; None: the ReLU came right after the normalisation."""
    passed: Tensor | None = None
    """The same as bits: (rows, C / 32) int32, set where it is above 0."""


@dataclass(frozen=True)
class Layer:
    """Any convolution, by PyTorch; one of 1 x 1 as a product of matrices."""

    conv: nn.Conv2d
    norm: GroupedBatchNorm2d

    @property
    def pointwise(self) -> bool:
        """Whether it is a product of matrices over all the pixels."""
        conv = self.conv
        return conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding == (0, 0) and conv.stride == (1, 1)

    @property
    def _unfolds(self) -> bool:
        conv = self.conv
        return conv.weight.numel() >= UNFOLDED and conv.groups == 1 and conv.dilation == (1, 1)

    def _convolve(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> Tensor:
        hidden = x if x_norm is None else norms.normalize(x, x_norm)
        if self.pointwise:
            return maps_of(times(rows_of(hidden), weight.flatten(1).t()), hidden)
        conv = self.conv
        if self._unfolds:
            edge, stride, kernel = int(conv.padding[0]), conv.stride[0], conv.kernel_size[0]
            height, width = ((pixels + 2 * edge - kernel) // stride + 1 for pixels in hidden.shape[2:])
            rows = _neighbours(hidden, height, width, conv)
            found = times(rows, weight.permute(0, 2, 3, 1).flatten(1).t())
            return found.view(len(hidden), height, width, -1).permute(0, 3, 1, 2)
        padding: Any = conv.padding
        y = torch.conv2d(hidden, weight, None, conv.stride, padding, conv.dilation, conv.groups)
        return y.contiguous(memory_format=torch.channels_last)

    def forward(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> Found:
        """The product and its coefficients; `weight` is the convolution's in bfloat16."""
        product = self._convolve(weight, x, x_norm)
        partial, origin = norms.see(product)
        return Found(norms.coefficients(partial, origin, norms.shape(product)[0], self.norm), product)

    def finish(
        self, weight: Tensor, x: Tensor, x_norm: Tensor | None, beside: Tensor, beside_norm: Tensor | None
    ) -> tuple[Tensor, Found]:
        """ReLU of the normalised product plus `beside`, itself normalised where it has coefficients.

        `beside` may be overwritten where it has coefficients. The product is kept where making it again is not cheap.
        """
        found = self.forward(weight, x, x_norm)
        assert found.product is not None
        light = self.pointwise
        out = norms.normalize(found.product, found.norm, beside=beside, beside_norm=beside_norm, inplace=light)
        return out, replace(found, product=None) if light else found

    def backward_sums(self, seen: Seen, grad: Tensor) -> tuple[Tensor, Seen]:
        """Partial sums of the gradient of the normalised product, and `seen` with what `backward` needs."""
        if seen.product is None:
            seen = replace(seen, product=self._convolve(seen.weight, seen.x, seen.x_norm))
        assert seen.product is not None
        return norms.see_backward(grad, seen.product, seen.norm, seen.y), seen

    def backward(
        self,
        seen: Seen,
        grad: Tensor,
        slopes: Tensor,
        *,
        dz: Tensor | None = None,
        beside: Tensor | None = None,
        beside_passed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One layer back.

        Args:
            seen: as `backward_sums` gave it, if it was called; a product made there is overwritten.
            grad: of the ReLU's output; overwritten where `seen.y` is None.
            slopes: by which gradients pass the normalisation.
            dz: where the gradient of what entered the ReLU is written, if it is wanted.
            beside: is added to the input's gradient, perhaps in its own memory.
            beside_passed: bits, set where `beside` counts; None: everywhere.

        Returns:
            The gradients of the input and the weight, and, if the input was normalised, the partial sums of the
            former for its BatchNorm.
        """
        assert seen.product is not None
        assert beside_passed is None  # only a PointwiseLayer leaves bits
        into = grad
        if seen.y is not None:  # grad belongs to others then, and so does a product that was kept
            into = seen.product if self.pointwise else torch.empty_like(grad)
        grad_weight = self._pass_norm(seen, grad, slopes, into, dz)
        grad_x = self._input_grad(seen.weight, into, seen.x, beside)
        partial = None if seen.x_norm is None else norms.see_backward(grad_x, seen.x, seen.x_norm)
        return grad_x, grad_weight, partial

    def _pass_norm(self, seen: Seen, grad: Tensor, slopes: Tensor, into: Tensor, dz: Tensor | None) -> Tensor:
        """The gradient of the product, into `into`, and of what entered the ReLU, into `dz`; returns the weight's."""
        assert seen.product is not None
        norms.normalize_backward(grad, seen.product, seen.norm, slopes, seen.y, into=into, dz=dz)
        hidden = seen.x if seen.x_norm is None else norms.normalize(seen.x, seen.x_norm)
        if self.pointwise:
            return like_weight(rows_of(into).t() @ rows_of(hidden), seen.weight)
        return convolution_gradients(self.conv, into, hidden, seen.weight, [False, True, False])[1]

    def _input_grad(self, weight: Tensor, grad: Tensor, x: Tensor, beside: Tensor | None) -> Tensor:
        """From that of the product, plus `beside`."""
        if not self.pointwise:
            grad_x = convolution_gradients(self.conv, grad, x, weight, [True, False, False])[0]
            grad_x = grad_x.contiguous(memory_format=torch.channels_last)
            return grad_x if beside is None else beside.add_(grad_x)
        if beside is None:
            return maps_of(times(rows_of(grad), weight.flatten(1)), x)
        rows_of(beside).addmm_(rows_of(grad), weight.flatten(1))
        return beside


def convolution_gradients(conv: nn.Conv2d, grad: Tensor, x: Tensor, weight: Tensor, which: list[bool]) -> list[Tensor]:
    """By PyTorch, of those asked for: the gradients of a convolution's input `x`, weight and bias."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, which
    )


def _neighbours(x: Tensor, height: int, width: int, conv: nn.Conv2d) -> Tensor:
    """What each pixel of the (N, C', height, width) product sees of `x`: (rows, kernel height * kernel width * C)."""
    edge, stride, kernel = int(conv.padding[0]), conv.stride[0], conv.kernel_size[0]
    padded = F.pad(x, (edge, edge, edge, edge)).permute(0, 2, 3, 1).contiguous()
    image, row, column, _ = padded.stride()
    strides = (image, row * stride, column * stride, row, column, 1)
    shape = (len(x), height, width, kernel, kernel, x.shape[1])
    return padded.as_strided(shape, strides).reshape(len(x) * height * width, -1)
