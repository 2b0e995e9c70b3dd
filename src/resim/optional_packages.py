"""Packages that resim needs for some commands only."""

from __future__ import annotations

import importlib
from typing import Any

from resim.errors import UserError


def import_optional(module: str, message: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: such as `onnx` or `detectron2.modeling`.
        message: what needs the package and how to install it, where the package is missing.

    Raises:
        UserError: the package is missing; or it is installed, and a module that it needs is missing or cannot be
            imported, which the error names.
    """
    found = find_optional(module)
    if found is None:
        raise UserError(message)
    return found


def find_optional(module: str) -> Any | None:
    """The module of an optional package, None where the package is missing.

    Raises:
        UserError: the package is installed and cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in (package, module):  # of a folder of that name, only the module is missing
            return None
        missing = error.name or str(error)
        raise UserError(
            f"{package} is installed but cannot be imported: it needs {missing}, which is missing: install {missing}, "
            f"or {package} again"
        ) from None
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{package} is installed but cannot be imported ({reason}): install {package} again") from None
