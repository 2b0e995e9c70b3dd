"""Whether two detectors are the same: equal settings, and on the same images equal maps and detections.

Shapes: n detections, H x W pixels of an image, K keypoints.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from resim.exchange.features import differences

Detections = dict[str, Tensor]

PROPOSALS = 100
"""Proposals of an image that both detectors evaluate, at most: more cost memory and prove nothing more."""
_SIZES = ((96, 128), (120, 90))


def raw_images(seed: int = 0) -> list[Tensor]:
    """Two images of coarse coloured noise, one wide and one tall: (3, H, W) float64 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for height, width in _SIZES:
        coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator, dtype=torch.float64)
        images.append(F.interpolate(coarse, size=(height, width), mode="bilinear")[0])
    return images


def settings(model: GeneralizedRCNN) -> dict[str, Any]:
    """Everything but the weights that decides a detector's maps and detections."""
    parts: Any = model
    transform, rpn, heads = parts.transform, parts.rpn, parts.roi_heads
    return {
        "size at test": (transform.min_size[-1], transform.max_size, transform.size_divisible),
        "mean and deviation": (transform.image_mean, transform.image_std),
        "anchors": (rpn.anchor_generator.sizes, rpn.anchor_generator.aspect_ratios),
        "proposals": (
            rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"], rpn.nms_thresh, rpn.score_thresh,
            rpn.min_size,
        ),
        "box coding": (rpn.box_coder.weights, heads.box_coder.weights),
        "detections": (heads.score_thresh, heads.nms_thresh, heads.detections_per_img),
        "kind": (heads.has_mask(), heads.has_keypoint()),
    }  # fmt: skip


@torch.no_grad()
def agreement(ours: GeneralizedRCNN, theirs: GeneralizedRCNN, images: Sequence[Tensor]) -> dict[str, float]:
    """The largest difference of each map and of each part of the detections, as `features.differences` has it.

    Both compute in float64, so that rounding decides nothing, and return every detection, whatever its score. Boxes,
    masks and keypoints are relative to the largest value where that is above 1. Infinite where the numbers of
    detections differ or a value is not finite.

    Args:
        ours: in evaluation mode.
        theirs: the same detector as another program built it.
        images: (3, H, W) float64 in [0, 1].
    """
    pair = [_for_comparison(model) for model in (ours, theirs)]
    largest: dict[str, float] = {}
    for image in images:  # one at a time, so that none is padded to the size of another
        (maps, detections), (their_maps, their_detections) = (_run(model, image) for model in pair)
        together = differences(maps, their_maps) | _detection_differences(detections, their_detections)
        missing = {name: float("inf") for name in {*maps, *detections} - set(together)}
        for name, value in (together | missing).items():
            largest[name] = max(value, largest.get(name, 0.0))
    return largest


def _for_comparison(model: GeneralizedRCNN) -> Any:
    parts: Any = copy.deepcopy(model).double().eval()
    parts.roi_heads.score_thresh = 0.0
    limits = parts.rpn._post_nms_top_n
    parts.rpn._post_nms_top_n = limits | {"testing": min(PROPOSALS, limits["testing"])}
    return parts


def _run(model: Any, image: Tensor) -> tuple[dict[str, Tensor], Detections]:
    """The maps of a detector, by their names (P2 to P6, or C4), and its detections."""
    maps: dict[str, Tensor] = {}
    hook = model.backbone.register_forward_hook(lambda _module, _inputs, output: maps.update(output))
    detections = model([image])[0]
    hook.remove()
    names = {str(place): f"P{place + 2}" for place in range(4)} | {"pool": "P6"} if len(maps) > 1 else {"0": "C4"}
    return {names[key]: value for key, value in maps.items()}, detections


def _detection_differences(ours: Detections, theirs: Detections) -> dict[str, float]:
    if ours.keys() != theirs.keys() or len(ours["boxes"]) != len(theirs["boxes"]):
        return {name: float("inf") for name in ours}
    if not len(ours["boxes"]):
        return dict.fromkeys(ours, 0.0)
    order = _matched(ours, theirs)
    return differences(ours, {name: value[order] for name, value in theirs.items()})


def _matched(ours: Detections, theirs: Detections) -> Tensor:
    """For each detection of ours the nearest of theirs: detections of one score may stand in any order."""
    distances = torch.cdist(ours["boxes"], theirs["boxes"], p=1)
    distances[ours["labels"][:, None] != theirs["labels"][None]] = float("inf")
    order = []
    for row in distances:
        nearest = int(row.argmin())
        order.append(nearest)
        distances[:, nearest] = float("inf")
    return torch.tensor(order, dtype=torch.int64)
