"""A record of what ran: versions, the state of the source, the command."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from resim.version import __version__

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "timm")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result."""
    numbers = {"resim": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that contains `folder`, and whether files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def describe_run() -> dict[str, Any]:
    """The command, the versions, and the git state of the package's source and of the working folder."""
    return {
        "command": sys.argv,
        "versions": versions(),
        "git": {"package": git_state(Path(__file__).parent), "working_folder": git_state(Path.cwd())},
    }
