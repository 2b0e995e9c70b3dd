"""Before its first step: a run whose images are being listed."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from resim.cli.main import main
from resim.exit_codes import INTERRUPTED
from resim.training import prepare


def test_ctrl_c_ends_a_run_that_lists_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def list_for_long(sources: Sequence[str]) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the listing goes on")

    monkeypatch.setattr(prepare, "find_images", list_for_long)
    before = signal.getsignal(signal.SIGINT)
    words = ["pretrain", str(tmp_path), "--recipe", "quick", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(words) == INTERRUPTED
    assert capsys.readouterr().err.startswith("resim pretrain: interrupted: ")
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run" / "config.json").exists()
