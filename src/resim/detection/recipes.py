"""Named protocols of fine-tuning. Each function returns a config; every field can be set on the command line.

Torchvision's detectors are not Detectron2's: their scores are not directly comparable with published results of these
protocols.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from resim.detection.config import DetectorConfig, DetectRecipe, ImagesConfig, TuneConfig

PRECISE_BATCHES = 200  # Detectron2's TEST.PRECISE_BN.NUM_ITER
C4_PROPOSALS = 2000  # Detectron2's POST_NMS_TOPK_TRAIN, which its FPN configs lower to 1,000 and its C4 ones do not


def coco_fpn_1x() -> DetectRecipe:
    """COCO Mask R-CNN on FPN, 90k steps, as in the ReSim paper: stem and first stage frozen."""
    return DetectRecipe(name="coco-fpn-1x", detector=DetectorConfig(masks=True, frozen_stages=2))


def coco_fpn_2x() -> DetectRecipe:
    """The same for 180k steps."""
    return _named(_longer(coco_fpn_1x()), "coco-fpn-2x")


def coco_fpn_1x_moco() -> DetectRecipe:
    """COCO Mask R-CNN on FPN, 90k steps, as MoCo does: all stages trained, precise BatchNorm."""
    return _as_moco(coco_fpn_1x(), "coco-fpn-1x-moco")


def coco_fpn_2x_moco() -> DetectRecipe:
    """The same for 180k steps."""
    return _as_moco(coco_fpn_2x(), "coco-fpn-2x-moco")


def coco_c4_2x() -> DetectRecipe:
    """COCO Mask R-CNN on C4, 180k steps, MoCo's protocol: all trained, precise BatchNorm, an extra one after C5."""
    detector = DetectorConfig(neck="c4", masks=True, proposals_train=C4_PROPOSALS)
    tune = TuneConfig(steps=180_000, drops=(120_000, 160_000), precise_bn=PRECISE_BATCHES)
    return DetectRecipe(name="coco-c4-2x", detector=detector, tune=tune)


def voc_c4_24k() -> DetectRecipe:
    """VOC 2007+2012 Faster R-CNN on C4, 24k steps, MoCo's protocol: all trained, precise BatchNorm."""
    return DetectRecipe(
        name="voc-c4-24k",
        detector=DetectorConfig(neck="c4", proposals_train=C4_PROPOSALS),
        images=ImagesConfig(min_sizes=tuple(range(480, 801, 32))),
        tune=TuneConfig(steps=24_000, drops=(18_000, 22_000), warmup_steps=100, precise_bn=PRECISE_BATCHES),
    )


def cityscapes_fpn() -> DetectRecipe:
    """Cityscapes Mask R-CNN on FPN, 24k steps of 8 images."""
    return DetectRecipe(
        name="cityscapes-fpn",
        detector=DetectorConfig(masks=True, frozen_stages=2),
        images=ImagesConfig(min_sizes=tuple(range(800, 1025, 32)), max_size=2048, test_size=1024),
        tune=TuneConfig(steps=24_000, batch_size=8, lr=0.01, drops=(18_000,)),
    )


def coco_keypoints_fpn_1x() -> DetectRecipe:
    """COCO Keypoint R-CNN on FPN, 90k steps: 1,500 proposals, smooth L1 with beta 0.5 in the box head.

    Source: Detectron2's configs/COCO-Keypoints/Base-Keypoint-RCNN-FPN.yaml.
    """
    detector = DetectorConfig(keypoints=True, frozen_stages=2, proposals_train=1500, box_beta=0.5)
    return DetectRecipe(name="coco-keypoints-fpn-1x", detector=detector)


def quick() -> DetectRecipe:
    """Faster R-CNN on FPN in minutes on a CPU: small images, few regions, all trained."""
    return DetectRecipe(
        name="quick",
        detector=DetectorConfig(
            rpn_regions=64,
            box_regions=64,
            candidates_train=300,
            candidates_test=200,
            proposals_train=200,
            proposals_test=100,
            anchor_sizes=(16, 32, 64, 128, 256),
        ),
        images=ImagesConfig(min_sizes=(192, 224, 256), max_size=448, test_size=224),
        tune=TuneConfig(steps=400, batch_size=8, drops=(320,), warmup_steps=40, precise_bn=20, clip_norm=10.0),
    )


def probe_frozen() -> DetectRecipe:
    """Frozen-detector probe in minutes on a CPU: only FPN, RPN and heads are trained, on small images, by AdamW."""
    base = quick()
    return DetectRecipe(
        name="probe-frozen",
        detector=dataclasses.replace(base.detector, freeze="backbone", anchor_sizes=(8, 16, 32, 64, 128)),
        images=ImagesConfig(min_sizes=(128, 144, 160), max_size=288, test_size=144),
        tune=TuneConfig(
            steps=300, batch_size=8, optimizer="adamw", lr=1e-3, weight_decay=0.05, drops=(240,), warmup_steps=30,
            clip_norm=10.0,
        ),
    )  # fmt: skip


def _longer(recipe: DetectRecipe) -> DetectRecipe:
    return dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, steps=180_000, drops=(120_000, 160_000)))


def _as_moco(recipe: DetectRecipe, name: str) -> DetectRecipe:
    detector = dataclasses.replace(recipe.detector, frozen_stages=0)
    tune = dataclasses.replace(recipe.tune, precise_bn=PRECISE_BATCHES)
    return DetectRecipe(name=name, detector=detector, images=recipe.images, tune=tune)


def _named(recipe: DetectRecipe, name: str) -> DetectRecipe:
    return dataclasses.replace(recipe, name=name)


DETECT_RECIPES: dict[str, Callable[[], DetectRecipe]] = {
    "coco-fpn-1x": coco_fpn_1x,
    "coco-fpn-2x": coco_fpn_2x,
    "coco-fpn-1x-moco": coco_fpn_1x_moco,
    "coco-fpn-2x-moco": coco_fpn_2x_moco,
    "coco-c4-2x": coco_c4_2x,
    "voc-c4-24k": voc_c4_24k,
    "cityscapes-fpn": cityscapes_fpn,
    "coco-keypoints-fpn-1x": coco_keypoints_fpn_1x,
    "quick": quick,
    "probe-frozen": probe_frozen,
}
