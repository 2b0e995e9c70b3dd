"""The demo says what was learned, on how much, and where it cannot tell."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from resim.demo import images as demo_images
from resim.demo import story
from resim.demo.story import demo, demo_recipes
from resim.demo.verdict import verdict
from resim.detection.coco import read_coco
from resim.detection.compare import Comparison, Difference
from resim.errors import UserError
from resim.probes.correspondence import Correspondence
from resim.probes.suite import Path as ScorePath
from resim.probes.suite import Score
from resim.training.checkpoints import load_checkpoint
from resim.training.log import read_metrics

NOISE = "within the noise: this run cannot tell them apart"


def found(*correct: int) -> Score:
    """So many of ten windows found again in each image."""
    value = Correspondence(
        correct=np.array(correct), windows=np.full(len(correct), 10), chance=0.02, median_error=12.0, radius=16.0
    )
    return Score(value=value, details={})


def scores(random: Score, resim: Score, moco: Score) -> dict[str, dict[ScorePath, Score]]:
    both = {"random": random, "resim": resim, "moco-v2": moco}
    return {name: {("correspondence", "both", level): score for level in ("C4", "P4")} for name, score in both.items()}


def comparison(*, low: float, high: float) -> Comparison:
    """Three detectors of two seeds; ReSim 10 points above the untrained and 4 above MoCo v2, so sure."""
    ap50 = {"random": [0.1, 0.2], "resim": [0.3, 0.4], "moco-v2": [0.25, 0.35]}
    return Comparison(
        names=tuple(ap50),
        seeds=(0, 1),
        scores={name: {"bbox": {"AP50": values}} for name, values in ap50.items()},
        differences=(
            Difference(first="random", second="resim", value=-0.10, low=-0.15, high=-0.05),
            Difference(first="random", second="moco-v2", value=-0.06, low=-0.11, high=-0.01),
            Difference(first="resim", second="moco-v2", value=0.04, low=low, high=high),
        ),
        folders={name: [] for name in ap50},
    )


def test_the_verdict_is_five_lines_with_numbers_and_paths() -> None:
    best, middle, worst = found(*[8] * 30), found(*[5] * 30), found(*[1] * 30)
    lines = verdict(scores(worst, best, middle), comparison(low=0.01, high=0.07), Path("out"), held_out_is_new=True)
    assert [line[:2] for line in lines] == ["1.", "2.", "3.", "4.", "5."]
    assert "ReSim is right for 80.0%, untrained for 10.0%: +70.0 points (95 % interval +70.0 to +70.0)" in lines[0]
    assert "on scenes that were not trained on, n = 300 windows of 30 images" in lines[0]
    assert "ReSim is right for 80.0%, MoCo v2 for 50.0%: +30.0 points (95 % interval +30.0 to +30.0)" in lines[1]
    told = "64 labelled scenes to find shapes (2 seeds), box AP50 in percent on 128 others"
    assert f"{told}: untrained 15.0, ReSim 35.0, MoCo v2 30.0" in lines[2]
    assert "ReSim minus untrained +10.0 (95 % interval +5.0 to +15.0)" in lines[2]
    assert "ReSim minus MoCo v2 +4.0 (95 % interval +1.0 to +7.0)" in lines[2]
    assert "out/report.html" in lines[4]
    assert not any(NOISE in line for line in lines)


def test_the_verdict_of_one_seed_says_so() -> None:
    some = scores(*[found(*[5] * 30)] * 3)
    one = dataclasses.replace(comparison(low=0.01, high=0.07), seeds=(0,))
    assert "(one seed, the intervals are over images alone)" in verdict(some, one, Path("out"), held_out_is_new=True)[2]


def test_the_verdict_says_what_is_within_the_noise() -> None:
    one, other = found(*[2, 8] * 15), found(*[8, 1] * 15)  # 50 % and 45 %, image by image far apart
    lines = verdict(scores(other, one, other), comparison(low=-0.02, high=0.09), Path("out"), held_out_is_new=False)
    assert all(NOISE in line for line in lines[:2])
    assert lines[2].count(NOISE) == 1  # of MoCo v2 alone
    assert "the training images, views drawn anew" in lines[0]


def test_a_loss_is_told_as_a_loss() -> None:
    best, worst = found(*[8] * 30), found(*[1] * 30)
    lines = verdict(scores(best, worst, best), None, Path("out"), held_out_is_new=False)
    assert all("-70.0 points (95 % interval -70.0 to -70.0)" in line for line in lines[:2])
    assert "nothing was fine-tuned" in lines[2]


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


def test_the_labels_are_of_a_few_scenes_and_of_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("SCENES", 5), ("HELD_OUT", 3), ("LABELLED", 2)):
        monkeypatch.setattr(demo_images, name, count)
    images = demo_images.drawn_scenes(tmp_path, seed=0)
    for path, count in ((images.labelled, 2), (images.val, 3)):
        assert path is not None
        data, drawn = read_coco(path), read_coco(path.with_name("instances.json"))
        assert data.classes == ("shape",)
        assert len(data) == count
        assert data.num_objects == sum(len(record) for record in drawn.records[:count])


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty, name another folder"):
        demo(None, tmp_path, pairs=32, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_the_demo(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("SCENES", 32), ("HELD_OUT", 6), ("LABELLED", 8)):
        monkeypatch.setattr(demo_images, name, count)
    monkeypatch.setattr(story, "TUNE_STEPS", 2)
    data = None
    if own:
        data = demo_images.drawn_scenes(tmp_path / "mine", 0).train.parent / "scenes" / "train"
    out = tmp_path / "demo"
    demo(data, out, pairs=32, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines[-5:]] == ["1.", "2.", "3.", "4.", "5."]
    for line in lines[-5:-3]:
        change, low, high = (float(number) for number in re.findall(r"[+-]\d+\.\d", line)[:3])
        assert low <= change <= high
        assert NOISE in line or low >= 0 or high <= 0
    for name in ("resim", "moco-v2"):
        assert load_checkpoint(out / name / "checkpoints" / "last.pt")["step"] == 1
        assert len(read_metrics(out / name / "metrics.jsonl")) == 1
    stored = json.loads((out / "probe" / "probe.json").read_text())
    assert [network["name"] for network in stored["networks"]] == ["random", "resim", "moco-v2"]
    assert (out / "detectors" / "compare.json").exists() is not own
    page = (out / "report.html").read_text()
    assert len(page) < 5_000_000
    assert ("detections.png" in page or "Detection" in page) is not own
