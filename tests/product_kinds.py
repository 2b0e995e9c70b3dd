"""The product kernels for this processor and, if it has AMX tiles, those for processors without."""

from __future__ import annotations

import ctypes
import functools
import os

import pytest

from resim.kernels.cpu import pointwise, weight_grad
from resim.kernels.cpu.build import WITHOUT_TILES, _processor, compile_kernels, product_kernels

NO_PRODUCTS = (
    "not verified: the C kernels of bfloat16 products compute what PyTorch computes: a C compiler and a processor with "
    "instructions for bfloat16 (AVX512_BF16 or AMX) are needed"
)
NO_TILES = (
    "not verified: on a processor with AMX, the C kernels of products are correct without its tiles: AMX is needed"
)
needs_products = pytest.mark.skipif(product_kernels() is None, reason=NO_PRODUCTS)
HAS_TILES = "amx_tile" in " ".join(_processor()).split()
PRODUCTS = [
    pytest.param("products", marks=needs_products),
    pytest.param("without tiles", marks=pytest.mark.skipif(not HAS_TILES, reason=NO_TILES)),
]


@functools.cache
def _without_tiles() -> ctypes.CDLL | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", " ".join([os.environ.get("CC") or "cc", *WITHOUT_TILES]))
        return compile_kernels.__wrapped__()


def use(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the product kernels of this kind of PRODUCTS, or none for any other kind."""
    if kind != "products":
        library = _without_tiles() if kind == "without tiles" else None
        for module in (pointwise, weight_grad):
            monkeypatch.setattr(module, "product_kernels", lambda: library)
