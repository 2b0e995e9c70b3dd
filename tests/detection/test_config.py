"""Protocols have the published figures; the learning rate warms up and drops; settings that cannot work are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun, ImagesConfig, TuneConfig
from resim.detection.recipes import DETECT_RECIPES


def test_the_learning_rate_of_coco_1x() -> None:
    tune = DETECT_RECIPES["coco-fpn-1x"]().tune
    by_hand = {
        0: 0.02 * 0.001, 1: 0.02 * (0.001 + 0.999 / 1000), 500: 0.02 * 0.5005, 999: 0.02 * (0.001 + 0.999 * 0.999),
        1000: 0.02, 59_999: 0.02, 60_000: 0.002, 79_999: 0.002, 80_000: 0.0002, 89_999: 0.0002,
    }  # fmt: skip
    assert {step: tune.learning_rate(step) for step in by_hand} == pytest.approx(by_hand, rel=1e-12)


def test_the_learning_rate_of_voc() -> None:
    tune = DETECT_RECIPES["voc-c4-24k"]().tune
    by_hand = {
        0: 0.02 * 0.001, 50: 0.02 * 0.5005, 99: 0.02 * (0.001 + 0.999 * 0.99), 100: 0.02, 17_999: 0.02, 18_000: 0.002,
        21_999: 0.002, 22_000: 0.0002,
    }  # fmt: skip
    assert {step: tune.learning_rate(step) for step in by_hand} == pytest.approx(by_hand, rel=1e-12)


def test_the_learning_rate_is_scaled_only_when_asked() -> None:
    as_it_is = TuneConfig(batch_size=4, lr=0.02)
    scaled = TuneConfig(batch_size=4, lr=0.02, lr_batch=16)
    assert as_it_is.learning_rate(5000) == 0.02
    assert scaled.learning_rate(5000) == pytest.approx(0.005)
    assert scaled.learning_rate(0) == pytest.approx(0.005 * 0.001)
    assert TuneConfig(warmup_steps=0).learning_rate(0) == 0.02
    assert TuneConfig(warmup_steps=10, drops=(5,)).learning_rate(5) == pytest.approx(0.02 * 0.5005 * 0.1)


COCO = {"min_sizes": (640, 672, 704, 736, 768, 800), "max_size": 1333, "test_size": 800}
SCHEDULE = {"batch_size": 16, "lr": 0.02, "warmup_steps": 1000, "warmup_factor": 0.001}
ONE, TWO = {"steps": 90_000, "drops": (60_000, 80_000)}, {"steps": 180_000, "drops": (120_000, 160_000)}
MASKS = {"neck": "fpn", "masks": True, "norm": "sync", "fpn_norm": True, "proposals_train": 1000}
FIXED, ALL = {"frozen_stages": 2}, {"frozen_stages": 0}
PRECISE = {"precise_bn": 200}
CITY = {"min_sizes": tuple(range(800, 1025, 32)), "max_size": 2048, "test_size": 1024}
VOC = {"min_sizes": tuple(range(480, 801, 32)), "max_size": 1333, "test_size": 800}
C4 = {"neck": "c4", "norm": "sync", "proposals_train": 2000, "frozen_stages": 0}  # Detectron2's proposals for C4
PROTOCOLS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "coco-fpn-1x": (MASKS | FIXED, COCO, SCHEDULE | ONE | {"precise_bn": 0}),
    "coco-fpn-2x": (MASKS | FIXED, COCO, SCHEDULE | TWO | {"precise_bn": 0}),
    "coco-fpn-1x-moco": (MASKS | ALL, COCO, SCHEDULE | ONE | PRECISE),
    "coco-fpn-2x-moco": (MASKS | ALL, COCO, SCHEDULE | TWO | PRECISE),
    "coco-c4-2x": (C4 | {"masks": True}, COCO, SCHEDULE | TWO | PRECISE),
    "voc-c4-24k": (
        C4 | {"masks": False}, VOC,
        SCHEDULE | PRECISE | {"steps": 24_000, "drops": (18_000, 22_000), "warmup_steps": 100},
    ),
    "cityscapes-fpn": (
        MASKS | FIXED, CITY, SCHEDULE | {"steps": 24_000, "drops": (18_000,), "batch_size": 8, "lr": 0.01}
    ),
    "coco-keypoints-fpn-1x": (
        {"keypoints": True, "proposals_train": 1500, "box_beta": 0.5, "rpn_beta": 1 / 9, "masks": False} | FIXED,
        COCO, SCHEDULE | ONE
    ),
    "quick": ({"backbone": "auto"}, {}, {}),
    "probe-frozen": ({"freeze": "backbone", "frozen_stages": 0}, {}, {"optimizer": "adamw", "precise_bn": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DETECT_RECIPES))
def test_protocols_have_the_published_figures(name: str) -> None:
    recipe = DETECT_RECIPES[name]()
    assert recipe.name == name
    for part, figures in zip((recipe.detector, recipe.images, recipe.tune), PROTOCOLS[name], strict=True):
        assert {field: getattr(part, field) for field in figures} == figures
    if name not in ("quick", "probe-frozen"):
        assert (recipe.tune.momentum, recipe.tune.weight_decay, recipe.tune.norm_weight_decay) == (0.9, 1e-4, 0.0)
        assert (recipe.detector.rpn_regions, recipe.detector.box_regions, recipe.images.flip) == (256, 512, 0.5)
        assert recipe.detector.anchor_sizes == (32, 64, 128, 256, 512)
        assert recipe.tune.clip_norm == 0
        assert recipe.tune.lr_batch == 0


@pytest.mark.parametrize("name", list(DETECT_RECIPES))
def test_a_recipe_is_itself_after_json(name: str) -> None:
    recipe = DETECT_RECIPES[name]()
    assert DetectRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("spoil", [{"tune": {"epochs": 3}}, {"tune": None}, {"name": 3, "detector": []}, {}])
def test_json_that_is_no_recipe(spoil: dict[str, Any]) -> None:
    data = DETECT_RECIPES["quick"]().to_json() | spoil if spoil else {"name": "x"}
    with pytest.raises(ValueError, match="not a detection recipe of this version"):
        DetectRecipe.from_json(data)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (DetectorConfig, {"masks": True, "keypoints": True}, "masks and keypoints: one detector has one of them"),
        (DetectorConfig, {"neck": "c4", "keypoints": True}, "keypoints need --neck fpn"),
        (DetectorConfig, {"anchor_sizes": (32,)}, "anchor-sizes: an FPN needs five, one a level, not 1"),
        (DetectorConfig, {"neck": "c4", "anchor_sizes": ()}, "anchor-sizes: name at least one"),
        (DetectorConfig, {"frozen_stages": 6}, "frozen-stages 6: must be at most 5"),
        (DetectorConfig, {"frozen_stages": -1}, "frozen-stages -1: must be at least 0"),
        (DetectorConfig, {"rpn_beta": 0.0}, "rpn-beta 0.0: must be above 0"),
        (DetectorConfig, {"box_beta": -1.0}, "box-beta -1.0: must be above 0"),
        (DetectorConfig, {"box_regions": 0}, "box-regions 0: must be at least 1"),
        (DetectorConfig, {"norm": "group"}, "norm 'group': must be one of sync, batch, frozen"),
        (ImagesConfig, {"min_sizes": ()}, "min-sizes: at least one is needed"),
        (ImagesConfig, {"min_sizes": (1400,)}, "size 1400 px: must be from 32 to --max-size 1333"),
        (ImagesConfig, {"test_size": 16}, "size 16 px: must be from 32 to --max-size 1333"),
        (ImagesConfig, {"flip": 1.5}, "flip 1.5: must be at most 1"),
        (TuneConfig, {"steps": 0}, "steps 0: must be at least 1"),
        (TuneConfig, {"lr": float("nan")}, "lr nan: must be a finite number"),
        (TuneConfig, {"fraction": 0.0}, "fraction 0.0: must be above 0"),
        (TuneConfig, {"seed": 2**63}, "must be below"),
        (TuneConfig, {"drops": (20, 10)}, "drops 20 10: each must be above the one before it"),
        (TuneConfig, {"drops": (0,)}, "drops 0: each must be at least 1"),
        (DetectRun, {"workers": 513}, "workers 513: must be at most 512"),
        (DetectRun, {"eval_images": 0}, "eval-images 0: must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)
