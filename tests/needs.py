"""What not every machine has: a test that needs it is skipped without it, and says which fact stays unverified."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from resim.kernels.cpu.build import kernels

needs_kernels = pytest.mark.skipif(
    kernels() is None, reason="not verified: the C kernels compute what PyTorch computes: install a C compiler (cc)"
)
needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="not verified: freed memory is kept for the next step: Linux with glibc only",
)


def need(module: str, fact: str, install: str) -> Any:
    """The module, or a skip with the fact that stays unverified and what to install: an extra, or a whole line."""
    line = f"pip install '.[{install}]'" if install.isidentifier() or "-" in install else install
    return pytest.importorskip(module, reason=f"not verified: {fact}: {line}")
