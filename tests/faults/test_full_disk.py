"""A full disk while pictures, reports, weights, scores and tables are written: one line that names the file.

Files end after some kilobytes (RLIMIT_FSIZE), so that a write fails halfway as on a full disk, or are /dev/full.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from records import Row, append_rows, read_rows

from end_to_end.conftest import images
from end_to_end.runs import RECIPE, SETTINGS, state
from resim.cli.main import main
from resim.errors import WriteError
from resim.exit_codes import FINISHED, USER_ERROR
from resim.runs.pictures import Pictures
from resim.scenes.scenes import write_scenes

__all__ = ["images"]
pytestmark = pytest.mark.slow
Captured = pytest.CaptureFixture[str]
STEPS = 2
DETECTOR = (
    "--recipe quick --backbone resnet18 --fpn-width 16 --rpn-regions 16 --box-regions 16 --proposals-train 30 "
    "--proposals-test 20 --min-sizes 64 --max-size 128 --test-size 64 --batch-size 2 --drops --warmup-steps 0 "
    f"--steps {STEPS} --device cpu --precision float32 --workers 0 --log-every 1"
).split()


@contextlib.contextmanager
def files_end_after(size: int) -> Iterator[None]:
    """While inside, no file can be written beyond this many bytes.

    Nor is bytecode, of which Python would keep the beginning, and fail at every later import of the module.
    """
    before, no_bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = no_bytecode


@pytest.fixture(scope="module", autouse=True)
def thin(thin_resnets: None) -> None:
    """Networks have a quarter of the channels."""


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["pretrain", str(images), "--out", str(out), *RECIPE, *SETTINGS, "--epochs", "1"]) == FINISHED
    return out


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("labels") / "made", 8, seed=2, width=96, height=72)


@pytest.fixture(scope="module")
def detector(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detector") / "run"
    words = ["detect", "train", str(labels), "--val", str(labels), "--out", str(out), *DETECTOR]
    assert main(words) == FINISHED
    return out


def test_pictures_that_cannot_be_written_do_not_end_a_pre_training(
    images: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Two epochs with a picture each, and curves: one line, and the weights of a run without the fault."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    words = [*RECIPE, *SETTINGS, "--epochs", "2", "--picture-every", "1"]
    assert main(["pretrain", str(images), "--out", str(whole), *words]) == FINISHED
    out.mkdir()
    (out / "pictures").write_text("a file, so that there is no folder of this name")
    capsys.readouterr()
    assert main(["pretrain", str(images), "--out", str(out), *words]) == FINISHED
    printed = capsys.readouterr()
    assert printed.out.count("the run goes on without this picture") == 1
    assert "2 pictures could not be written\n" in printed.out
    assert f"{out / 'pictures'}: cannot be written to" in printed.out
    ours, theirs = state(out)["model"], state(whole)["model"]
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    assert (out / "curves.png").exists()  # each is tried


def test_a_picture_of_a_training_is_reported_once() -> None:
    lines: list[str] = []

    def fail() -> None:
        raise WriteError("a.png: cannot be written (No space left on device)")

    pictures = Pictures(lines.append)
    assert [pictures.write(fail), pictures.write(fail), pictures.write(lambda: None)] == [False, False, True]
    assert (len(lines), pictures.num_lost) == (1, 2)
    assert lines[0].startswith("a.png: cannot be written (No space left on device): the run goes on")


def test_a_detectors_pictures_do_not_end_its_training(labels: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "pictures").write_text("a file")
    words = ["detect", "train", str(labels), "--val", str(labels), "--out", str(out), *DETECTOR, "--eval-every", "1"]
    assert main(words) == FINISHED
    printed = capsys.readouterr().out
    assert f"{out / 'pictures'}: cannot be written to" in printed
    assert printed.count("the run goes on without this picture") == 1  # of two evaluations
    assert "2 pictures could not be written\n" in printed
    assert len((out / "scores.jsonl").read_text().splitlines()) == 2


def test_tensorboards_file_on_a_full_disk(images: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "run"
    (out / "tensorboard").parent.mkdir()
    (out / "tensorboard").write_text("a file")
    words = ["pretrain", str(images), "--out", str(out), *RECIPE, *SETTINGS]
    assert main(words) == USER_ERROR
    line = capsys.readouterr().err
    assert line.startswith(f"resim pretrain: {out / 'tensorboard'}: cannot be written (")
    assert line.count("\n") == 1


TARGETS = {
    "torchvision": "a.pth", "torchvision-detection": "a.pth", "detectron2": "a.pkl", "timm": "a.pth",
    "safetensors": "a.safetensors", "hub": "a",
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ending", ["", ".safetensors", ".pth"])
def test_exported_weights(run: Path, target: str, ending: str, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / TARGETS[target]
    if ending:
        out = out.with_suffix(ending)
    capsys.readouterr()
    with files_end_after(20_000):
        code = main(["export", str(run), "--to", target, "--out", str(out)])
    line = capsys.readouterr().err
    if "must end in" in line:  # a format without this ending: nothing was written
        assert (code, list(tmp_path.iterdir())) == (USER_ERROR, [])
        return
    assert (code, line.count("\n")) == (USER_ERROR, 1), line
    assert line.startswith(f"resim export: {out}: cannot be written (")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_exported_detectors(detector: Path, ending: str, tmp_path: Path, capsys: Captured) -> None:
    out = (tmp_path / "a").with_suffix(ending)
    target = "torchvision-detection" if ending == ".pth" else "safetensors"
    capsys.readouterr()
    with files_end_after(20_000):
        code = main(["export", str(detector), "--to", target, "--out", str(out)])
    line = capsys.readouterr().err
    assert (code, line.count("\n")) == (USER_ERROR, 1), line
    assert line.startswith(f"resim export: {out}: cannot be written (")
    assert list(tmp_path.iterdir()) == []


def test_a_report(run: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "report.html"
    out.write_text("an earlier page")
    capsys.readouterr()
    with files_end_after(4_000):
        code = main(["report", str(run), "--out", str(out)])
    assert code == USER_ERROR
    assert capsys.readouterr().err == f"resim report: {out}: cannot be written (File too large)\n"
    assert out.read_text() == "an earlier page"
    assert list(tmp_path.iterdir()) == [out]


def test_probes(run: Path, images: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "probe.json"
    words = ["probe", str(run), str(images), "--unlabelled", "--pairs", "4", "--out", str(out), "--image-size", "64"]
    capsys.readouterr()
    with files_end_after(100):
        code = main(words)
    assert code == USER_ERROR
    assert capsys.readouterr().err == f"resim probe: {out}: cannot be written (File too large)\n"
    assert list(tmp_path.iterdir()) == []


def test_scenes_shards_and_scores(labels: Path, images: Path, detector: Path, tmp_path: Path, capsys: Captured) -> None:
    commands = {
        "scenes": (["scenes", str(tmp_path / "scenes"), "--count", "2"], f"{tmp_path / 'scenes'}/images/000000.jpg"),
        "pack": (["pack", str(images), str(tmp_path / "packed"), "--workers", "0"], f"{tmp_path / 'packed'}"),
        "detect": (
            ["detect", "eval", str(detector / "results.json"), str(labels), "--out", str(tmp_path / "scores")],
            f"{tmp_path / 'scores'}/",
        ),
        "preview": (
            ["preview", str(images), "--out", str(tmp_path / "a.png"), "--recipe", "quick"],
            f"{tmp_path / 'a.png'}",
        ),
    }
    for verb, (words, named) in commands.items():
        capsys.readouterr()
        with files_end_after(200):
            code = main(words)
        line = capsys.readouterr().err
        assert (code, line.count("\n")) == (USER_ERROR, 1), line
        assert line.startswith(f"resim {verb}: {named}"), line
        assert "File too large" in line
    assert not (tmp_path / "packed").exists()
    assert not (tmp_path / "a.png").exists()


def test_a_studys_table_has_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [Row(method="resim-fpn", seed=0, pairs=64, value=0.5, probe="knn", level=level) for level in ("C4", "P4")]
    append_rows(path, rows[:1])
    size = path.stat().st_size
    with (
        files_end_after(size + 20),
        pytest.raises(WriteError, match=r"results.csv: cannot be written \(File too large"),
    ):
        append_rows(path, rows[1:])
    assert path.stat().st_size == size
    append_rows(path, rows[1:])
    assert list(read_rows(path)) == rows
    new = tmp_path / "new.csv"
    with files_end_after(20), pytest.raises(WriteError):
        append_rows(new, rows)
    append_rows(new, rows)
    assert list(read_rows(new)) == rows
