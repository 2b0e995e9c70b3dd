"""Detectors from torchvision's parts: Faster, Mask and Keypoint R-CNN on a ResNet's FPN, or on its C4.

Shapes: N images, R regions, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from resim.detection.config import DetectorConfig, ImagesConfig
from resim.detection.norms import freeze, norm_layer
from resim.detection.torchvision_patches import ChosenSizes, SeededSampler, set_betas
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.model.backbone import build_backbone, torchvision_resnet
from resim.views.photometric import MEAN, STD

STAGES = ("layer1", "layer2", "layer3", "layer4")
RATIOS = (0.5, 1.0, 2.0)
FPN_WIDTH = 256
CANDIDATES = {"fpn": (2_000, 1_000), "c4": (12_000, 6_000)}  # Detectron2's; on C4 all anchors are on one level


class Res5(nn.Module):
    """The fifth stage of a ResNet as a box head, followed by one extra normalisation.

    Source: He et al., arXiv 1911.05722, appendix: R50-C4 with BatchNorm needs it.
    """

    def __init__(self, layer4: nn.Module, norm: nn.Module, *, for_masks: bool = False) -> None:
        super().__init__()
        self.layer4, self.norm, self.for_masks = layer4, norm, for_masks
        self.last: Tensor | None = None
        """In training, for masks: the maps of the last regions, until the mask head takes them."""

    def maps(self, regions: Tensor) -> Tensor:
        """(R, C4 channels, 14, 14) -> (R, C5 channels, 7, 7)."""
        return self.norm(self.layer4(regions))

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C4 channels, 14, 14) -> (R, C5 channels)."""
        maps = self.maps(regions)
        self.last = maps if self.training and self.for_masks else None
        return maps.mean(dim=(2, 3))


class _BoxPool(MultiScaleRoIAlign):
    """Torchvision's pooling, which in training keeps the regions that it pooled."""

    def __init__(self) -> None:
        super().__init__(["0"], output_size=14, sampling_ratio=2)
        self.boxes: list[Tensor] = []

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        self.boxes = boxes if self.training else []
        return super().forward(x, boxes, image_shapes)


class _SharedMaps(MultiScaleRoIAlign):
    """The input of a C4 detector's mask head: the box head's maps of the same regions, (R, C5 channels, 7, 7).

    In training they are selected from those that the box head has computed for all sampled regions, as Detectron2's C4
    heads do, so that BatchNorm's statistics are of these alone.
    """

    def __init__(self, pool: _BoxPool, box_head: Res5) -> None:
        super().__init__(["0"], output_size=7, sampling_ratio=2)
        self._shared = (pool, box_head)  # in a tuple: not registered twice

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        pool, box_head = self._shared
        if not self.training:
            return box_head.maps(pool(x, boxes, image_shapes))
        assert box_head.last is not None
        rows, start = [], 0
        for sampled, positive in zip(pool.boxes, boxes, strict=True):
            is_same = (positive[:, None] == sampled[None]).all(dim=2)
            rows.append(start + is_same.int().argmax(dim=1))
            start += len(sampled)
        maps = box_head.last[torch.cat(rows)]
        pool.boxes, box_head.last = [], None
        return maps


class _C4(nn.Module):
    """A ResNet up to its fourth stage: one map at stride 16."""

    def __init__(self, network: Any, channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(network, {"layer3": "0"})
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.body(images)


def build_detector(
    config: DetectorConfig,
    images: ImagesConfig,
    *,
    num_classes: int,
    num_keypoints: int = 0,
    processes: Processes | None = None,
    seed: int = 0,
) -> GeneralizedRCNN:
    """A detector with new weights. With `norm="frozen"` and no FPN norm its state is laid out as torchvision's own.

    Stages are frozen by `freeze_stages`, after weights have been loaded.

    Args:
        config: with its backbone and FPN width resolved.
        images: sizes of images.
        num_classes: without the background.
        num_keypoints: of a Keypoint R-CNN.
        processes: that BatchNorm is synchronised over.
        seed: of the new weights.

    Raises:
        UserError: no such backbone.
    """
    if config.backbone == "auto" or config.backbone.startswith("timm/"):
        raise UserError(f"backbone {config.backbone!r}: a detector needs a torchvision ResNet, such as resnet50")
    with torch.random.fork_rng([]):
        with torch.device("meta"):
            build_backbone(config.backbone)  # raises if there is none of that name
        torch.manual_seed(seed)
        norm = norm_layer(config.norm, processes)
        network = torchvision_resnet(config.backbone, norm_layer=norm)
        top = network.fc.in_features
        candidates = CANDIDATES[config.neck]
        settings: dict[str, Any] = {
            "rpn_pre_nms_top_n_train": config.candidates_train or candidates[0],
            "rpn_pre_nms_top_n_test": config.candidates_test or candidates[1],
            "rpn_post_nms_top_n_train": config.proposals_train,
            "rpn_post_nms_top_n_test": config.proposals_test,
            "rpn_batch_size_per_image": config.rpn_regions,
            "box_batch_size_per_image": config.box_regions,
            "box_score_thresh": config.score_threshold,
            "box_detections_per_img": config.detections,
        }
        build = _fpn_detector if config.neck == "fpn" else _c4_detector
        model = build(config, network, top, norm, num_classes, num_keypoints, settings)
    sizes: Any = [*images.min_sizes, images.test_size]  # torchvision takes the last at test
    model.transform = ChosenSizes(sizes, images.max_size, list(MEAN), list(STD))
    rpn: Any = model.rpn
    heads: Any = model.roi_heads
    for stream, part in enumerate((rpn, heads), start=1):
        sampler = part.fg_bg_sampler
        part.fg_bg_sampler = SeededSampler(sampler.batch_size_per_image, sampler.positive_fraction, stream)
    set_betas(model, rpn=config.rpn_beta, box=config.box_beta)
    return model


def _fpn_detector(
    config: DetectorConfig, network: Any, top: int, norm: Any, classes: int, keypoints: int, settings: dict[str, Any]
) -> GeneralizedRCNN:
    backbone = BackboneWithFPN(
        network,
        return_layers={stage: str(index) for index, stage in enumerate(STAGES)},
        in_channels_list=[top // 8, top // 4, top // 2, top],
        out_channels=config.fpn_width or FPN_WIDTH,
        norm_layer=norm if config.fpn_norm else None,
    )
    anchors = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), (RATIOS,) * 5)
    kind: Any = MaskRCNN if config.masks else KeypointRCNN if config.keypoints else FasterRCNN
    if config.keypoints:
        settings = settings | {"num_keypoints": keypoints}
    model = kind(backbone, classes + 1, rpn_anchor_generator=anchors, **settings)
    if config.keypoints:  # torchvision's loss takes a view of the heat maps, which channels-last ones do not allow
        model.roi_heads.keypoint_predictor.register_forward_hook(lambda module, inputs, maps: maps.contiguous())
    return model


def _c4_detector(
    config: DetectorConfig, network: Any, top: int, norm: Any, classes: int, keypoints: int, settings: dict[str, Any]
) -> GeneralizedRCNN:
    box_head, box_pool = Res5(network.layer4, norm(top), for_masks=config.masks), _BoxPool()
    mask_parts: dict[str, Any] = {}
    if config.masks:
        mask_parts = {
            "mask_roi_pool": _SharedMaps(box_pool, box_head),
            "mask_head": nn.Identity(),
            "mask_predictor": MaskRCNNPredictor(top, 256, classes + 1),
        }
    kind: Any = MaskRCNN if config.masks else FasterRCNN
    return kind(
        _C4(network, top // 2),
        rpn_anchor_generator=AnchorGenerator((config.anchor_sizes,), (RATIOS,)),
        box_roi_pool=box_pool,
        box_head=box_head,
        box_predictor=FastRCNNPredictor(top, classes + 1),
        **mask_parts,
        **settings,
    )


def freeze_stages(model: GeneralizedRCNN, stages: int) -> None:
    """Fix the stem (1), the first stage too (2), and so on; their BatchNorms keep the statistics that they have."""
    body: Any = model.backbone.body
    named = [("conv1", "bn1"), *((stage,) for stage in STAGES)]
    for name in (name for names in named[:stages] for name in names):
        if name == "layer4" and isinstance(model.roi_heads.box_head, Res5):
            freeze(model.roi_heads.box_head.layer4)
        elif name == "bn1":
            holder = nn.ModuleDict({"bn1": body["bn1"]})
            freeze(holder)
            body["bn1"] = holder["bn1"]
        else:
            freeze(body[name])
