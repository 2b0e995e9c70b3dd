"""The demo says what was learned, on how much, and where it cannot tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from resim import demo as demo_module
from resim.demo import demo, demo_recipes, verdict
from resim.errors import UserError
from resim.probes.correspondence import Correspondence
from resim.training.checkpoints import load_checkpoint
from resim.training.log import read_metrics

NOISE = "within the noise, this run cannot tell them apart"


def found(*correct: int) -> Correspondence:
    """So many of ten windows found again in each image."""
    return Correspondence(
        correct=np.array(correct), windows=np.full(len(correct), 10), chance=0.02, median_error=12.0, radius=16.0
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two epochs of two steps."""
    lines = [
        {"epoch": epoch, "accuracy/P4": p4, "accuracy/P3": 0.0, "loss/P4": loss, "loss/P3": 6.0}
        for epoch, p4, loss in ((0, 0.10, 5.0), (0, 0.20, 4.0), (1, 0.50, 2.0), (1, 0.70, 1.5))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def compared(lines: list[str]) -> dict[str, str]:
    """The lines that compare two models, by what they compare."""
    return {line.split(": ")[0].strip(): line for line in lines if " less " in line}


def test_a_difference_that_every_image_shows_is_sure(run: Path) -> None:
    best, middle, worst = found(*[8] * 30), found(*[5] * 30), found(*[1] * 30)
    scores = {
        "untrained": {"C4": worst, "P4": worst}, "ReSim": {"C4": best, "P4": middle}, "MoCo v2": {"C4": middle}
    }  # fmt: skip
    told = compared(verdict(scores, run, held_out_is_new=True))
    assert told == {
        "P4, ReSim less untrained": "  P4, ReSim less untrained: +40.0 points, 95 % interval +40.0 to +40.0",
        "C4, ReSim less untrained": "  C4, ReSim less untrained: +70.0 points, 95 % interval +70.0 to +70.0",
        "C4, ReSim less MoCo v2": "  C4, ReSim less MoCo v2: +30.0 points, 95 % interval +30.0 to +30.0",
    }


def test_a_loss_is_told_as_a_loss(run: Path) -> None:
    best, worst = found(*[8] * 30), found(*[1] * 30)
    scores = {"untrained": {"C4": best, "P4": best}, "ReSim": {"C4": worst, "P4": worst}, "MoCo v2": {"C4": best}}
    told = compared(verdict(scores, run, held_out_is_new=True))
    assert all("-70.0 points, 95 % interval -70.0 to -70.0" in line for line in told.values())
    assert not any(NOISE in line for line in told.values())


def test_a_difference_of_some_images_is_within_the_noise(run: Path) -> None:
    one, other = found(*[2, 8] * 15), found(*[8, 1] * 15)  # 50 % and 45 %, image by image far apart
    scores = {"untrained": {"C4": other, "P4": other}, "ReSim": {"C4": one, "P4": one}, "MoCo v2": {"C4": other}}
    told = compared(verdict(scores, run, held_out_is_new=True))
    assert len(told) == 3
    for line in told.values():
        assert line.endswith(": " + NOISE)
        change, low, high = (float(number) for number in re.findall(r"[+-]\d+\.\d", line))
        assert change == 5.0
        assert low < 0 < high


def test_equal_models_are_within_the_noise(run: Path) -> None:
    score = found(3, 4, 5)
    scores = {"untrained": {"C4": score, "P4": score}, "ReSim": {"C4": score, "P4": score}, "MoCo v2": {"C4": score}}
    told = compared(verdict(scores, run, held_out_is_new=True))
    assert all(line.endswith("+0.0 points, 95 % interval +0.0 to +0.0: " + NOISE) for line in told.values())


@pytest.mark.parametrize(
    ("new", "where"), [(True, "scenes that were not trained on"), (False, "the training images, views drawn anew")]
)
def test_the_verdict_says_what_was_measured(run: Path, new: bool, where: str) -> None:
    score = found(3, 4, 5)
    scores = {"untrained": {"C4": score, "P4": score}, "ReSim": {"C4": score, "P4": score}, "MoCo v2": {"C4": score}}
    lines = verdict(scores, run, held_out_is_new=new)
    assert "  P4: region accuracy 15.0% in the first epoch, 60.0% in the last; loss 4.50, then 1.75" in lines
    assert f"Is the most similar cell of the other view the right one? (on {where})" in lines
    (line,) = (line for line in lines if line.startswith("  MoCo v2   C4: "))
    assert "40.0% [" in line
    assert line.endswith("within 16 px, chance 2.0%, median error 12 px, n = 30 windows of 3 images")


def test_both_models_are_trained_alike() -> None:
    resim, moco = demo_recipes(512, 6144, seed=3)
    assert resim.optim == moco.optim
    assert (resim.optim.epochs, resim.optim.seed) == (12, 3)
    assert (moco.model.levels, moco.views.flip) == ((), "independent")
    assert resim.model.queue_size == moco.model.queue_size == 256
    small, _ = demo_recipes(40, 100, seed=0)
    assert (small.optim.epochs, small.model.queue_size) == (3, 32)
    with pytest.raises(UserError, match="the demo needs at least 32 images, there are 31"):
        demo_recipes(31, 100, seed=0)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty, name another folder"):
        demo(None, tmp_path, pairs=32, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo_module, "SCENES", 32)
    monkeypatch.setattr(demo_module, "HELD_OUT", 8)
    demo(None, tmp_path / "demo", pairs=32, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert f"Pre-training on 32 scenes drawn by the package, in {tmp_path / 'demo' / 'scenes'}" in lines
    scores = [line for line in lines if re.search(r"n = \d+ windows of 8 images$", line)]
    assert [line.split(":")[0].split() for line in scores] == [
        ["untrained", "C4"], ["untrained", "P4"], ["ReSim", "C4"], ["ReSim", "P4"], ["MoCo", "v2", "C4"]
    ]  # fmt: skip
    told = compared(lines)
    assert set(told) == {"P4, ReSim less untrained", "C4, ReSim less untrained", "C4, ReSim less MoCo v2"}
    for line in told.values():
        change, low, high = (float(number) for number in re.findall(r"[+-]\d+\.\d", line))
        assert low <= change <= high
        assert NOISE in line or low >= 0 or high <= 0
    for name in ("resim", "moco-v2"):
        assert load_checkpoint(tmp_path / "demo" / name / "checkpoints" / "last.pt")["step"] == 1
        assert len(read_metrics(tmp_path / "demo" / name / "metrics.jsonl")) == 1
    assert (tmp_path / "demo" / "resim" / "curves.png").exists()
