"""The kernels of pointwise.c: a 1 x 1 convolution between two BatchNorms, with few passes over memory."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.build import product_kernels
from resim.kernels.cpu.layer import Found, Layer, Seen, like_weight

BLOCK = 256
"""Rows of a partial sum, as in pointwise.c."""
PARTS = 16
"""Of the rows, whose moments are added up in order."""
LANES = 32
"""Channels are a multiple of it."""
HEAVIEST = 2**17
"""Weights up to which these kernels are quicker than products of whole matrices: a core's cache must hold them."""

_COUNTS = ("rows", "inputs", "outputs", "threads")
_FIELDS = {
    "forward": (
        ("x", "x_norm", "weight", "origin", "partial", "norm", "beside", "beside_norm", "out", "passed"), _COUNTS,
    ),
    "moments": (("x", "x_norm", "sums", "products"), ("rows", "channels", "parts", "threads")),
    "backward": (
        (
            "grad", "passed", "x", "norm", "slopes", "sums", "input", "input_norm", "weight", "correction", "constant",
            "grad_input", "beside", "beside_passed", "input_partial", "grad_weight",
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
    """The kernel of that name on tensors and counts, by the names of its structure's fields."""
    addresses = {field: norms.address(tensor) for field, tensor in tensors.items()}
    arguments = _STRUCTURES[name](**addresses, **counts, threads=torch.get_num_threads())
    getattr(_library(), f"resim_pointwise_{name}")(ctypes.byref(arguments))


def _library() -> Any:
    return product_kernels()


def _dense(weight: Tensor) -> Tensor:
    """(outputs, inputs)."""
    return weight.flatten(1).contiguous()


def _pack_forward(weight: Tensor) -> Tensor:
    """(outputs, inputs) bfloat16 as products with its transpose read it."""
    packed = torch.empty_like(weight)
    _library().resim_pointwise_pack(norms.address(weight), norms.address(packed), None, *weight.shape)
    return packed


def _pack_backward(weight: Tensor) -> Tensor:
    """(outputs, inputs) bfloat16 as products with it read it."""
    packed = torch.empty_like(weight)
    _library().resim_pointwise_pack(norms.address(weight), None, norms.address(packed), *weight.shape)
    return packed


class PointwiseLayer(Layer):
    """A 1 x 1 convolution of stride 1 whose input and output are made and used within a core's cache.

    The same results as `Layer` but for rounding.
    """

    @staticmethod
    def fits(layer: Layer) -> bool:
        """Whether it can stand, and pays, in the place of `layer` on this machine."""
        conv = layer.conv
        whole = conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0
        return layer.pointwise and whole and conv.weight.numel() <= HEAVIEST and product_kernels() is not None

    def _counts(self, of: Tensor) -> dict[str, int]:
        return {"rows": norms.shape(of)[0], "inputs": self.conv.in_channels, "outputs": self.conv.out_channels}

    def _grad_weight(self) -> tuple[Tensor, bool]:
        """Room for a gradient of each thread, and whether its rows are those of the inputs."""
        inputs, outputs = self.conv.in_channels, self.conv.out_channels
        turned = outputs >= inputs
        return norms.floats(
            torch.get_num_threads(), *((inputs, outputs) if turned else (outputs, inputs))
        ).zero_(), turned

    def forward(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> Found:
        """As `Layer.forward`."""
        counts, product = self._counts(x), self._room(x)
        partial, origin = (
            norms.floats(-(-counts["rows"] // BLOCK), 2, counts["outputs"]),
            norms.floats(counts["outputs"]),
        )
        packed = _pack_forward(_dense(weight))
        _run("forward", counts=counts, x=x, x_norm=x_norm, weight=packed, origin=origin, partial=partial, out=product)
        return Found(norms.coefficients(partial, origin, counts["rows"], self.norm), product)

    def _room(self, x: Tensor) -> Tensor:
        """For the product."""
        shape = (len(x), self.conv.out_channels, *x.shape[2:])
        return torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)

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
        """As `Layer.backward`."""
        assert dz is None
        grad_weight, turned = self._grad_weight()
        grad_x, partial = self._grad_input(
            seen, grad, x=seen.product, norm=seen.norm, slopes=slopes, weight=_pack_backward(_dense(seen.weight)),
            beside=beside, beside_passed=beside_passed, grad_weight=grad_weight,
        )  # fmt: skip
        found = grad_weight.sum(0)
        return grad_x, like_weight(found.t() if turned else found, seen.weight), partial

    def _grad_input(self, seen: Seen, grad: Tensor, **tensors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradient of the input, and, if that was normalised, its partial sums."""
        counts, grad_x = self._counts(grad), torch.empty_like(seen.x)
        partial = None if seen.x_norm is None else norms.floats(-(-counts["rows"] // BLOCK), 2, counts["inputs"])
        _run(
            "backward", counts=counts, grad=grad, input=seen.x, input_norm=seen.x_norm, grad_input=grad_x,
            input_partial=partial, **tensors,
        )  # fmt: skip
        return grad_x, partial


class ClosingLayer(PointwiseLayer):
    """One whose product enters the sum at the end of a block.

    A product is linear in its input. So its statistics are found from the moments of the input, which mostly has
    fewer channels, and its gradient passes the normalisation as products with the input do. With C the sums of the
    products of the input's deviations from its mean, gradients g of the normalised product, of mean m, and slopes a of
    g and c of the product:

    - the mean is W mean(x), the variance the diagonal of W C W^T over the number of rows;
    - the gradient of W is a g^T (x - mean(x)) + c W C;
    - the gradient of x is a (g - m) W + c (x - mean(x)) W^T W.

    Thus the product is made once, where it is added. The variance is exact to some 1e-7 of
    the input's mean square, more where there are more rows.
    """

    def forward(self, weight: Tensor, x: Tensor, x_norm: Tensor | None) -> Found:
        """As `Layer.forward`."""
        weight, product = _dense(weight), self._room(x)
        norm, moments = self._see(x, x_norm, weight)
        _run("forward", counts=self._counts(x), x=x, x_norm=x_norm, weight=_pack_forward(weight), out=product)
        return Found(norm, product, moments)

    def finish(
        self, weight: Tensor, x: Tensor, x_norm: Tensor | None, beside: Tensor, beside_norm: Tensor | None
    ) -> tuple[Tensor, Found]:
        """As `Layer.finish`; the product is never written."""
        weight = _dense(weight)
        norm, moments = self._see(x, x_norm, weight)
        out = torch.empty_like(beside) if beside_norm is None else beside
        passed = torch.empty(norms.shape(x)[0], self.conv.out_channels // LANES, dtype=torch.int32, device="cpu")
        _run(
            "forward", counts=self._counts(x), x=x, x_norm=x_norm, weight=_pack_forward(weight), norm=norm,
            beside=beside, beside_norm=beside_norm, out=out, passed=passed,
        )  # fmt: skip
        return out, Found(norm, None, moments, passed)

    def _see(self, x: Tensor, x_norm: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The product's coefficients, and the input's moments as in `Seen`."""
        rows, inputs, _ = norms.shape(x)
        sums, products = norms.floats(PARTS, inputs).zero_(), norms.floats(PARTS, inputs, inputs).zero_()
        counts = {"rows": rows, "channels": inputs, "parts": PARTS}
        _run("moments", counts=counts, x=x, x_norm=x_norm, sums=sums, products=products)
        moments = norms.floats(1 + inputs, inputs)
        pointers = (norms.address(tensor) for tensor in (sums, products, moments))
        _library().resim_pointwise_spread(*pointers, rows, inputs, PARTS)
        wide, partial = weight.float(), norms.floats(1, 2, len(weight)).zero_()
        torch.sum((wide @ moments[1:]).mul_(wide), 1, out=partial[0, 1])
        return norms.coefficients(partial, wide @ moments[0], rows, self.norm), moments

    def backward_sums(self, seen: Seen, grad: Tensor) -> tuple[Tensor, Seen]:
        """As `Layer.backward_sums`."""
        assert seen.moments is not None
        grad_weight, turned = self._grad_weight()
        sums = norms.floats(torch.get_num_threads(), self.conv.out_channels).zero_()
        _run(
            "backward", counts=self._counts(grad), grad=grad, passed=seen.passed, sums=sums, input=seen.x,
            input_norm=seen.x_norm, grad_weight=grad_weight,
        )  # fmt: skip
        sum_, found = sums.sum(0), grad_weight.sum(0)
        deviating = (found.t() if turned else found) - torch.outer(sum_, seen.moments[0])
        partial = torch.stack([sum_, (_dense(seen.weight) * deviating).sum(1)])[None]
        return partial, replace(seen, grad_sum=sum_, grad_weight=deviating)

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
        """As `Layer.backward`."""
        assert dz is None
        assert seen.moments is not None
        assert seen.grad_weight is not None
        assert seen.grad_sum is not None
        mean, spread = seen.moments[0], seen.moments[1:]
        weight = _dense(seen.weight).float()
        of_grad, of_product = slopes[0, :, None], slopes[1, :, None] * weight
        grad_weight = (of_grad * seen.grad_weight).addmm_(of_product, spread)
        through, correction = (of_grad * weight).to(grad.dtype), (weight.t() @ of_product).to(grad.dtype)
        constant = (seen.grad_sum / -norms.shape(grad)[0]) @ through.float() - mean @ correction.float()
        grad_x, partial = self._grad_input(
            seen, grad, passed=seen.passed, weight=_pack_backward(through), correction=_pack_backward(correction),
            constant=constant, beside=beside, beside_passed=beside_passed,
        )  # fmt: skip
        return grad_x, like_weight(grad_weight, seen.weight), partial
