"""The kernels of pointwise.c: a 1 x 1 convolution fused with the BatchNorms before and after it."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.build import product_kernels
from resim.kernels.cpu.layer import Layer, LayerOutput, Saved, like_weight

BLOCK = 256
"""Number of rows in a partial sum, as in pointwise.c."""
PARTS = 16
"""Number of parts of the rows; their moments are added in a fixed order."""
LANES = 32
"""The number of channels must be a multiple of this."""
HEAVIEST = 2**17
"""Largest number of weights for which these kernels are faster than one matrix product: they must fit into a core's
cache."""

_COUNTS = ("rows", "inputs", "outputs", "threads")
_FIELDS = {
    "forward": (
        ("x", "x_norm", "weight", "origin", "partial", "norm", "addend", "addend_norm", "out", "mask"), _COUNTS,
    ),
    "moments": (("x", "x_norm", "sums", "products"), ("rows", "channels", "parts", "threads")),
    "backward": (
        (
            "grad", "mask", "x", "norm", "slopes", "sums", "input", "input_norm", "weight", "correction", "constant",
            "grad_input", "addend", "addend_mask", "input_partial", "grad_weight",
        ), _COUNTS,
    ),
}  # fmt: skip
_STRUCTURES = {
    name: type(
        name,
        (ctypes.Structure,),
        {"_fields_": [*((n, ctypes.c_void_p) for n in tensors), *((n, ctypes.c_int64) for n in counts)]},
    )
    for name, (tensors, counts) in _FIELDS.items()
}


def _run(name: str, *, counts: dict[str, int], **tensors: Tensor | None) -> None:
    """Call the kernel `name`; tensors and counts are passed by the names of the fields of its structure."""
    addresses = {field: norms.address(tensor) for field, tensor in tensors.items()}
    arguments = _STRUCTURES[name](**addresses, **counts, threads=torch.get_num_threads())
    getattr(_library(), f"resim_pointwise_{name}")(ctypes.byref(arguments))


def _library() -> Any:
    return product_kernels()


def _dense(weight: Tensor) -> Tensor:
    """The weight as a dense matrix (outputs, inputs)."""
    return weight.flatten(1).contiguous()


def _pack_forward(weight: Tensor) -> Tensor:
    """Pack a weight (outputs, inputs) in bfloat16 for products with its transpose."""
    packed = torch.empty_like(weight)
    _library().resim_pointwise_pack(norms.address(weight), norms.address(packed), None, *weight.shape)
    return packed


def _pack_backward(weight: Tensor) -> Tensor:
    """Pack a weight (outputs, inputs) in bfloat16 for products with itself."""
    packed = torch.empty_like(weight)
    _library().resim_pointwise_pack(norms.address(weight), None, norms.address(packed), *weight.shape)
    return packed


class PointwiseLayer(Layer):
    """A 1 x 1 convolution of stride 1 that is fused with its neighbours: intermediate results stay in a core's cache.

    Computes the same as `Layer` up to rounding.
    """

    @staticmethod
    def fits(layer: Layer) -> bool:
        """Whether this layer can replace `layer` on this machine and is faster."""
        conv = layer.conv
        is_aligned = conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0
        return layer.pointwise and is_aligned and conv.weight.numel() <= HEAVIEST and product_kernels() is not None

    def _counts(self, x: Tensor) -> dict[str, int]:
        return {"rows": norms.shape(x)[0], "inputs": self.conv.in_channels, "outputs": self.conv.out_channels}

    def _grad_weight(self) -> tuple[Tensor, bool]:
        """Zeros for the weight gradient of each thread, and whether that is transposed: (inputs, outputs)."""
        inputs, outputs = self.conv.in_channels, self.conv.out_channels
        is_transposed = outputs >= inputs
        return norms.floats(
            torch.get_num_threads(), *((inputs, outputs) if is_transposed else (outputs, inputs))
        ).zero_(), is_transposed

    def forward(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> LayerOutput:
        """As `Layer.forward`."""
        counts, product = self._counts(x), self._empty_product(x)
        partial, origin = (
            norms.floats(-(-counts["rows"] // BLOCK), 2, counts["outputs"]),
            norms.floats(counts["outputs"]),
        )
        packed = _pack_forward(_dense(weight))
        _run("forward", counts=counts, x=x, x_norm=x_norm, weight=packed, origin=origin, partial=partial, out=product)
        return LayerOutput(norms.coefficients(partial, origin, counts["rows"], self.norm), product)

    def _empty_product(self, x: Tensor) -> Tensor:
        """An uninitialised tensor for the product."""
        shape = (len(x), self.conv.out_channels, *x.shape[2:])
        return torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)

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
        """As `Layer.backward`."""
        assert dz is None
        grad_weight, is_transposed = self._grad_weight()
        grad_x, partial = self._grad_input(
            saved, grad, x=saved.product, norm=saved.norm, slopes=slopes, weight=_pack_backward(_dense(saved.weight)),
            addend=addend, addend_mask=addend_mask, grad_weight=grad_weight,
        )  # fmt: skip
        total = grad_weight.sum(0)
        return grad_x, like_weight(total.t() if is_transposed else total, saved.weight), partial

    def _grad_input(self, saved: Saved, grad: Tensor, **tensors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradient of the input and, if the input was normalised, its partial sums."""
        counts, grad_x = self._counts(grad), torch.empty_like(saved.x)
        partial = None if saved.x_norm is None else norms.floats(-(-counts["rows"] // BLOCK), 2, counts["inputs"])
        _run(
            "backward", counts=counts, grad=grad, input=saved.x, input_norm=saved.x_norm, grad_input=grad_x,
            input_partial=partial, **tensors,
        )  # fmt: skip
        return grad_x, partial


class ClosingLayer(PointwiseLayer):
    """A 1 x 1 convolution whose normalised product enters the sum at the end of a block; the product is never stored.

    The product W x is linear in its input x. Its statistics follow from the moments of the input, which usually has
    fewer channels, and the backward pass through the normalisation becomes products with the input. Let C be the
    scatter matrix of the input, g the gradient of the normalised product, m the mean of g over rows, and a and c the
    slopes of g and of the product. Then

    - the product's mean is W mean(x), and its variance is the diagonal of W C W^T divided by the number of rows;
    - the gradient of W is a g^T (x - mean(x)) + c W C;
    - the gradient of x is a (g - m) W + c (x - mean(x)) W^T W.

    The error of the variance is about 1e-7 of the mean square of the input, and smaller with more rows.
    """

    def forward(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> LayerOutput:
        """As `Layer.forward`."""
        weight, product = _dense(weight), self._empty_product(x)
        norm, moments = self._statistics(x, x_norm, weight)
        _run("forward", counts=self._counts(x), x=x, x_norm=x_norm, weight=_pack_forward(weight), out=product)
        return LayerOutput(norm, product, moments)

    def finish(
        self, weight: Tensor, x: Tensor, x_norm: Tensor | None, addend: Tensor, addend_norm: Tensor | None
    ) -> tuple[Tensor, LayerOutput]:
        """As `Layer.finish`, without writing the product to memory."""
        weight = _dense(weight)
        norm, moments = self._statistics(x, x_norm, weight)
        out = torch.empty_like(addend) if addend_norm is None else addend
        mask = torch.empty(norms.shape(x)[0], self.conv.out_channels // LANES, dtype=torch.int32, device="cpu")
        _run(
            "forward", counts=self._counts(x), x=x, x_norm=x_norm, weight=_pack_forward(weight), norm=norm,
            addend=addend, addend_norm=addend_norm, out=out, mask=mask,
        )  # fmt: skip
        return out, LayerOutput(norm, None, moments, mask)

    def _statistics(self, x: Tensor, x_norm: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of the product, and the moments of the input as in `Saved`."""
        rows, inputs, _ = norms.shape(x)
        sums, products = norms.floats(PARTS, inputs).zero_(), norms.floats(PARTS, inputs, inputs).zero_()
        counts = {"rows": rows, "channels": inputs, "parts": PARTS}
        _run("moments", counts=counts, x=x, x_norm=x_norm, sums=sums, products=products)
        moments = norms.floats(1 + inputs, inputs)
        pointers = (norms.address(tensor) for tensor in (sums, products, moments))
        _library().resim_pointwise_scatter(*pointers, rows, inputs, PARTS)
        wide, partial = weight.float(), norms.floats(1, 2, len(weight)).zero_()
        torch.sum((wide @ moments[1:]).mul_(wide), 1, out=partial[0, 1])
        return norms.coefficients(partial, wide @ moments[0], rows, self.norm), moments

    def backward_sums(self, saved: Saved, grad: Tensor) -> tuple[Tensor, Saved]:
        """As `Layer.backward_sums`."""
        assert saved.moments is not None
        grad_weight, is_transposed = self._grad_weight()
        sums = norms.floats(torch.get_num_threads(), self.conv.out_channels).zero_()
        _run(
            "backward", counts=self._counts(grad), grad=grad, mask=saved.mask, sums=sums, input=saved.x,
            input_norm=saved.x_norm, grad_weight=grad_weight,
        )  # fmt: skip
        grad_sum, total = sums.sum(0), grad_weight.sum(0)
        centred = (total.t() if is_transposed else total) - torch.outer(grad_sum, saved.moments[0])
        partial = torch.stack([grad_sum, (_dense(saved.weight) * centred).sum(1)])[None]
        return partial, replace(saved, grad_sum=grad_sum, grad_weight=centred)

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
        """As `Layer.backward`."""
        assert dz is None
        assert saved.moments is not None
        assert saved.grad_weight is not None
        assert saved.grad_sum is not None
        mean, scatter = saved.moments[0], saved.moments[1:]
        weight = _dense(saved.weight).float()
        of_grad, of_product = slopes[0, :, None], slopes[1, :, None] * weight
        grad_weight = (of_grad * saved.grad_weight).addmm_(of_product, scatter)
        through, correction = (of_grad * weight).to(grad.dtype), (weight.t() @ of_product).to(grad.dtype)
        constant = (saved.grad_sum / -norms.shape(grad)[0]) @ through.float() - mean @ correction.float()
        grad_x, partial = self._grad_input(
            saved, grad, mask=saved.mask, weight=_pack_backward(through), correction=_pack_backward(correction),
            constant=constant, addend=addend, addend_mask=addend_mask,
        )  # fmt: skip
        return grad_x, like_weight(grad_weight, saved.weight), partial
