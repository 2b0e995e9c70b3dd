"""Fixtures of several rooms: one thread for each process, no flushing of files, the golden data, photographs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

# small tensors gain nothing from threads, and on a busy machine these wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
FREE_GB = 4  # that the suite may need for temporary files at a time


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored() -> None:
    """Tests, and the processes that they start, receive what `nohup` and a shell's background ignore."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(scope="module", autouse=True)
def what_a_file_shared_is_removed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """After a file without failures its folders are removed: those of the whole suite together are gigabytes."""
    base, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    before = set(base.iterdir())
    yield
    if request.session.testsfailed == failed:
        for folder in set(base.iterdir()) - before:
            if not folder.name.startswith("session"):  # of several files
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are not flushed to the disk: no test cuts the machine's power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def a_run_of_one_test_has_no_curves() -> Iterator[None]:
    """Curves, which take longer than the run of a single test, are drawn only for runs that several tests share."""

    def draw_nothing(metrics: Path, out: Path, *, title: str = "") -> Path:
        Image.new("L", (8, 8)).save(out)
        return out

    # not the fixture `monkeypatch`, which is undone before the folder of the test is removed
    with pytest.MonkeyPatch.context() as patch:
        for name in ("resim.training.pretrain", "resim.detection.train"):
            if name in sys.modules:
                patch.setattr(sys.modules[name], "draw_curves", draw_nothing)
        yield


@pytest.fixture(scope="module")
def thin_resnets() -> Iterator[None]:
    """All of a file's ResNets have a quarter of the channels."""
    from thin_resnets import ThinResNet, resnets_of  # imports torch

    with resnets_of(ThinResNet):
        yield


@pytest.fixture
def full_resnets() -> Iterator[None]:
    """In a file of thin ResNets, those of one test have all channels."""
    from torchvision.models import ResNet  # torchvision.models.resnet has the thin one

    from thin_resnets import resnets_of

    with resnets_of(ResNet):
        yield


@pytest.fixture(scope="module")
def thin_resnets_without_detectron2() -> Iterator[None]:
    """All of a file's ResNets are thin, unless Detectron2 is installed, which loads only those with all channels."""
    from torchvision.models import ResNet

    from thin_resnets import ThinResNet, resnets_of

    with resnets_of(ResNet if importlib.util.find_spec("detectron2") else ThinResNet):
        yield


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
    """Run the longest tests first, so that parallel processes end at about the same time."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)


def pytest_report_header() -> str:
    """The place of the temporary files: where it is full, whatever a test writes fails."""
    return f"temporary files: {tempfile.gettempdir()}, {_free_gb():.1f} GB free"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name the likely cause of failures on a disk that is almost full, also after an internal error of pytest."""
    free = _free_gb()
    if free < FREE_GB and not hasattr(session.config, "workerinput"):
        print(f"\nOnly {free:.1f} GB are free in {tempfile.gettempdir()}: the suite needs up to {FREE_GB} GB there.")


def _free_gb() -> float:
    return shutil.disk_usage(tempfile.gettempdir()).free / 1e9
