"""What several test files need: one thread a process, the golden data, and photographs where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# small tensors gain nothing from threads, and on a busy machine these wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def golden_data() -> Path:
    """The published program's numbers, which belong to the repository: without them the tests that need them fail."""
    folder = Path(__file__).resolve().parent / "golden"
    assert folder.is_dir(), f"{folder} is missing: it is a part of the repository"
    return folder


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Path:
    """Photographs in a folder next to the repository; a test that needs them is skipped where there are none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        fact = request.function.__name__.removeprefix("test_").replace("_", " ")
        pytest.skip(
            f"not verified: {fact}: no photographs in {folder / 'data'}, which are not a part of the repository"
        )
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
