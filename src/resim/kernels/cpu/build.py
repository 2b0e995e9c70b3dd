"""Compile the C kernels of this folder for this machine on first use, into the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from resim.acceleration import chosen_kernels

FLAGS = (
    "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared",
    "-fPIC",
)  # fmt: skip
WITHOUT_TILES = ("-mno-amx-tile", "-mno-amx-bf16")
"""For processors without AMX, and for processes that the system does not allow to use it."""
_BF16 = {"avx512_bf16", "avx512bw"}
_P, _I, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_F = ctypes.c_double
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "resim_norm_sums": (_P, _P, _P, _I, _I, _INT),
    "resim_norm_coefficients": (_P, _P, _P, _P, _F, _P, _P, _I, _I, _I),
    "resim_norm_apply": (_P, _P, _P, _P, _P, _I, _I, _INT),
    "resim_norm_backward_sums": (_P, _P, _P, _P, _P, _I, _I, _INT),
    "resim_norm_slopes": (_P, _P, _P, _P, _I, _I, _I),
    "resim_norm_pool": (_P, _P, _P, _P, _I, _I, _I, _I, _INT),
    "resim_norm_pool_backward": (_P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _INT),
    "resim_norm_backward": (_P, _P, _P, _P, _P, _P, _P, _I, _I, _INT),
}
_PRODUCTS: dict[str, tuple[Any, ...]] = {
    "resim_pointwise_pack": (_P, _P, _P, _I, _I),
    "resim_pointwise_forward": (_P,),
    "resim_pointwise_moments": (_P,),
    "resim_pointwise_scatter": (_P, _P, _P, _I, _I, _I),
    "resim_pointwise_backward": (_P,),
    "resim_weight_grad_space": (_P,),
    "resim_weight_grad": (_P,),
    "resim_stem_weight_grad_space": (_P,),
    "resim_stem_weight_grad": (_P,),
}


def kernels() -> ctypes.CDLL | None:
    """The library of kernels; None if they are switched off or cannot be compiled."""
    return None if chosen_kernels() == "off" else compile_kernels()


@functools.cache
def compile_kernels() -> ctypes.CDLL | None:
    """The library of kernels, compiled or from the cache; None without a C compiler or outside of Linux."""
    if not sys.platform.startswith("linux"):
        return None
    names = ("norm.c", "pointwise.c", "weight_grad.c")
    builds = [(names, ()), (names, WITHOUT_TILES)] if _has_bf16() else []
    for names, extra_flags in [*builds, (("norm.c",), ())]:
        library = _load(names, extra_flags)
        if library is not None and (len(names) == 1 or _are_products_allowed(library)):
            return library
    return None


def _load(names: tuple[str, ...], extra_flags: tuple[str, ...]) -> ctypes.CDLL | None:
    for rebuild in (False, True):  # the cached library may be damaged
        try:
            library = ctypes.CDLL(str(_build(names, extra_flags, rebuild=rebuild)))
            _declare(library, _SIGNATURES | (_PRODUCTS if len(names) > 1 else {}))
        except subprocess.SubprocessError:
            break
        except (OSError, RuntimeError, AttributeError, ValueError):  # no compiler, no home, not a command, a full disk
            continue
        return library
    return None


def _are_products_allowed(library: ctypes.CDLL) -> bool:
    """Whether the system allows this process to use the instructions of the product kernels (AMX tiles)."""
    return bool(library.resim_products_allowed())


def product_kernels() -> ctypes.CDLL | None:
    """The library of kernels if it contains those of products and they are not switched off, else None.

    Product kernels need a processor with bfloat16 instructions (AVX-512 or AMX).
    """
    library = kernels()
    has_products = library is not None and hasattr(library, "resim_products_allowed")
    return library if has_products and chosen_kernels() == "auto" else None


def _declare(library: ctypes.CDLL, signatures: dict[str, tuple[Any, ...]]) -> None:
    for name, types in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, _I if name.endswith("_space") else None


def _build(names: tuple[str, ...], extra_flags: tuple[str, ...], *, rebuild: bool) -> Path:
    """The path of the shared library of these sources; compiled if it is not cached, or if `rebuild` is set."""
    sources = [Path(__file__).with_name(name) for name in names]
    compiler = shlex.split(os.environ.get("CC") or "cc")
    flags = [*FLAGS, *extra_flags, *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else [])]
    # link PyTorch's own OpenMP (GCC's): a second one would run a second set of threads on the same cores
    openmp = [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]]
    texts = [file.read_text() for file in (*sources, Path(__file__).with_name("lanes.h"))]
    inputs = [*texts, *compiler, *flags, *openmp, *_processor()]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resim"
    target = cache / f"kernels-{key}.so"
    if rebuild or not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            library = Path(folder) / target.name
            command = [*compiler, *flags, *map(str, sources), "-o", str(library), *openmp, "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            with library.open("rb") as file:
                os.fsync(file.fileno())
            library.replace(target)
    return target


@functools.cache
def _processor() -> tuple[str, ...]:
    """The name and the instruction sets of the processor that the kernels are compiled for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (platform.processor(),)
    return tuple(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _has_bf16() -> bool:
    return set(" ".join(_processor()).split()) >= _BF16
