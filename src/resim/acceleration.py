"""The optional kernels: whether they are installed, and whether this process uses them.

The folder `resim/kernels/` may be missing. Everything then runs in plain PyTorch: slower, in more memory, and with
different rounding in bfloat16. A run's config selects what is used (`RunConfig.kernels`, `RunConfig.keep_memory`); the
environment variables RESIM_KERNELS and RESIM_KEEP_MEMORY override it.
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
    """The selection of this process, global because the networks that use the kernels have no access to the config."""

    kernels: Kernels = "auto"
    keep_memory: bool = True


_switches = _Switches()


def choose(*, kernels: Kernels, keep_memory: bool) -> None:
    """Select the kernels and the memory setting of this process. Environment variables take precedence.

    Args:
        kernels: auto: all kernels that this machine supports; norms: on a CPU only those of BatchNorm; off: none.
        keep_memory: whether a process that trains on a CPU keeps the memory that it frees.
    """
    _switches.kernels, _switches.keep_memory = kernels, keep_memory


def chosen_kernels() -> Kernels:
    """The kernels selected for this process; RESIM_KERNELS takes precedence.

    Raises:
        UserError: RESIM_KERNELS is not one of auto, norms, off.
    """
    value = os.environ.get("RESIM_KERNELS") or _switches.kernels
    if value not in ("auto", "norms", "off"):
        raise UserError(f"RESIM_KERNELS={value}: must be auto, norms or off")
    return cast(Kernels, value)


def is_memory_kept() -> bool:
    """Whether a process that trains on a CPU keeps the memory that it frees; RESIM_KEEP_MEMORY takes precedence."""
    value = os.environ.get("RESIM_KEEP_MEMORY")
    return value != "0" if value else _switches.keep_memory


def kernels() -> Any | None:
    """The module `resim.kernels`; None if it is not installed or is switched off."""
    return None if chosen_kernels() == "off" else _installed()


def allocator() -> Any | None:
    """The module `resim.kernels` for its memory functions; None if it is not installed or memory is not kept."""
    return _installed() if is_memory_kept() else None


def describe() -> dict[str, Any]:
    """A description of what this process uses, for a run's config.json."""
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
