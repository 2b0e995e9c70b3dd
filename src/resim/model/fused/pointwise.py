"""The kernels of pointwise.c: a 1 x 1 convolution between two BatchNorms, with few passes over memory."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from resim.model.fused import norm as norms
from resim.model.fused.build import pointwise_kernels
from resim.model.fused.layer import Layer, Seen, like_weight

BLOCK = 256
"""Rows of a partial sum, as in pointwise.c."""
LANES = 32
"""Channels are a multiple of it."""
HEAVIEST = 2**17
"""Weights up to which these kernels are quicker than products of whole matrices: a core's cache must hold them."""

_COUNTS = ("rows", "inputs", "outputs", "threads")
_FORWARD = ("x", "x_norm", "weight", "origin", "partial", "norm", "beside", "beside_norm", "out", "passed")
_BACKWARD = (
    "grad", "passed", "x", "norm", "slopes", "partial", "input", "input_norm", "forward", "backward", "grad_input",
    "beside", "beside_passed", "input_partial", "grad_weight",
)  # fmt: skip


def _fields(tensors: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [*((name, ctypes.c_void_p) for name in tensors), *((name, ctypes.c_int64) for name in _COUNTS)]


class _Forward(ctypes.Structure):
    _fields_ = _fields(_FORWARD)


class _Backward(ctypes.Structure):
    _fields_ = _fields(_BACKWARD)


class PointwiseLayer(Layer):
    """A 1 x 1 convolution of stride 1 whose products are made and used within a core's cache, and rarely kept.

    The same results as `Layer` but for rounding: products that are not kept are not rounded to bfloat16.
    """

    @staticmethod
    def fits(layer: Layer) -> bool:
        """Whether it can stand, and pays, in the place of `layer` on this machine."""
        conv = layer.conv
        whole = conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0
        return layer.pointwise and whole and conv.weight.numel() <= HEAVIEST and pointwise_kernels() is not None

    def _run(self, direction: str, of: Tensor, /, **tensors: Tensor | None) -> None:
        library: Any = pointwise_kernels()
        inputs, outputs = self.conv.in_channels, self.conv.out_channels
        counts = dict(zip(_COUNTS, (norms.shape(of)[0], inputs, outputs, torch.get_num_threads()), strict=True))
        structure = _Forward if direction == "forward" else _Backward
        arguments = structure(**{name: norms.address(tensor) for name, tensor in tensors.items()}, **counts)
        getattr(library, f"resim_pointwise_{direction}")(ctypes.byref(arguments))

    def _packed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight as products forward and backward read it."""
        library: Any = pointwise_kernels()
        weight = weight.flatten(1).contiguous()
        forward, backward = torch.empty_like(weight), torch.empty_like(weight)
        library.resim_pointwise_pack(*(norms.address(t) for t in (weight, forward, backward)), *weight.shape)
        return forward, backward

    def _partial(self, x: Tensor, channels: int) -> Tensor:
        return norms.floats(-(-norms.shape(x)[0] // BLOCK), 2, channels)

    def _see(self, x: Tensor, x_norm: Tensor | None, weight: Tensor, product: Tensor | None) -> Tensor:
        """The product's coefficients; it is written into `product` where that is given."""
        outputs = self.conv.out_channels
        partial, origin = self._partial(x, outputs), norms.floats(outputs)
        self._run("forward", x, x=x, x_norm=x_norm, weight=weight, origin=origin, partial=partial, out=product)
        return norms.coefficients(partial, origin, norms.shape(x)[0], self.norm)

    def forward(self, x: Tensor, x_norm: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `Layer.forward`."""
        n, _, h, w = x.shape
        shape = (n, self.conv.out_channels, h, w)
        product = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
        weight, _ = self._packed(self.conv.weight.to(x.dtype))
        return product, self._see(x, x_norm, weight, product)

    def finish(
        self, x: Tensor, x_norm: Tensor | None, beside: Tensor, beside_norm: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """As `Layer.finish`; the product is made twice and never written."""
        weight, _ = self._packed(self.conv.weight.to(x.dtype))
        norm = self._see(x, x_norm, weight, None)
        out = torch.empty_like(beside)
        passed = torch.empty(norms.shape(x)[0], self.conv.out_channels // LANES, dtype=torch.int32, device="cpu")
        self._run(
            "forward", x, x=x, x_norm=x_norm, weight=weight, norm=norm, beside=beside, beside_norm=beside_norm, out=out,
            passed=passed,
        )  # fmt: skip
        return out, norm, None, passed

    def backward_sums(self, seen: Seen, grad: Tensor) -> tuple[Tensor, Seen]:
        """As `Layer.backward_sums`; the product is not kept."""
        forward, _ = self._packed(seen.weight)
        partial = self._partial(grad, self.conv.out_channels)
        self._run(
            "backward", grad, grad=grad, passed=seen.passed, x=seen.product, norm=seen.norm, partial=partial,
            input=seen.x, input_norm=seen.x_norm, forward=forward,
        )  # fmt: skip
        return partial, seen

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
        inputs, outputs = self.conv.in_channels, self.conv.out_channels
        forward, backward = self._packed(seen.weight)
        grad_x = torch.empty_like(seen.x)
        partial = None if seen.x_norm is None else self._partial(grad, inputs)
        turned = outputs >= inputs
        shape = (inputs, outputs) if turned else (outputs, inputs)
        of_weight = norms.floats(torch.get_num_threads(), *shape).zero_()
        self._run(
            "backward", grad, grad=grad, passed=seen.passed, x=seen.product, norm=seen.norm, slopes=slopes,
            input=seen.x, input_norm=seen.x_norm, forward=forward, backward=backward, grad_input=grad_x, beside=beside,
            beside_passed=beside_passed, input_partial=partial, grad_weight=of_weight,
        )  # fmt: skip
        grad_weight = of_weight.sum(0)
        return grad_x, like_weight(grad_weight.t() if turned else grad_weight, seen.weight), partial
