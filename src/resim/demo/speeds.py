"""The speed of this machine in each part of the demo, measured in a few steps of each kind."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from resim.bench import measure
from resim.datasets.records import DetectionData
from resim.demo.detectors import demo_detector, read_scenes
from resim.demo.images import DemoImages
from resim.demo.plan import Speeds
from resim.demo.probes import measure_network, read_sets
from resim.detection.config import DetectRecipe
from resim.detection.detector import build_detector
from resim.detection.freeze import freeze_parts
from resim.detection.predict import detect
from resim.detection.samples import ShapeOrder, TrainingSet, collate_samples, read_samples
from resim.detection.step import make_detector_stepper
from resim.distributed.processes import Processes, start_processes
from resim.model.resim import ReSim
from resim.probes.features import Network
from resim.runs.bars import Watch
from resim.runs.config import Recipe
from resim.scenes.scenes import draw_scene
from resim.training.precision import choose_precision
from resim.training.step import make_stepper
from resim.views.finish import Finisher
from resim.views.folder import find_images
from resim.views.loader import make_loader

_SCENES = 6
_WRITING = 1.3  # time of making and writing a scene with its masks, over that of making it
_STEPS = 1000  # of the measured detector's schedule
_IMAGES = 8
_REPORT_IMAGES = 60  # the report takes as long as the probes of one network on so many images


def measure_speeds(
    images: DemoImages, recipes: tuple[Recipe, Recipe], seed: int, watch: Watch, seconds: float
) -> Speeds:
    """Time a few steps of each kind on the demo's images.

    Args:
        images: the demo's images; without labels no detector is measured.
        recipes: recipes of ReSim and MoCo v2.
        seed: seed of everything random.
        watch: called with the number of parts done and of all parts.
        seconds: duration of each measurement, at least two turns, the first of which does not count.
    """
    with start_processes("auto") as processes:
        resim_pair, _ = _pair_seconds(images, recipes[0], processes, seconds)
        watch(1, 4)
        moco_pair, start = _pair_seconds(images, recipes[1], processes, seconds)
        watch(2, 4)
        probe_image = _probe_seconds(images, recipes[0], seed)
        watch(3, 4)
        step = detected = 0.0
        if images.labelled is not None:
            data, val = read_scenes(images)
            step, detected = _detector_seconds(data, val, demo_detector(recipes[0], _STEPS), processes, seconds)
        watch(4, 4)
    return Speeds(
        start=start, resim_pair=resim_pair, moco_pair=moco_pair, probe_image=probe_image, detector_step=step,
        detected_image=detected, report=_REPORT_IMAGES * probe_image,
    )  # fmt: skip


def scene_seconds(seed: int) -> float:
    """Seconds in which a scene is made and written."""
    began = time.perf_counter()
    for index in range(_SCENES):
        draw_scene(seed, index)
    return _WRITING * (time.perf_counter() - began) / _SCENES


def _pair_seconds(images: DemoImages, recipe: Recipe, processes: Processes, seconds: float) -> tuple[float, float]:
    """Seconds of a view pair, and seconds from the start to the first step."""
    began = time.perf_counter()
    device = processes.device
    paths = find_images([images.train])
    source = measure.batches(paths, recipe, min(processes.cores, 16), pin_memory=device.type == "cuda")
    finish = Finisher(recipe.views, device)
    precision = choose_precision("auto", device)
    stepper = make_stepper(recipe.model, recipe.optim, processes, precision=precision)
    finish(next(source))
    start = time.perf_counter() - began
    turn = _turn_seconds(lambda: stepper(*finish(next(source)), None), device, seconds)
    return turn / recipe.optim.batch_size, start


def _turn_seconds(turn: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Mean seconds of a turn after the first; the mean includes turns that are slow now and then."""
    rates = measure.time_turns(turn, 1, seconds, device, warmup=0).each[1:]
    return sum(1 / rate for rate in rates) / len(rates)


def _probe_seconds(images: DemoImages, recipe: Recipe, seed: int) -> float:
    """Seconds of all probes of one network for each held-out image, of which there are as many as labelled ones."""
    sets = read_sets(images, size=recipe.views.image_size, most=_IMAGES, most_labelled=_IMAGES, seed=seed)
    network = Network(name="untrained", encoder=ReSim(recipe.model, seed=seed).query.eval())
    began = time.perf_counter()
    measure_network(network, sets, seed)
    return (time.perf_counter() - began) / len(sets.held_out)


def _detector_seconds(
    data: DetectionData, val: DetectionData, recipe: DetectRecipe, processes: Processes, seconds: float
) -> tuple[float, float]:
    """Seconds of a training step, and of detection in an image, of an untrained detector."""
    config, tune = recipe.detector, recipe.tune
    model = build_detector(
        config, recipe.images, num_classes=len(data.classes), num_keypoints=0, processes=processes, seed=tune.seed
    )
    freeze_parts(model, config)
    precision = choose_precision("auto", processes.device)
    stepper = make_detector_stepper(model, tune, processes, precision=precision)
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.0  # the same step, whose losses cannot diverge without a warm-up
    is_landscape = np.array([record.width >= record.height for record in data.records])
    order = ShapeOrder(is_landscape, tune.batch_size, seed=tune.seed, start_step=0, end_step=tune.steps)
    dataset = TrainingSet(data, recipe.images, tune.seed)
    batches = read_samples(make_loader(dataset, order, workers=0, join=collate_samples))
    step = _turn_seconds(lambda: stepper(next(batches)), processes.device, seconds)
    few = dataclasses.replace(val, records=val.records[:_IMAGES])
    began = time.perf_counter()
    detect(model, few, processes, precision=precision, batch=_IMAGES)
    return step, (time.perf_counter() - began) / len(few)
