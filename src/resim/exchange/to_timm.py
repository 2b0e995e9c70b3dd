"""Weights for timm: `timm.create_model(NAME, checkpoint_path=...)`, with or without `features_only`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from resim.errors import UserError
from resim.exchange.features import probe_images
from resim.exchange.state_files import write_state
from resim.exchange.targets import Check, Written
from resim.exchange.weights import Weights
from resim.model.backbone import CAFFE
from resim.optional_packages import find_optional

_STAGES = {4: "C2", 8: "C3", 16: "C4", 32: "C5"}


def write_timm(weights: Weights, folder: Path, name: str, metadata: Mapping[str, str]) -> Written:
    """Write the backbone under timm's names; verified in timm's own model where timm is installed."""
    backbone = weights.config.backbone.removeprefix("timm/")
    if backbone.endswith(CAFFE):
        raise UserError(
            f"{weights.path}: {backbone} has its strides in the 1 x 1 convolutions, where timm has them in the 3 x 3: "
            "use --to detectron2, safetensors, hub or onnx"
        )
    prefix = "backbone.network." if weights.config.backbone.startswith("timm/") else "backbone."
    state = {key.removeprefix(prefix): value for key, value in weights.tensors.items() if key.startswith(prefix)}
    write_state(folder / name, state, metadata)
    features_only = prefix != "backbone."  # the names are those of timm's feature extractor
    kind = "features_only=True" if features_only else "num_classes=0"
    return Written(
        files=(name,),
        target=f"timm, {backbone}",
        load=f"timm.create_model({backbone!r}, {kind}, checkpoint_path={name!r})",
        checks=_timm_checks(backbone, folder / name, features_only=features_only),
        left_out=tuple(key for key in weights.tensors if not key.startswith(prefix)),
    )


@torch.no_grad()
def _timm_checks(name: str, path: Path, *, features_only: bool) -> tuple[Check, ...]:
    """The maps of timm's feature extractor and, where the file is of a complete model, C5 of that model."""
    timm = find_optional("timm")
    if timm is None:
        return ()
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no model {name!r}")
    images = probe_images()
    extractor = timm.create_model(name, features_only=True, checkpoint_path=str(path)).eval()
    maps = dict(zip(extractor.feature_info.reduction(), extractor(images), strict=True))
    if getattr(extractor, "output_fmt", "NCHW") == "NHWC":
        maps = {stride: features.permute(0, 3, 1, 2) for stride, features in maps.items()}
    checks = [Check(images, {_STAGES[stride]: features for stride, features in maps.items() if stride in _STAGES})]
    if not features_only:
        model = timm.create_model(name, num_classes=0, checkpoint_path=str(path)).eval()
        checks.append(Check(images, {"C5": model.forward_features(images)}))
    return tuple(checks)
