"""The layer that residual.py composes: a convolution and its BatchNorm, forward and backward.

Shapes: maps are (N, C, H, W), bfloat16 in channels-last memory; their rows are (N * H * W, C) in the same memory.

The input of a layer is the product of the layer before. With coefficients `x_norm` it is first normalised by them and
goes through a ReLU; without, the convolution reads it directly. The output of the convolution is called the product; it
is stored before its normalisation, with the coefficients `norm` of its BatchNorm.
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
"""Up to this many rows, `times` splits a product, which is faster than one call of PyTorch."""
UNFOLDED = 2**21
"""From this many weights on, a k x k convolution is faster as a product of matrices (im2col)."""


def rows_of(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """(N * H * W, C) -> (N, C, H, W), with the N, H and W of `like`."""
    n, _, h, w = like.shape
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows (R, K) @ matrix (K, N), in two halves if there are few rows and K is large against N."""
    k, n = matrix.shape
    if len(rows) > FEW or k < 4 * n:
        return rows @ matrix
    return torch.cat([rows @ part for part in matrix.chunk(2, dim=1)], dim=1)


def like_weight(grad: Tensor, weight: Tensor) -> Tensor:
    """(outputs, inputs) -> the shape and, if they are dense, the strides of a 1 x 1 convolution's weight."""
    grad = grad.contiguous()
    if weight.stride()[:2] == grad.stride():
        return grad.as_strided(weight.shape, weight.stride())
    return grad.view_as(weight)


@dataclass(frozen=True)
class LayerOutput:
    """The results of a layer's forward pass."""

    norm: Tensor
    """(4, C) coefficients of the product's normalisation."""
    product: Tensor | None
    """None: not stored."""
    moments: Tensor | None = None
    """As in `Saved`."""
    mask: Tensor | None = None
    """As in `Saved`."""


@dataclass(frozen=True)
class Saved:
    """The tensors that a layer's backward pass needs."""

    weight: Tensor
    """The convolution's weight in bfloat16."""
    x: Tensor
    """The layer's input."""
    x_norm: Tensor | None
    """(4, C) coefficients that normalise the input, before a ReLU; None: neither."""
    norm: Tensor
    """(4, C) coefficients of the product's normalisation."""
    product: Tensor | None = None
    """None: recomputed, or not needed."""
    moments: Tensor | None = None
    """(1 + inputs, inputs): the mean of the convolution's input, and its scatter matrix (sums over rows of the products
    of deviations from the mean)."""
    grad_sum: Tensor | None = None
    """(outputs,): the sum over rows of dz, the gradient of the sum before the ReLU."""
    grad_weight: Tensor | None = None
    """(outputs, inputs): the sum over rows of the products of dz with the input's deviations from its mean."""
    y: Tensor | None = None
    """The output of the ReLU after the block's sum; None: no sum, and the ReLU's output is recomputed."""
    mask: Tensor | None = None
    """`y` > 0 as bits: (rows, C / 32) int32."""


@dataclass(frozen=True)
class Layer:
    """A convolution and its BatchNorm; PyTorch computes the convolution, a 1 x 1 one as a product of matrices."""

    conv: nn.Conv2d
    norm: GroupedBatchNorm2d

    @property
    def pointwise(self) -> bool:
        """Whether the convolution is a product of matrices over all pixels: 1 x 1, stride 1, no groups."""
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
            product = times(rows, weight.permute(0, 2, 3, 1).flatten(1).t())
            return product.view(len(hidden), height, width, -1).permute(0, 3, 1, 2)
        padding: Any = conv.padding
        y = torch.conv2d(hidden, weight, None, conv.stride, padding, conv.dilation, conv.groups)
        return y.contiguous(memory_format=torch.channels_last)

    def forward(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> LayerOutput:
        """Compute the product and its coefficients; `weight` is that of the convolution in bfloat16."""
        product = self._convolve(weight, x, x_norm)
        partial, origin = norms.partial_sums(product)
        return LayerOutput(norms.coefficients(partial, origin, norms.shape(product)[0], self.norm), product)

    def finish(
        self, weight: Tensor, x: Tensor, x_norm: Tensor | None, addend: Tensor, addend_norm: Tensor | None
    ) -> tuple[Tensor, LayerOutput]:
        """Compute the block's output: ReLU(normalised product + addend), the addend normalised if it has coefficients.

        An addend with coefficients may be overwritten. The product is stored unless recomputing it is cheap (1 x 1).
        """
        result = self.forward(weight, x, x_norm)
        assert result.product is not None
        is_cheap = self.pointwise
        out = norms.normalize(result.product, result.norm, addend=addend, addend_norm=addend_norm, inplace=is_cheap)
        return out, replace(result, product=None) if is_cheap else result

    def backward_sums(self, saved: Saved, grad: Tensor) -> tuple[Tensor, Saved]:
        """Partial sums of the gradient of the normalised product, and `saved` completed for `backward`."""
        if saved.product is None:
            saved = replace(saved, product=self._convolve(saved.weight, saved.x, saved.x_norm))
        assert saved.product is not None
        return norms.partial_backward_sums(grad, saved.product, saved.norm, saved.y), saved

    def backward(
        self,
        saved: Saved,
        grad: Tensor,
        slopes: Tensor,
        *,
        dz: Tensor | None = None,
        addend: Tensor | None = None,
        addend_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the gradients of the layer's input and weight.

        Args:
            saved: the result of `backward_sums`, if that was called; a product recomputed there is overwritten.
            grad: gradient of the ReLU's output; overwritten if `saved.y` is None.
            slopes: (3, C) coefficients of the normalisation's backward pass.
            dz: receives the gradient of the sum before the ReLU; None: not needed.
            addend: added to the gradient of the input; may be overwritten with the result.
            addend_mask: bits of the positions where `addend` counts; None: everywhere.

        Returns:
            The gradients of the input and of the weight, and, if the input was normalised, the partial sums of the
            input's gradient for its BatchNorm.
        """
        assert saved.product is not None
        assert addend_mask is None  # only a PointwiseLayer stores a mask
        out = grad
        if saved.y is not None:  # then grad is shared, and so is a stored product; a 1 x 1 one was recomputed
            out = saved.product if self.pointwise else torch.empty_like(grad)
        grad_weight = self._pass_norm(saved, grad, slopes, out, dz)
        grad_x = self._input_grad(saved.weight, out, saved.x, addend)
        partial = None if saved.x_norm is None else norms.partial_backward_sums(grad_x, saved.x, saved.x_norm)
        return grad_x, grad_weight, partial

    def _pass_norm(self, saved: Saved, grad: Tensor, slopes: Tensor, out: Tensor, dz: Tensor | None) -> Tensor:
        """Write the product's gradient to `out` and that of the sum before the ReLU to `dz`; return the weight's."""
        assert saved.product is not None
        norms.normalize_backward(grad, saved.product, saved.norm, slopes, saved.y, out=out, dz=dz)
        hidden = saved.x if saved.x_norm is None else norms.normalize(saved.x, saved.x_norm)
        if self.pointwise:
            return like_weight(rows_of(out).t() @ rows_of(hidden), saved.weight)
        return convolution_gradients(self.conv, out, hidden, saved.weight, [False, True, False])[1]

    def _input_grad(self, weight: Tensor, grad: Tensor, x: Tensor, addend: Tensor | None) -> Tensor:
        """The gradient of the input, from `grad`, that of the product, plus `addend`."""
        if not self.pointwise:
            grad_x = convolution_gradients(self.conv, grad, x, weight, [True, False, False])[0]
            grad_x = grad_x.contiguous(memory_format=torch.channels_last)
            return grad_x if addend is None else addend.add_(grad_x)
        if addend is None:
            return maps_of(times(rows_of(grad), weight.flatten(1)), x)
        rows_of(addend).addmm_(rows_of(grad), weight.flatten(1))
        return addend


def convolution_gradients(conv: nn.Conv2d, grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> list[Tensor]:
    """The gradients of a convolution's input `x`, weight and bias by PyTorch, of which `needed` selects some."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, needed
    )


def _neighbours(x: Tensor, height: int, width: int, conv: nn.Conv2d) -> Tensor:
    """im2col: the inputs of each pixel of the (N, C', height, width) product: (rows, kernel * kernel * C)."""
    edge, stride, kernel = int(conv.padding[0]), conv.stride[0], conv.kernel_size[0]
    padded = F.pad(x, (edge, edge, edge, edge)).permute(0, 2, 3, 1).contiguous()
    image, row, column, _ = padded.stride()
    strides = (image, row * stride, column * stride, row, column, 1)
    shape = (len(x), height, width, kernel, kernel, x.shape[1])
    return padded.as_strided(shape, strides).reshape(len(x) * height * width, -1)
