"""Every command that a signal stops: its exit code, and the line that says what is kept and how to go on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from resim.cli import (
    compare,
    detect_eval,
    detect_predict,
    detect_train,
    explore,
    pack,
    pretrain,
    probe,
    report,
    scenes,
)
from resim.cli.main import main
from resim.errors import StoppedError
from resim.exit_codes import INTERRUPTED, STOPPED
from resim.signals import STOP_SIGNALS

Captured = pytest.CaptureFixture[str]
COMMANDS = {
    "pretrain": (pretrain, ["DIR"], "--resume auto continues, or starts"),
    "detect train": (detect_train, ["DIR"], "--resume auto continues, or starts"),
    "detect eval": (detect_eval, ["MODEL", "DIR"], "no scores are written"),
    "detect predict": (detect_predict, ["DIR", "--model", "MODEL"], "results.json is not written"),
    "compare": (compare, ["DIR", "--init", "random"], "finished runs and checkpoints in --out are kept"),
    "probe": (probe, ["random", "DIR"], "no scores are written"),
    "report": (report, ["RUN"], "no page is written"),
    "pack": (pack, ["DIR", "OUT"], "the unfinished shards are removed, OUT is as before"),
    "explore": (explore, ["random", "--images", "DIR"], "the page is no longer served"),
    "scenes": (scenes, ["OUT"], "the same command starts from the beginning"),
}


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_signal_outside_a_training(
    verb: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    module, words, remains = COMMANDS[verb]
    monkeypatch.setattr(module, "run", lambda options: signal.raise_signal(number))
    before = signal.getsignal(number)
    code = main([*verb.split(), *words])
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert remains in line
    if number == signal.SIGINT:
        assert code == INTERRUPTED
        assert line.startswith(f"resim {verb.split()[0]}: interrupted: ")
    else:
        assert code == STOPPED
        assert line.startswith(f"resim {verb.split()[0]}: stopped by {number.name}: ")
    assert signal.getsignal(number) is before


def test_a_training_inside_that_is_stopped(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def stop(*arguments: object, **settings: object) -> None:
        raise StoppedError("stopped: 1 of 6 runs finished, out/b-seed0 saved after step 3")

    monkeypatch.setattr("resim.cli.compare.read_compared_data", lambda *arguments, **settings: (None, None))
    monkeypatch.setattr("resim.detection.compare.compare", stop)
    assert main(["compare", "DIR", "--init", "random", "--out", "out"]) == STOPPED
    assert capsys.readouterr().err == (
        "resim compare: stopped: 1 of 6 runs finished, out/b-seed0 saved after step 3; the same command goes on\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_demo_says_what_remains(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    out = tmp_path / "demo"

    def stop(*arguments: object, **settings: object) -> None:
        out.mkdir()
        signal.raise_signal(number)

    monkeypatch.setattr("resim.demo.story.make_scenes", stop)
    monkeypatch.setattr("resim.demo.story.scene_seconds", lambda seed: 0.001)
    assert main(["demo", "--out", str(out), "--minutes", "1"]) == STOPPED
    assert capsys.readouterr().err == (
        f"resim demo: stopped; the files in {out} are kept; the demo cannot be continued: resim demo with another "
        "--out starts from the beginning\n"
    )
