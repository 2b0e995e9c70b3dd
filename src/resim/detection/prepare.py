"""A data set prepared for a recipe: its share of the images, those with objects to learn from, matching classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData, subset
from resim.detection.config import DetectorConfig, DetectRecipe
from resim.detection.left_out import left_out
from resim.detection.samples import objects_to_learn
from resim.errors import UserError
from resim.exchange.weights import Weights


def usable(data: DetectionData, recipe: DetectRecipe) -> DetectionData:
    """The share of the images that `fraction` names, without those that have nothing to learn from.

    Raises:
        UserError: none is left.
    """
    all_data = data
    if recipe.tune.fraction < 1:
        data = subset(data, recipe.tune.fraction, recipe.tune.seed)
    if not recipe.images.empty:
        difficult, masks = recipe.images.difficult, recipe.detector.masks
        kept = tuple(r for r in data.records if objects_to_learn(r, difficult=difficult, masks=masks).any())
        data = dataclasses.replace(data, records=kept)
    if not data.records:
        what = f"{data.source}: none of its {counted(len(all_data), 'image')} has an object to learn from"
        raise UserError("; ".join([what, *left_out(all_data, recipe), *data.repairs.reasons()]))
    return data


def check_tasks(detector: DetectorConfig, data: DetectionData) -> None:
    """Raise a UserError if the data lacks the masks or keypoints that the detector learns."""
    if detector.masks and not data.has_masks:
        why = data.repairs.reasons("bad-mask", "short-polygon", "empty-mask")
        raise UserError("; ".join([f"{data.source}: has no masks: leave --masks out", *why]))
    if detector.keypoints and not data.has_keypoints:
        why = data.repairs.reasons("category-keypoints", "unnamed-keypoints")
        raise UserError("; ".join([f"{data.source}: has no keypoints: leave --keypoints out", *why]))


def with_classes_of(
    data: DetectionData, classes: Sequence[str], category_ids: Sequence[int], source: str
) -> DetectionData:
    """The data under the classes that a detector was trained on, matched by name, of which it may lack some.

    A class keeps the category id that the data has for it, so that results can be scored against the file; one that the
    data does not know has the detector's, or a free one. Classes without an object that the detector does not know are
    left out.

    Args:
        data: to evaluate on.
        classes: names.
        category_ids: of each class.
        source: whose classes they are, for messages.

    Raises:
        UserError: the data has objects of a class that is not among them.
    """
    if data.classes == tuple(classes) and (
        data.category_ids == tuple(category_ids) or "class-ids" in data.repairs.counts
    ):
        return data
    repairs = data.repairs.copy()
    matched = _matched(data, classes, category_ids)
    objects = np.bincount(np.concatenate([r.labels for r in data.records]), minlength=len(data.classes) + 1)
    unmatched = [label for label, place in enumerate(matched, start=1) if not place]
    if any(objects[label] for label in unmatched):
        counts = {label: int(objects[label]) for label in unmatched if objects[label]}
        named = [f"{data.classes[label - 1]} ({counted(count, 'object')})" for label, count in counts.items()]
        raise UserError(
            f"{data.source}: has classes that {source} lacks: {', '.join(named[:5])}; that has {_first(classes)}: "
            "leave them out of the file, or train on them too"
        )
    if unmatched and data.kind == "voc" and "unknown-category" in data.repairs.counts:
        # VOC's files list no classes: it was read under VOC's twenty, and objects of others are gone
        named = _first([data.classes[label - 1] for label in unmatched])
        raise UserError(
            f"{data.source}: was read under classes that {source} lacks: {named}; name its own: --classes "
            f"{' '.join(classes)}"
        )
    if unmatched:
        repairs.add("unused-class", file=data.source, detail=_first([data.classes[label - 1] for label in unmatched]))
    own = dict(zip(matched, data.category_ids, strict=True))
    for place, number in own.items():
        name = "" if not place else classes[place - 1]
        if place and number != category_ids[place - 1]:
            detail = f"{name!r} is category {number} here, {category_ids[place - 1]} in {source}"
            repairs.add("class-ids", file=data.source, detail=detail)
        if place and name not in data.classes:
            said = data.classes[matched.index(place)]
            kind = "class-case" if said.strip().lower() == name.strip().lower() else "class-by-id"
            repairs.add(kind, file=data.source, detail=f"{said!r} is {name!r} in {source}")
    ids: list[int] = []
    for place, number in enumerate(category_ids, start=1):
        taken = {*data.category_ids, *category_ids, *ids}
        ids.append(own.get(place, number if number not in data.category_ids else max(taken) + 1))
    new_label = np.array([0, *matched])
    return dataclasses.replace(
        data,
        records=tuple(dataclasses.replace(record, labels=new_label[record.labels]) for record in data.records),
        classes=tuple(classes),
        category_ids=tuple(ids),
        keypoint_labels=tuple(int(new_label[label]) for label in data.keypoint_labels if new_label[label]),
        repairs=repairs,
    )


def _matched(data: DetectionData, classes: Sequence[str], category_ids: Sequence[int]) -> list[int]:
    """For each class of the data the label of the same class, 0 for none: by name, then by letters of either case.

    A class that a file gives no name is called by its id, and is matched by it.
    """
    by_name = {name: label for label, name in enumerate(classes, start=1)}
    matched = [by_name.get(name, 0) for name in data.classes]
    by_id = dict(zip(category_ids, range(1, len(classes) + 1), strict=True))
    plain = [name.strip().lower() for name in classes]
    for at, (name, number) in enumerate(zip(data.classes, data.category_ids, strict=True)):
        place = plain.index(name.strip().lower()) + 1 if plain.count(name.strip().lower()) == 1 else 0
        if not matched[at] and not place and str(number) in (name, classes[by_id.get(number, 1) - 1]):
            place = by_id.get(number, 0)
        if not matched[at] and place not in matched:
            matched[at] = place
    return matched


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def fingerprint(data: DetectionData) -> str:
    """A hash of the classes, of image ids, boxes and labels, and of what is not scored."""
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
