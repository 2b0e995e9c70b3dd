"""Detections in the form of COCO's results files, and whether they belong to a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resim.datasets.coco_values import as_id
from resim.datasets.masks import rle_fault
from resim.datasets.records import DetectionData
from resim.datasets.repair import finite
from resim.errors import UserError

Kind = Literal["bbox", "segm", "keypoints"]
# kinds of repairs after which the data has not what its file names
NOT_READ = {
    "image_id": (
        "missing-image", "unreadable-image", "image-size", "missing-annotation", "bad-image", "one-id", "listed-twice",
    ),
    "category_id": ("same-name", "parent-category", "text-category", "no-categories", "class-ids", "unused-class"),
}  # fmt: skip
FIELDS: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation says of a set of detections.

    Attributes:
        kind: what was compared: boxes, masks or keypoints.
        values: by the name of the score, 0 to 1; NaN where there is nothing to find.
        per_class: AP by the name of the class; NaN for a class without objects.
    """

    kind: Kind
    values: dict[str, float]
    per_class: dict[str, float]


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """A COCO results file: a list of detections. What is in them is checked by the scores.

    Raises:
        UserError: the file cannot be read, or is not a list of objects.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a COCO results file") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"{path}: not COCO results, which are a list of image_id, category_id, bbox, score, ...")
    return content


def with_ids_of(results: Sequence[dict[str, Any]], data: DetectionData) -> list[dict[str, Any]]:
    """Detections under the ids that the data writes: `"7"` and `7.0` become its 7, where no other id is meant."""
    known = {"image_id": [record.image_id for record in data.records], "category_id": list(data.category_ids)}
    for key, ids in known.items():
        exact, by_number = set(ids), {as_id(value): value for value in ids}
        unclear = len(by_number) < len(exact)
        results = [
            entry
            if unclear or _is_in(entry.get(key), exact) or as_id(entry.get(key)) not in by_number
            else {**entry, key: by_number[as_id(entry[key])]}
            for entry in results
        ]
    return list(results)


def kinds_in(results: Sequence[dict[str, Any]]) -> tuple[Kind, ...]:
    """What all of the detections hold; of none, boxes."""
    kinds: list[Kind] = [kind for kind, name in FIELDS.items() if results and all(name in entry for entry in results)]
    return tuple(kinds or ["bbox"])


def check_results(data: DetectionData, results: Sequence[dict[str, Any]], kind: Kind, source: str = "results") -> None:
    """Raise if detections are incomplete or cannot be of this data set.

    Raises:
        UserError: unknown image ids or category ids, how many and which first; a detection without what `kind`
            needs, or with NaN or infinite numbers; a mask of another size than its image.
    """
    sizes = {record.image_id: (record.height, record.width) for record in data.records}
    for key, known in (("image_id", sizes), ("category_id", set(data.category_ids))):
        strange = [entry.get(key) for entry in results if not _is_in(entry.get(key), known)]
        if strange:
            first = list(dict.fromkeys(map(repr, strange)))[:5]
            what = (
                f"{source}: {len(strange)} of {len(results)} detections have a {key} that {data.source} has not "
                f"({', '.join(first)}): results of another data set or split?"
            )
            raise UserError("; ".join([what, *data.repairs.reasons(*NOT_READ[key])]))
    name = FIELDS[kind]
    num_numbers = {"bbox": 4, "keypoints": 3 * len(data.keypoint_names)}.get(kind)
    with_keypoints = {data.category_ids[label - 1] for label in data.keypoint_labels}
    for position, entry in enumerate(results):
        if kind == "keypoints" and entry["category_id"] not in with_keypoints:
            continue
        value = entry.get(name)
        if kind == "segm":
            fault = _mask_fault(value, sizes[entry["image_id"]])
        else:
            numbers = finite(value, num_numbers)
            fault = "" if numbers else f"needs {name}, {num_numbers} finite numbers, not {value}"
            if numbers and kind == "bbox" and min(numbers[2:]) < 0:
                fault = f"has a box of width {numbers[2]:g} and height {numbers[3]:g}"
        if not fault and finite([entry.get("score")]) is None:
            fault = f"needs a finite score, not {entry.get('score')}"
        if fault:
            raise UserError(f"{source}: detection {position}, of image {entry['image_id']!r}, {fault}")


def check_masks(results: Sequence[dict[str, Any]], source: str) -> None:
    """Raise if a mask is no RLE of its own size: pycocotools itself would read or write past its memory.

    Raises:
        UserError: which detection, and why.
    """
    for position, entry in enumerate(results):
        mask = entry.get("segmentation")
        size = finite(mask.get("size"), 2) if isinstance(mask, dict) else None
        fault = rle_fault(mask, int(size[1]), int(size[0])) if isinstance(mask, dict) and size is not None else ""
        if fault:
            raise UserError(f"{source}: detection {position}, of image {entry.get('image_id')!r}, has an {fault}")


def _is_in(value: Any, known: Any) -> bool:
    return isinstance(value, int | str) and value in known


def _mask_fault(value: Any, size: tuple[int, int]) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | bytes):
        return "needs a segmentation in compressed RLE"
    said = value.get("size")
    return "" if list(said or ()) == list(size) else f"has a mask of size {said}, the image has {list(size)}"
