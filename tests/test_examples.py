"""The examples run as they are, on any folder, and what they save is read like everything else."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import resim
from resim.scenes.scenes import write_scenes

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", 8, width=160, height=120).parent


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_method_in_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    run("minimal.py", [str(folder), "--epochs", "2", "--batch", "4"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "1", "2", "2"]
    assert all(float(line.split()[3]) > 0 and float(line.split()[5]) > 0 for line in lines)
    assert len((EXAMPLES / "minimal.py").read_text().splitlines()) <= 130


def test_a_loop_of_ones_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:  # fmt: skip
    out = tmp_path / "encoder.pt"
    run("your_own_loop.py", [str(folder), "--steps", "2", "--batch", "4", "--out", str(out)], monkeypatch)
    assert capsys.readouterr().out.startswith("step 1 instance ")
    assert resim.load(out) is not None
