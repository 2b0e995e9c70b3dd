"""A data set made ready for a recipe: its share of the images, what can be learnt from, classes that agree."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from resim.detection.config import DetectorConfig, DetectRecipe
from resim.detection.records import DetectionData, subset
from resim.detection.samples import objects_to_learn
from resim.errors import UserError
from resim.exchange.weights import Weights


def usable(data: DetectionData, recipe: DetectRecipe) -> DetectionData:
    """The share of the images that is asked for, without those that have nothing to learn from.

    Raises:
        UserError: none is left.
    """
    whole = data
    if recipe.tune.fraction < 1:
        data = subset(data, recipe.tune.fraction, recipe.tune.seed)
    if not recipe.images.empty:
        difficult, masks = recipe.images.difficult, recipe.detector.masks
        kept = tuple(r for r in data.records if objects_to_learn(r, difficult=difficult, masks=masks).any())
        data = dataclasses.replace(data, records=kept)
    if not data.records:
        raise UserError(f"{data.source}: none of its {len(whole)} images has an object to learn from")
    return data


def check_tasks(detector: DetectorConfig, data: DetectionData) -> None:
    """Raise a UserError if the data has not what the detector is to find."""
    if detector.masks and not data.has_masks:
        raise UserError(f"{data.source}: has no masks: leave --masks out")
    if detector.keypoints and not data.has_keypoints:
        raise UserError(f"{data.source}: has no keypoints: leave --keypoints out")


def with_classes_of(
    data: DetectionData, classes: Sequence[str], category_ids: Sequence[int], source: str
) -> DetectionData:
    """The data under the classes that a detector was trained on, of which it may lack some.

    Args:
        data: to evaluate on.
        classes: names.
        category_ids: of each class.
        source: whose classes they are, for messages.

    Raises:
        UserError: the data has a class that is not among them.
    """
    known = dict(zip(category_ids, classes, strict=True))
    strange = [name for name, key in zip(data.classes, data.category_ids, strict=True) if known.get(key) != name]
    if strange:
        raise UserError(f"{data.source}: has classes that {source} has not: {', '.join(strange[:5])}")
    if data.category_ids == tuple(category_ids):
        return data
    place = np.array([0, *(list(category_ids).index(key) + 1 for key in data.category_ids)])
    return dataclasses.replace(
        data,
        records=tuple(dataclasses.replace(record, labels=place[record.labels]) for record in data.records),
        classes=tuple(classes),
        category_ids=tuple(category_ids),
        keypoint_labels=tuple(int(place[label]) for label in data.keypoint_labels),
    )


def fingerprint(data: DetectionData) -> str:
    """A hash of the classes, of image ids, boxes and labels, and of what is set aside."""
    digest = hashlib.sha256(repr((data.classes, data.category_ids, data.keypoint_names)).encode())
    for record in data.records:
        digest.update(repr((record.image_id, record.width, record.height)).encode())
        for values in (record.boxes, record.labels, record.crowd, record.difficult):
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def weights_fingerprint(weights: Weights) -> str:
    """A hash of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.tensors.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
