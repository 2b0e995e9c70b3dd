"""An export is moved into place completely or not at all."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from exchange_files import ENDING, SMALL, own_checkpoint, trained
from resim.cli.main import main
from resim.errors import UserError
from resim.exchange import export as export_room
from resim.exchange import to_torchvision
from resim.exchange.export import export
from resim.exchange.staging import staging
from resim.exchange.targets import Target
from resim.exchange.to_torchvision import write_torchvision
from resim.exchange.weights import read_weights

Captured = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_features_that_differ_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    before = set(tmp_path.iterdir())

    def spoilt(weights: Any, *rest: Any) -> Any:
        name = "backbone.layer2.0.bn1.bias"
        tensors = weights.tensors | {name: weights.tensors[name] + 1e-3}
        return write_torchvision(type(weights)(**(vars(weights) | {"tensors": tensors})), *rest)

    monkeypatch.setattr(export_room, "write_timm", spoilt)
    with pytest.raises(UserError, match=r"not written: features in torchvision .* differ by more than 1e-05: C3 "):
        export(tmp_path / "last.pt", "timm", tmp_path / "w.pth")
    assert set(tmp_path.iterdir()) == before


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    (tmp_path / "w.pth").write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_torchvision, "write_torchvision", full)
    with pytest.raises(UserError, match=r"w.pth: cannot be written \(No space left on device\)"):
        export(tmp_path / "last.pt", "torchvision", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "w.pth"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            float("nan"),
            r"last\.pt: backbone\.layer1\.0\.conv1\.weight has 36864 of 36864 numbers that are NaN or infinite",
        ),
        (3e38, r"last\.pt: gives features that are not finite \(C2, C3, C4, C5, P3, P4\)"),
    ],
    ids=["weights", "features"],
)
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value: float, message: str) -> None:
    model = trained(SMALL)
    with torch.no_grad():
        model.query.backbone.get_parameter("layer1.0.conv1.weight").fill_(value)
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "last.pt", "torchvision", tmp_path / "w.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt"}


@pytest.mark.parametrize(("to", "package"), [("timm", "timm"), ("detectron2", "detectron2")])
def test_an_export_that_cannot_be_verified_is_reported(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, package: str
) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    monkeypatch.delitem(sys.modules, package, raising=False)
    capsys.readouterr()
    out = tmp_path / "w.pth"
    assert main(["export", str(tmp_path / "last.pt"), "--to", to, "--out", str(out)]) == 0
    assert "could not verify: " in capsys.readouterr().out
    assert out.exists()


@pytest.mark.slow
def test_a_second_export_replaces_the_first_and_its_card(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    for licence in (None, "Apache-2.0"):
        export(tmp_path / "last.pt", "safetensors", tmp_path / "a.safetensors", licence=licence)
    assert read_weights(tmp_path / "a.safetensors").licence == "Apache-2.0"
    assert "license: apache-2.0" in (tmp_path / "a.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["safetensors", "hub", "timm"])
def test_an_export_has_the_permissions_of_new_files(tmp_path: Path, to: Target) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    (tmp_path / "new").touch()
    exported = export(tmp_path / "last.pt", to, tmp_path / f"a{ENDING[to]}")
    files = [file for path in exported.paths for file in (path.iterdir() if path.is_dir() else [path])]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "new").stat().st_mode}


WRITER = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
READER = "[enforce fail at inline_container.cc:145] . PytorchStreamReader failed reading zip archive"
FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError(WRITER), "PyTorch did not write all of it: the disk may be full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "the disk may be full"),
        (SafetensorError(FULL), "No space left on device"),
    ],
)
def test_a_write_that_fails_is_one_line(error: Exception, reason: str, tmp_path: Path) -> None:
    out = tmp_path / "a.pth"
    with pytest.raises(UserError) as refused, staging(out):
        raise error
    text = str(refused.value)
    assert text.startswith(f"{out}: cannot be written (")
    assert reason in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError(READER), RuntimeError("shapes differ"), SafetensorError("header")])
def test_other_errors_are_not_called_a_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, staging(tmp_path / "a.pth"):
        raise error
    assert raised.value is error
