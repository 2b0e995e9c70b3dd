"""The demo reports what was learned, on how many images, and which differences are within the noise."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from resim import recipes
from resim.datasets.coco import read_coco
from resim.demo.images import DemoImages, make_scenes
from resim.demo.plan import DETECT, MOCO, PROBE, RESIM, Bounds
from resim.demo.sizes import Sizes
from resim.demo.story import demo, demo_recipes
from resim.demo.verdict import verdict
from resim.detection.compare import Comparison, Difference
from resim.errors import UserError
from resim.probes.config import ScorePath
from resim.probes.correspondence import Correspondence
from resim.probes.segmentation_scores import Segmentation
from resim.probes.suite import Score
from resim.runs.checkpoints import load_checkpoint
from resim.runs.log import read_metrics

NOISE = "within the noise: this run cannot tell them apart"
SCENES = DemoImages(
    train=Path("train.txt"), count=512, held_out=Path("held_out.txt"), labelled=Path("shapes.json"),
    val=Path("val.json"), num_labelled=64, num_evaluated=128, description="512 scenes",
)  # fmt: skip
OWN = dataclasses.replace(SCENES, labelled=None, val=None, num_labelled=0, num_evaluated=0)


def regions(*correct: int) -> Score:
    """A score with `correct` of ten windows right in each image."""
    value = Correspondence(
        correct=np.array(correct), windows=np.full(len(correct), 10), chance=0.02, median_error=12.0, radius=16.0
    )
    return Score(value=value, details={})


def pixels(*correct: int) -> Score:
    """A score with `correct` of an object's ten pixels right in each image, and the others taken for background.

    The ten pixels of the background are right, so that the foreground IoU is the share of right pixels.
    """
    confusion = np.array([[[10, 0], [10 - one, one]] for one in correct], dtype=np.int32)
    return Score(value=Segmentation(confusion=confusion, classes=("background", "shape"), background=0), details={})


def scores(random: tuple[int, ...], resim: tuple[int, ...], moco: tuple[int, ...]) -> dict[str, dict[ScorePath, Score]]:
    """The same scores for all probes; MoCo v2 has no P4."""
    results: dict[str, dict[ScorePath, Score]] = {}
    for name, correct in {"random": random, "resim": resim, "moco-v2": moco}.items():
        levels = ("C4",) if name == "moco-v2" else ("C4", "P4")
        results[name] = {("correspondence", "both", level): regions(*correct) for level in levels}
        results[name] |= {("segmentation", level): pixels(*correct) for level in levels}
        results[name] |= {("retrieval", "100%", level): pixels(*correct) for level in levels}
    return results


def regions_alone(results: dict[str, dict[ScorePath, Score]]) -> dict[str, dict[ScorePath, Score]]:
    """The scores of images without labels."""
    return {name: {k: v for k, v in one.items() if k[0] == "correspondence"} for name, one in results.items()}


def comparison(*, low: float, high: float) -> Comparison:
    """Three detectors of two seeds; ReSim is 10 points above the untrained and 4 above MoCo v2."""
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


def test_the_verdict_leads_with_the_probes_and_ends_with_paths() -> None:
    results = scores((1,) * 30, (8,) * 30, (5,) * 30)
    lines = verdict(results, comparison(low=0.01, high=0.07), Path("out"), SCENES)
    assert [line[:2] for line in lines] == ["1.", "2.", "3.", "4.", "5.", "6."]
    for line, words in zip(lines, ("Where is this region", "Linear segmentation", "Dense retrieval"), strict=False):
        assert words in line
        backbone, pyramid = line.split("; on P4 of the FPN: ")
        assert "untrained 10.0%, ReSim 80.0%, MoCo v2 50.0%" in backbone
        assert "ReSim minus untrained +70.0 points (95 % interval +70.0 to +70.0)" in backbone
        assert "ReSim minus MoCo v2 +30.0 points (95 % interval +30.0 to +30.0)" in backbone
        assert "untrained 10.0%, ReSim 80.0%; ReSim minus untrained +70.0 points" in pyramid
        assert "MoCo" not in pyramid
    assert "on scenes that were not trained on, n = 300 windows of 30 images" in lines[0]
    assert "foreground IoU, 64 labelled scenes, 30 others" in lines[1]
    text = "backbone frozen, trained on 64 labelled scenes to find shapes (2 seeds), box AP50 in percent on 128 others"
    assert f"{text}: untrained 15.0, ReSim 35.0, MoCo v2 30.0" in lines[3]
    assert "ReSim minus untrained +10.0 points (95 % interval +5.0 to +15.0)" in lines[3]
    assert "ReSim minus MoCo v2 +4.0 points (95 % interval +1.0 to +7.0)" in lines[3]
    assert "out/report.html" in lines[5]
    assert not any(NOISE in line or " less " in line for line in lines)


def test_the_verdict_of_one_seed_says_so() -> None:
    one = dataclasses.replace(comparison(low=0.01, high=0.07), seeds=(0,))
    lines = verdict(scores(*[(5,) * 30] * 3), one, Path("out"), SCENES)
    assert "(one seed, the intervals are over images alone)" in lines[3]


def test_the_verdict_says_what_is_within_the_noise() -> None:
    one, other = (2, 8) * 15, (8, 1) * 15  # 50 % and 45 %, image by image far apart
    lines = verdict(scores(other, one, other), comparison(low=-0.02, high=0.09), Path("out"), SCENES)
    assert [line.count(NOISE) for line in lines] == [3, 3, 3, 1, 0, 0]  # of the detectors MoCo v2 alone


def test_a_loss_is_stated_as_a_loss() -> None:
    lines = verdict(scores((8,) * 30, (1,) * 30, (8,) * 30), None, Path("out"), SCENES)
    assert all(line.count("-70.0 points (95 % interval -70.0 to -70.0)") == 3 for line in lines[:3])
    assert "There was no time for detectors" in lines[3]


def test_without_labels_regions_alone_are_stated() -> None:
    lines = verdict(regions_alone(scores((1,) * 30, (8,) * 30, (5,) * 30)), None, Path("out"), OWN)
    assert len(lines) == 4
    assert "the training images, in new views" in lines[0]
    assert "No labels, so no detector was trained" in lines[1]


def test_both_models_are_trained_alike() -> None:
    resim, moco = demo_recipes(512, 6144, seed=3)
    assert resim.optim == moco.optim
    assert (resim.optim.epochs, resim.optim.seed, resim.optim.warmup_epochs) == (12, 3, 1.2)
    assert (moco.model.levels, moco.views.flip) == ((), "independent")
    assert resim.model.queue_size == moco.model.queue_size == 256
    small, _ = demo_recipes(40, 100, seed=0)
    assert (small.optim.epochs, small.model.queue_size) == (3, 32)
    with pytest.raises(UserError, match="the demo needs at least 32 images, there are 31"):
        demo_recipes(31, 100, seed=0)


def test_the_labels_are_of_a_few_scenes_and_of_one_class(tmp_path: Path) -> None:
    images = make_scenes(tmp_path, seed=0, sizes=Sizes(scenes=5, held_out=3, labelled=2))
    assert (images.num_labelled, images.num_evaluated) == (2, 3)
    for path, count in ((images.labelled, 2), (images.val, 3)):
        assert path is not None
        data, drawn = read_coco(path), read_coco(path.with_name("instances.json"))
        assert data.classes == ("shape",)
        assert len(data) == count
        assert data.num_objects == sum(len(record) for record in drawn.records[:count])


def test_a_folder_that_is_not_empty_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty, name another folder"):
        demo(None, tmp_path, pairs=32, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "--minutes 0: must be above 0 and at most 1440"),
        ({"minutes": float("inf")}, "--minutes inf: must be above 0 and at most 1440"),
        ({"minutes": float("nan")}, "--minutes nan: must be above 0"),
        ({"pairs": 31}, "--pairs 31: must be at least one batch of 32"),
    ],
)
def test_an_invalid_option_is_named(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        demo(None, tmp_path / "demo", **options)
    assert not (tmp_path / "demo").exists()


def tiny() -> Sizes:
    """The smallest demo: one step of eight pairs at 64 px, two steps of each detector."""
    quick = recipes.quick()
    recipe = dataclasses.replace(
        quick,
        model=dataclasses.replace(quick.model, group_size=8, queue_size=8, fpn_width=32),
        views=dataclasses.replace(quick.views, image_size=64),
        optim=dataclasses.replace(quick.optim, batch_size=8),
    )
    bounds = Bounds(pairs=(8, 8), probe_images=(6, 6), steps=(2, 2), good_steps=2, seeds=1)
    return Sizes(scenes=8, held_out=6, labelled=4, evaluated=4, measured=0, recipe=recipe, bounds=bounds)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_the_demo(own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes, data = tiny(), None
    if own:
        data = make_scenes(tmp_path / "mine", 0, sizes).train.parent / "scenes" / "train"
    out = tmp_path / "demo"
    demo(data, out, minutes=60, seed=0, sizes=sizes)
    lines = capsys.readouterr().out.splitlines()
    count = 4 if own else 6
    assert [line[:2] for line in lines[-count:]] == [f"{number}." for number in range(1, count + 1)]
    for line in lines[-count : -count + (1 if own else 3)]:
        changes = re.findall(r"([+-]\d+\.\d) points \(95 % interval ([+-]\d+\.\d) to ([+-]\d+\.\d)(.*?)\)", line)
        assert len(changes) == 3
        for value, low, high, sure in changes:
            assert float(low) <= float(value) <= float(high)
            assert NOISE in sure or float(low) >= 0 or float(high) <= 0
    text = "\n".join(lines)
    for stage in (RESIM, MOCO, PROBE, *(() if own else (DETECT,))):
        assert re.search(rf"^ *{stage} +\d+\.\d", text, re.MULTILINE), stage  # in the plan's table
        assert re.search(rf"^{stage} \.\.\. \(about .*; .* left\)$", text, re.MULTILINE), stage
    assert re.search(r"it took \d+\.\d minutes, \d+\.\d were planned of 60$", text, re.MULTILINE)
    for name in ("resim", "moco-v2"):
        assert load_checkpoint(out / name / "checkpoints" / "last.pt")["step"] == 1
        assert len(read_metrics(out / name / "metrics.jsonl")) == 1
    stored = json.loads((out / "probe" / "probe.json").read_text())
    assert [network["name"] for network in stored["networks"]] == ["random", "resim", "moco-v2"]
    assert (out / "detectors" / "compare.json").exists() is not own
    assert (out / "probe" / "probe_segmentation.png").exists() is not own
    page = (out / "report.html").read_text()
    assert len(page) < 5_000_000
    assert ("detections.png" in page or "Detection" in page) is not own
