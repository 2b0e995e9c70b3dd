"""The optional kernels: whether they are installed, and whether this process uses them.

`resim/kernels/` may be missing: everything then runs in plain PyTorch, with other roundings in bfloat16, slower and in
more memory. A run's config chooses (`RunConfig.kernels`, `RunConfig.keep_memory`); the environment variables
RESIM_KERNELS and RESIM_KEEP_MEMORY override it.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

from resim.errors import UserError

Kernels = Literal["auto", "norms", "off"]
VARIABLES = ("RESIM_KERNELS", "RESIM_KEEP_MEMORY")


@dataclass
class _Switches:
    """Of this process: kernels are chosen where a network runs, far below the run's config."""

    kernels: Kernels = "auto"
    keep_memory: bool = True


_switches = _Switches()


def choose(*, kernels: Kernels, keep_memory: bool) -> None:
    """Set what this process uses from now on, unless the environment says otherwise.

    Args:
        kernels: auto: all that this machine can run; norms: on a CPU none of the kernels of products; off: none.
        keep_memory: whether `allocator` gives a module.
    """
    _switches.kernels, _switches.keep_memory = kernels, keep_memory


def chosen_kernels() -> Kernels:
    """What this process uses, the environment considered.

    Raises:
        UserError: RESIM_KERNELS is none of auto, norms, off.
    """
    value = os.environ.get("RESIM_KERNELS") or _switches.kernels
    if value not in ("auto", "norms", "off"):
        raise UserError(f"RESIM_KERNELS={value}: must be auto, norms or off")
    return cast(Kernels, value)


def is_memory_kept() -> bool:
    """Whether a process that trains on a CPU keeps the memory that it frees; the environment considered."""
    value = os.environ.get("RESIM_KEEP_MEMORY")
    return value != "0" if value else _switches.keep_memory


def kernels() -> Any | None:
    """The module `resim.kernels`; None where it is not installed or is switched off."""
    return None if chosen_kernels() == "off" else _installed()


def allocator() -> Any | None:
    """The module `resim.kernels`, for its functions of memory; None where it is missing or memory is not kept."""
    return _installed() if is_memory_kept() else None


def describe() -> dict[str, Any]:
    """What this process uses, for a run's config.json."""
    fast = kernels()
    overrides = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    used = fast.describe() if fast else "none: switched off" if _installed() else "none: resim.kernels is not installed"
    return {"kernels": used, "keep_memory": allocator() is not None} | ({"environment": overrides} if overrides else {})


@functools.cache
def _installed() -> ModuleType | None:
    try:
        import resim.kernels
    except ModuleNotFoundError as error:
        if error.name != "resim.kernels":
            raise
        return None
    return resim.kernels
