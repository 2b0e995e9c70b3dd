"""Weights for torchvision: a classification ResNet, and the backbone with FPN of its detectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from resim.errors import UserError
from resim.exchange.features import probe_images
from resim.exchange.names import to_torchvision_detection
from resim.exchange.state_files import read_state, write_state
from resim.exchange.targets import Check, Written
from resim.exchange.weights import Weights
from resim.model.backbone import CAFFE


def write_torchvision(weights: Weights, folder: Path, name: str, metadata: Mapping[str, str]) -> Written:
    """Write the backbone under torchvision's names; verified in `torchvision.models.NAME`."""
    backbone = _torchvision_name(weights, "torchvision")
    state = {key.removeprefix("backbone."): v for key, v in weights.tensors.items() if key.startswith("backbone.")}
    write_state(folder / name, state, metadata)
    model: Any = torchvision.models.get_model(backbone, weights=None).eval()
    loaded = model.load_state_dict(read_state(folder / name), strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    images = probe_images()
    return Written(
        files=(name,),
        target=f"torchvision {torchvision.__version__}, {backbone}",
        load=f"torchvision.models.{backbone}().load_state_dict({_loader(name)}, strict=False)",
        checks=(Check(images, stage_maps(model, images)),),
        starts_new=tuple(loaded.missing_keys),
        left_out=tuple(key for key in weights.tensors if not key.startswith("backbone.")),
    )


def write_torchvision_detection(weights: Weights, folder: Path, name: str, metadata: Mapping[str, str]) -> Written:
    """Write backbone and FPN under the names of torchvision's Faster and Mask R-CNN; verified in their backbone."""
    backbone = _torchvision_name(weights, "torchvision-detection")
    renamed = {key: to_torchvision_detection(key) for key in weights.tensors}
    state = {theirs: weights.tensors[ours] for ours, theirs in renamed.items() if theirs is not None}
    write_state(folder / name, state, metadata)
    config = weights.config
    has_fpn = any(key.startswith("fpn.") for key in weights.tensors)
    width, norm = (config.fpn_width, config.fpn_norm) if has_fpn else (256, False)
    model = detection_backbone(backbone, width=width, norm=norm).eval()
    stored = {key.removeprefix("backbone."): value for key, value in read_state(folder / name).items()}
    loaded = model.load_state_dict(stored, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    images = probe_images()
    with torch.no_grad():
        pyramid = model(images)
    maps = {f"P{int(key) + 2}": value for key, value in pyramid.items() if key.isdecimal()}
    return Written(
        files=(name,),
        target=f"torchvision {torchvision.__version__}, {backbone} with FPN",
        load=f"import torch, torchvision{', safetensors.torch' if name.endswith('.safetensors') else ''}; "
        f"model = {_mask_rcnn(backbone, model, width=width, norm=norm)}; "
        f"model.load_state_dict({_loader(name)}, strict=False)",
        checks=(Check(images, stage_maps(model.body, images) | (maps if has_fpn else {})),),
        starts_new=(*(f"backbone.{key}" for key in loaded.missing_keys), "rpn.*", "roi_heads.*"),
        left_out=tuple(ours for ours, theirs in renamed.items() if theirs is None),
        notes=("the line that loads it builds a Mask R-CNN of 91 classes; its proposals and heads are new",),
    )


def _mask_rcnn(name: str, model: BackboneWithFPN, *, width: int, norm: bool) -> str:
    """Python that builds torchvision's Mask R-CNN on this backbone."""
    package = "torchvision.models.detection"
    if (name, width, norm) == ("resnet50", 256, False):
        return f"{package}.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)"
    channels = [block[0].in_channels for block in cast("Any", model.fpn.inner_blocks)]
    layers = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    norm_layer = ", norm_layer=torch.nn.BatchNorm2d" if norm else ""
    network = f"torchvision.models.{name}(weights=None)"
    backbone = f"{package}.backbone_utils.BackboneWithFPN({network}, {layers}, {channels}, {width}{norm_layer})"
    return f"{package}.MaskRCNN({backbone}, num_classes=91)"


def detection_backbone(name: str, *, width: int, norm: bool) -> BackboneWithFPN:
    """The backbone of torchvision's detectors, with trainable BatchNorm: maps C2 to C5 and an FPN over them."""
    network: Any = torchvision.models.get_model(name, weights=None)
    top = network.fc.in_features
    layers = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    return BackboneWithFPN(
        network, layers, [top // 8, top // 4, top // 2, top], width, norm_layer=nn.BatchNorm2d if norm else None
    )


@torch.no_grad()
def stage_maps(network: Any, images: Tensor) -> dict[str, Tensor]:
    """C2 to C5 of a torchvision ResNet: the outputs of layer1 to layer4."""
    maps: OrderedDict[str, Tensor] = OrderedDict()
    hooks = [
        getattr(network, f"layer{stage}").register_forward_hook(
            lambda _module, _inputs, output, stage=stage: maps.update({f"C{stage + 1}": output})
        )
        for stage in range(1, 5)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return dict(maps)


def _torchvision_name(weights: Weights, target: str) -> str:
    name = weights.config.backbone
    if name.startswith("timm/"):
        raise UserError(
            f"{weights.path}: backbone {name} cannot be exported to {target}: use --to timm, safetensors, hub or onnx"
        )
    if name.endswith(CAFFE):
        raise UserError(
            f"{weights.path}: {name} has its strides in the 1 x 1 convolutions, where {target} has them in the 3 x 3: "
            "use --to detectron2, safetensors, hub or onnx"
        )
    return name


def _loader(name: str) -> str:
    if name.endswith(".safetensors"):
        return f"safetensors.torch.load_file({name!r})"
    return f"torch.load({name!r})['state_dict']"
