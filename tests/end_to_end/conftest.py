"""The images of the real runs, and an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest

from end_to_end.runs import IMAGES, STEPS, Command, Run, pretrain_words, state
from resim.scenes.scenes import write_scenes


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small scenes."""
    folder = tmp_path_factory.mktemp("session-scenes") / "made"
    write_scenes(folder, IMAGES, seed=2, width=96, height=72)
    return folder / "images"


@pytest.fixture(scope="session")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went from the first step to the last."""
    out = tmp_path_factory.mktemp("session-uninterrupted") / "run"
    assert Run(Command(pretrain_words(images, out)), out).end().code == 0
    assert state(out)["step"] == STEPS
    return out
