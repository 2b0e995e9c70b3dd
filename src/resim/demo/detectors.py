"""The demo's detectors: small ones with a frozen backbone, trained from each network on a few labelled scenes.

All shapes are one class, and few scenes have labels: the regime in which pre-training is meant to help. The backbone is
not trained; the FPN (including its pre-trained parts), the RPN and the heads are.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.demo.images import DemoImages
from resim.demo.plan import EVALUATIONS, NETWORKS, Plan, seeds_that_fit
from resim.demo.probes import NAMES
from resim.demo.sizes import Sizes
from resim.demo.stages import Stages
from resim.demo.stopped import stops_after_training
from resim.detection.compare import Comparison, Start, compare
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.recipes import probe_frozen
from resim.detection.train import train_detector
from resim.errors import StoppedError
from resim.report.comparison_pictures import draw_ap_curves, draw_comparison_sheet
from resim.runs.bars import Watch
from resim.runs.config import Recipe

TITLE = "detectors with the backbone frozen"


def demo_detector(pretrained: Recipe, steps: int) -> DetectRecipe:
    """The frozen-detector probe at the demo's size, for the architecture that was pre-trained; objects from 8 px on."""
    base = probe_frozen()
    return dataclasses.replace(
        base,
        name="demo",
        detector=dataclasses.replace(
            base.detector, backbone=pretrained.model.backbone, fpn_width=pretrained.model.fpn_width, box_regions=32
        ),
        images=dataclasses.replace(base.images, min_sizes=(112, 128, 144), max_size=192, test_size=128),
        tune=dataclasses.replace(base.tune, steps=steps, drops=(max(1, steps * 4 // 5),), warmup_steps=steps // 10),
    )


def read_scenes(images: DemoImages) -> tuple[DetectionData, DetectionData]:
    """The labelled scenes to train on, and the held-out ones to evaluate on."""
    assert images.labelled is not None
    assert images.val is not None
    val = read_coco(images.val)
    return read_coco(images.labelled), dataclasses.replace(val, records=val.records[: images.num_evaluated])


def train_detectors(
    out: Path, images: DemoImages, pretrained: Recipe, plan: Plan, seed: int, story: Stages, watch: Watch, sizes: Sizes
) -> Comparison:
    """Train the small detector from each network, with as many seeds as fit the time left.

    The duration of the first run determines the number of seeds; every network has the same seeds.

    Raises:
        StoppedError: a signal stopped it.
    """
    data, val = read_scenes(images)
    recipe = demo_detector(pretrained, plan.steps)
    run = DetectRun(eval_every=plan.steps // EVALUATIONS, eval_images=8)
    folder = out / "detectors"
    starts = [Start(name=name, weights="random" if name == "random" else str(out / name)) for name in NAMES]
    runs = NETWORKS * plan.seeds
    began = time.perf_counter()
    first = dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, seed=seed))
    settings = dataclasses.replace(run, out=folder / f"{starts[0].name}-seed{seed}")
    with stops_after_training():
        first_result = train_detector(
            first, settings, data, val, init=starts[0].weights, show=False,
            watch=lambda done, of: watch(done, runs * of),
        )  # fmt: skip
        if not first_result.finished:
            raise StoppedError(f"stopped: {first_result.out} is saved after step {first_result.step}")
    num_seeds = seeds_that_fit(plan, time.perf_counter() - began, story.left, sizes.bounds)
    comparison = compare(
        recipe, run, data, val, starts, [seed + number for number in range(num_seeds)], folder, show=False, watch=watch
    )
    assert comparison is not None  # there is one process, and no --stop-after
    draw_ap_curves(comparison, folder / "curves.png", title=f"{TITLE}, {images.num_labelled} labelled scenes")
    draw_comparison_sheet(comparison, val, folder / "detections.png")
    return comparison
