"""Weights for Detectron2: a backbone file that its checkpointer matches by name with any of its ResNet models."""

from __future__ import annotations

import contextlib
import importlib
import logging
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resim.errors import UserError
from resim.exchange.features import probe_images
from resim.exchange.names import to_detectron2
from resim.exchange.state_files import write_detectron2_file
from resim.exchange.targets import Check, Written
from resim.exchange.weights import Weights
from resim.model.backbone import CAFFE
from resim.optional_packages import find_optional

# Detectron2's settings for the ResNets of other shapes than ResNet-50
_SETTINGS: dict[str, dict[str, int]] = {
    "resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "resnet34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "resnet50": {},
    "resnet101": {"DEPTH": 101},
    "resnet152": {"DEPTH": 152},
    "resnext50_32x4d": {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
    "resnext101_32x8d": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8},
    "resnext101_64x4d": {"DEPTH": 101, "NUM_GROUPS": 64, "WIDTH_PER_GROUP": 4},
    "wide_resnet50_2": {"WIDTH_PER_GROUP": 128},
    "wide_resnet101_2": {"DEPTH": 101, "WIDTH_PER_GROUP": 128},
}
_SETTINGS |= {
    f"{name}{CAFFE}": settings | {"STRIDE_IN_1X1": True}
    for name, settings in _SETTINGS.items()
    if name not in ("resnet18", "resnet34")
}


def write_detectron2(weights: Weights, folder: Path, name: str, metadata: Mapping[str, str]) -> Written:
    """Backbone and FPN under Detectron2's names, for its FPN models and, of a bottleneck ResNet, its C4 models.

    Verified in both where Detectron2 is installed: its checkpointer fills all entries except those that start new.

    Raises:
        UserError: a backbone that Detectron2 does not have.
    """
    backbone = weights.config.backbone
    if backbone not in _SETTINGS:
        raise UserError(f"{weights.path}: Detectron2 has no {backbone}: use --to timm, safetensors, hub or onnx")
    renamed = {ours: to_detectron2(ours) for ours in weights.tensors}
    state = {theirs: weights.tensors[ours] for ours, theirs in renamed.items() if theirs is not None}
    write_detectron2_file(folder / name, state, metadata)
    expected = starts_new(weights)
    checks, target = _detectron2_checks(weights, folder / name, expected)
    settings = [f"MODEL.RESNETS.{key} {value}" for key, value in _SETTINGS[backbone].items()]
    if any(name.startswith("fpn.") for name in weights.tensors):
        if weights.config.fpn_width != 256:
            settings.append(f"MODEL.FPN.OUT_CHANNELS {weights.config.fpn_width}")
        if not weights.config.fpn_norm:  # our configs have SyncBN there, without biases
            settings.append("MODEL.FPN.NORM ''")
    return Written(
        files=(name,),
        target=target,
        load=" ".join(
            [
                "python -m resim.exchange.detectron2 train --config-file CONFIG MODEL.WEIGHTS",
                shlex.quote(name),
                *settings,
            ]
        ),
        checks=checks,
        starts_new=expected,
        left_out=tuple(ours for ours, theirs in renamed.items() if theirs is None),
        notes=(
            "of the new entries, backbone.fpn_* is in FPN models, roi_heads.res5.norm in C4 models with one more norm; "
            "the RPN and the other heads are new in all detectors",
        ),
    )


def starts_new(weights: Weights) -> tuple[str, ...]:
    """Entries of backbone, FPN and fifth stage that start new in Detectron2's FPN models and in its C4 models.

    They include the C4 models' extra norm after the fifth stage; heads and proposals start new in all detectors.
    """
    norm = [f"norm.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    leaves = ["weight", *(norm if weights.config.fpn_norm else ["bias"])]
    parts = [f"fpn_{part}{level}" for level in (2, 3, 4, 5) for part in ("lateral", "output")]
    present = {(to_detectron2(name) or "").partition(".")[0] for name in weights.tensors}
    fpn = [f"backbone.{part}.{leaf}" for part in parts if part not in present for leaf in leaves]
    return (*fpn, *(f"roi_heads.res5.{leaf}" for leaf in norm))


def detectron2_config(weights: Weights, *, c4: bool, norm: str = "SyncBN") -> Any:
    """Detectron2's config of the network of these weights, on the CPU."""
    config: Any = importlib.import_module("detectron2.config").get_cfg()
    config.MODEL.DEVICE = "cpu"
    resnets = config.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = 50, norm, False
    for key, value in _SETTINGS[weights.config.backbone].items():
        setattr(resnets, key, value)
    if c4:
        config.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
        return config
    stages = ["res2", "res3", "res4", "res5"]
    config.MODEL.BACKBONE.NAME, config.MODEL.ROI_HEADS.NAME = "build_resnet_fpn_backbone", "StandardROIHeads"
    resnets.OUT_FEATURES = config.MODEL.FPN.IN_FEATURES = stages
    config.MODEL.FPN.OUT_CHANNELS = weights.config.fpn_width
    config.MODEL.FPN.NORM = norm if weights.config.fpn_norm else ""
    config.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    config.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    config.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    config.MODEL.ROI_BOX_HEAD.NAME, config.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    config.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return config


def load_in_detectron2(path: Path, model: Any) -> set[str]:
    """Load a file with Detectron2's checkpointer; returns the entries of the model that it did not fill.

    All entries are set to NaN or -1 before, so that unfilled ones are recognised.
    """
    checkpoint: Any = importlib.import_module("detectron2.checkpoint")
    state: dict[str, Tensor] = model.state_dict()
    for value in state.values():
        value.fill_(float("nan") if value.is_floating_point() else -1)
    checkpoint.DetectionCheckpointer(model).load(str(path))
    marks = {True: lambda value: bool(value.isnan().any()), False: lambda value: bool((value == -1).any())}
    return {name for name, value in model.state_dict().items() if marks[value.is_floating_point()](value)}


@torch.no_grad()
def detectron2_maps(model: Any, images: Tensor, levels: list[str], *, c4: bool) -> dict[str, Tensor]:
    """C2 to C5 (of a C4 model C4 and C5) and the FPN levels named, as Detectron2's own modules compute them."""
    if c4:
        maps = {"C4": model.backbone(images)["res4"]}
        return maps | {"C5": model.roi_heads.res5(maps["C4"])}
    stages = model.backbone.bottom_up(images)
    pyramid = model.backbone(images)
    return {f"C{name[-1]}": value for name, value in stages.items()} | {name: pyramid[name.lower()] for name in levels}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and log lines of other programs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _detectron2_checks(weights: Weights, path: Path, expected: tuple[str, ...]) -> tuple[tuple[Check, ...], str]:
    with quiet():
        modeling = find_optional("detectron2.modeling")
        if modeling is None:
            return (), "Detectron2"
        version = importlib.import_module("detectron2").__version__
        images, checks = probe_images(), []
        bottleneck = weights.config.backbone not in ("resnet18", "resnet34")
        for c4 in (False, True) if bottleneck else (False,):
            model = modeling.build_model(detectron2_config(weights, c4=c4)).eval()
            new = load_in_detectron2(path, model)
            body = {name for name in new if name.startswith(("backbone.", "roi_heads.res5."))}
            surplus = body - set(expected)
            if surplus:
                raise UserError(f"{weights.path}: Detectron2 did not load {', '.join(sorted(surplus)[:3])}")
            levels = [level.name for level in weights.config.levels if level.from_fpn]
            maps = detectron2_maps(model, images, levels, c4=c4)
            checks.append(Check(images, maps))
    return tuple(checks), f"Detectron2 {version}, {'FPN and C4 models' if bottleneck else 'FPN model'}"
