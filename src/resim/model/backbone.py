"""Backbones by name: networks with feature maps at strides 8, 16 and 32 (C3, C4, C5)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from resim.acceleration import kernels
from resim.errors import UserError
from resim.optional_packages import import_optional

STAGES = ("C3", "C4", "C5")
CAFFE = "_caffe"
"""Suffix of the name of a ResNet whose strides are in the 1 x 1 convolutions."""

_RESNETS = re.compile(r"(wide_)?res(net|next)\d+\w*")


def torchvision_resnet(name: str, **settings: Any) -> Any:
    """torchvision's ResNet or ResNeXt of this name, without weights.

    With the suffix `_caffe`, the strides of stages 2 to 4 are in the first 1 x 1 convolution of a block, as in the
    Caffe models of the source, instead of in the 3 x 3 convolution, as in torchvision.

    Source: He et al., arXiv 1512.03385.
    """
    import torchvision  # here, as it is slow to import

    network: Any = torchvision.models.get_model(name.removesuffix(CAFFE), weights=None, **settings)
    if name.endswith(CAFFE):
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
    return network


class ResNet(nn.Module):
    """A torchvision ResNet or ResNeXt without its classifier; parameters keep torchvision's names.

    The stride is in the 3 x 3 convolution (v1.5) or, with the suffix `_caffe`, in the 1 x 1 before it (v1). The last
    BatchNorm of a block is not initialised to zero.

    Source: He et al., arXiv 1512.03385.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        network = torchvision_resnet(name)
        self.conv1, self.bn1, self.relu, self.maxpool = (
            network.conv1,
            network.bn1,
            network.relu,
            network.maxpool,
        )
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        top = network.fc.in_features
        self.channels = {"C3": top // 4, "C4": top // 2, "C5": top}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) -> C3, C4, C5: (N, channels, ceil(S / stride), ceil(S / stride)) at strides 8, 16, 32."""
        fast = None if torch.compiler.is_compiling() else kernels()
        maps = None if fast is None else fast.stage_maps(self, images)
        if maps is not None:
            return {stage: maps[stage] for stage in STAGES}
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return {"C3": c3, "C4": c4, "C5": self.layer4(c4)}


class TimmBackbone(nn.Module):
    """Any timm network whose feature maps include the strides 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = import_optional("timm", f"backbone 'timm/{name}' needs timm: pip install '.[timm]' in resim's clone")
        if not timm.is_model(name):
            raise UserError(f"backbone 'timm/{name}': timm {timm.__version__} has no model of that name")
        try:
            self.network = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, AttributeError, ValueError) as error:
            raise UserError(f"backbone 'timm/{name}' has no feature maps: {error}") from None
        # Swin and similar networks return (N, H, W, C)
        self.channels_come_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        strides = self.network.feature_info.reduction()
        stages = {8: "C3", 16: "C4", 32: "C5"}
        if not set(stages) <= set(strides):
            raise UserError(f"backbone 'timm/{name}' has features at strides {strides}; 8, 16 and 32 are needed")
        self.index = {stage: strides.index(stride) for stride, stage in stages.items()}
        self.channels = {stage: self.network.feature_info.channels()[i] for stage, i in self.index.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) -> C3, C4, C5 at strides 8, 16, 32."""
        maps = self.network(images)
        if self.channels_come_last:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        return {stage: maps[i] for stage, i in self.index.items()}


def build_backbone(name: str) -> ResNet | TimmBackbone:
    """Build the backbone called `name`: a torchvision ResNet or ResNeXt (`resnet50`, `resnet50_caffe`), or `timm/NAME`.

    Raises:
        UserError: there is no backbone of that name, or it has no features at strides 8, 16 and 32.
    """
    if name.startswith("timm/"):
        return TimmBackbone(name.removeprefix("timm/"))
    import torchvision

    known = [model for model in torchvision.models.list_models(torchvision.models) if _RESNETS.fullmatch(model)]
    caffe = name.endswith(CAFFE) and name.removesuffix(CAFFE) not in ("resnet18", "resnet34")  # no 1 x 1 convolutions
    if name not in known and not (caffe and name.removesuffix(CAFFE) in known):
        raise UserError(f"no backbone {name!r}: one of {', '.join(known)}, or timm/NAME for a timm network")
    return ResNet(name)
