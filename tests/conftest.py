"""What several test files need: one thread a process, and the data kept beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# small tensors gain nothing from threads, and on a busy machine these wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden numbers and photographs beside the repository; what needs them is skipped without them."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
