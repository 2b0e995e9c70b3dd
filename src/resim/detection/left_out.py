"""Images and objects that rules, not faults, exclude from training and from scores: how many, and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData, Record, subset
from resim.detection.config import DetectRecipe
from resim.detection.samples import SMALLEST, clipped

MANY = 0.1  # share of crowd regions from which they are hardly meant: of COCO's own annotations 1 % are
BRUSHES = "CVAT, RectLabel and SAM's tools mark every brush mask so"


def left_out(data: DetectionData, recipe: DetectRecipe) -> list[str]:
    """Lines on the images and objects that are not learnt from, one for each reason.

    Args:
        data: the whole split, of which the recipe may take a share.
        recipe: what is learnt.
    """
    lines = []
    if recipe.tune.fraction < 1:
        whole, data = data, subset(data, recipe.tune.fraction, recipe.tune.seed)
        lines.append(
            f"left out: {len(whole) - len(data)} of {len(whole)} images, by --fraction {recipe.tune.fraction:g}"
        )
    objects: dict[str, int] = {}
    images: dict[str, int] = {}
    without_object = nothing_left = unlabelled = learnt = 0
    for record in data.records:
        keep = np.ones(len(record), dtype=bool)
        for reason, out in _reasons(record, recipe):
            objects[reason] = objects.get(reason, 0) + int((keep & out).sum())
            images[reason] = images.get(reason, 0) + bool((keep & out).any())
            keep &= ~out
        learnt += int(keep.sum())
        without_object += len(record) == 0
        nothing_left += len(record) > 0 and not keep.any()
        if recipe.detector.keypoints and record.keypoints is not None:
            unlabelled += int((keep & ~(record.keypoints[..., 2] > 0).any(axis=1)).sum())
    total = data.num_objects
    for reason, number in objects.items():
        if number:
            why = _crowd(data) + crowd_hint(data, number) if reason == "crowd" else _TEXT[reason]
            among = f"{number} of {counted(total, 'object')}, in {counted(images[reason], 'image')}"
            lines.append(f"left out: {among}: {why}")
    background = "learnt from as background (--empty)" if recipe.images.empty else "left out"
    remedy = "" if recipe.images.empty else " (--empty learns from them as background)"
    for number, what in ((without_object, "no object in them"), (nothing_left, "all of their objects are left out")):
        if number:
            lines.append(f"{background}: {number} of {counted(len(data), 'image')}: {what}{remedy}")
    if unlabelled:
        lines.append(f"no labelled keypoint: {unlabelled} of {counted(learnt, 'object')}, whose boxes alone are learnt")
    return lines


def not_scored(data: DetectionData, *, masks: bool = False, keypoints: bool = False) -> list[str]:
    """Lines on the objects that the evaluation counts neither as detected nor as missed.

    Args:
        data: the truth.
        masks: whether masks are scored.
        keypoints: whether keypoints are scored.
    """
    crowd = sum(int(record.crowd.sum()) for record in data.records)
    total = counted(data.num_objects, "object")
    difficult = sum(int((record.difficult & ~record.crowd).sum()) for record in data.records)
    lines = []
    if crowd:
        lines.append(f"not scored: {crowd} of {total}: {_crowd(data)}{crowd_hint(data, crowd)}")
    if difficult and data.kind == "voc":
        lines.append(f"not scored: {difficult} of {total}: {_TEXT['difficult']}")
    if masks and data.has_masks:
        bare = sum(int((~record.has_mask & ~record.crowd).sum()) for record in data.records)
        if bare:
            lines.append(f"not scored as masks: {bare} of {total}: {_TEXT['mask']}")
    if keypoints and data.has_keypoints:
        bare = sum(
            int((~(r.keypoints[..., 2] > 0).any(axis=1) & ~r.crowd & np.isin(r.labels, data.keypoint_labels)).sum())
            for r in data.records
            if r.keypoints is not None
        )
        if bare:
            lines.append(f"not scored as keypoints: {counted(bare, 'object')}: no labelled keypoint")
    return lines


def copies(data: DetectionData) -> list[str]:
    """A line on the objects with the class, box and mask of another one of their image; empty if there are none."""
    count, first = 0, ""
    for record in data.records:
        known: dict[tuple[float, ...], int] = {}
        for index, values in enumerate(zip(record.labels.tolist(), *record.boxes.T.tolist(), strict=True)):
            other = known.setdefault(values, index)
            if other != index and (record.masks is None or record.masks[other] == record.masks[index]):
                count += 1
                ids = record.annotation_ids
                first = first or f"annotations {ids[other]} and {ids[index]} of image {record.image_id}"
    if not count:
        return []
    verb = "has" if count == 1 else "have"
    return [
        f"copies: {count} of {counted(data.num_objects, 'object')} {verb} the class and place of another one of their "
        f"image, such as {first}: they are read like all others, and evaluations count a copy as missed"
    ]


def crowd_hint(data: DetectionData, number: int) -> str:
    """What to do about so many crowd regions; empty where it is no COCO file that could be read otherwise."""
    if data.kind != "coco":
        return ""
    hint = "; --crowd-as-objects takes them as objects"
    return f"{hint} ({BRUSHES})" if number >= MANY * data.num_objects else hint


def _crowd(data: DetectionData) -> str:
    return "crowd regions (iscrowd 1)" if data.kind == "coco" else "groups whose members could not be separated"


_TEXT = {
    "small": f"less than {SMALLEST} px wide or high within their image",
    "difficult": "marked difficult",
    "mask": "no mask",
}


def _reasons(record: Record, recipe: DetectRecipe) -> Iterator[tuple[str, np.ndarray]]:
    """Each reason with (n,) bool, the objects that it leaves out: all that `objects_to_learn` does."""
    boxes = clipped(record)
    yield "crowd", record.crowd
    yield "small", np.asarray((boxes[:, 2:] - boxes[:, :2] < SMALLEST).any(axis=1))
    if not recipe.images.difficult:
        yield "difficult", record.difficult
    if recipe.detector.masks:
        yield "mask", np.logical_not(record.has_mask)
