"""Frozen detectors of several files: their configs, their data, and pre-trainings to start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from resim.datasets.records import DetectionData
from resim.detection.config import DetectorConfig, TuneConfig
from resim.detection.detector import build_detector
from resim.detection.fpn_parts import RESIM_FPN, fpn_place
from resim.detection.freeze import freeze_parts
from resim.detection.init import load_init
from resim.detection.samples import DetectionBatch, TrainingSet
from resim.distributed.processes import Processes
from resim.exchange.weights import Weights
from resim.model.encoder import Encoder, ModelConfig
from resim.regions.level import Level
from resim.runs.checkpoints import save_checkpoint
from resim.runs.config import Recipe
from tiny_detectors import SIZES, randomise_norms, things, tiny, tiny_images

ONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
P4 = Level(name="P4", window=24, step=16)
P3 = Level(name="P3", window=16, step=12)
WIDTH = 16

BACKBONE = tiny(freeze="backbone")
WITH_FPN = tiny(freeze="backbone+fpn", frozen_fpn=RESIM_FPN)
C4 = tiny(freeze="backbone", neck="c4", box_regions=4)
C4_AND_RES5 = dataclasses.replace(C4, frozen_stages=5)
NO_NORM = tiny(freeze="backbone+fpn", frozen_fpn=RESIM_FPN, fpn_norm=False, norm="batch")
MODES = {"backbone": BACKBONE, "backbone+fpn": WITH_FPN, "c4": C4, "c4, res5": C4_AND_RES5, "no FPN norm": NO_NORM}
SGD = TuneConfig(lr=0.01, weight_decay=0.1, norm_weight_decay=0.1)
ADAMW = TuneConfig(lr=0.001, weight_decay=0.1, norm_weight_decay=0.1, optimizer="adamw")
modes = pytest.mark.parametrize("config", list(MODES.values()), ids=list(MODES))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("things"))


@pytest.fixture(scope="module")
def batch(data: DetectionData) -> DetectionBatch:
    dataset = TrainingSet(data, tiny_images(), 0)
    samples = [dataset[(0, index)] for index in range(2)]
    return DetectionBatch([dataclasses.replace(s, size=SIZES[0]) for s in samples])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pre-trainings of a ResNet-18, their statistics and norms random numbers."""
    folder = tmp_path_factory.mktemp("pretrained")
    kinds: dict[str, tuple[tuple[Level, ...], bool]] = {
        "both": ((P4, P3), False), "normed": ((P4, P3), True), "p4": ((P4,), False), "none": ((), False),
    }  # fmt: skip
    for name, (levels, fpn_norm) in kinds.items():
        model = ModelConfig(
            backbone="resnet18", levels=levels, fpn_width=WIDTH, dim=8, queue_size=16, group_size=4, fpn_norm=fpn_norm
        )
        network = Encoder(model)
        randomise_norms(network)
        state = {f"query.{key}": value for key, value in network.state_dict().items()}
        recipe = dataclasses.replace(Recipe(), model=model)
        content = {"resim": "test", "recipe": recipe.to_json(), "step": 7, "model": state}
        save_checkpoint(folder / f"{name}.pt", content)
    return {name: folder / f"{name}.pt" for name in kinds}


def built(config: DetectorConfig, weights: Weights | None = None) -> Any:
    """A detector with random norms, or with the weights, and what is frozen."""
    model = build_detector(config, tiny_images(), num_classes=2, seed=1)
    if weights is None:
        randomise_norms(model)
    else:
        load_init(model, config, weights)
    freeze_parts(model, config)
    return model


def is_frozen(name: str, config: DetectorConfig) -> bool:
    """Whether a parameter of this name is not trained."""
    parts = ["backbone.body", *map(fpn_place, config.frozen_fpn)]
    parts += ["roi_heads.box_head.layer4"] * (config.frozen_stages == 5)
    return name.startswith(tuple(f"{part}." for part in parts))
