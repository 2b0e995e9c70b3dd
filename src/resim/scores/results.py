"""Detections in the form of COCO results: reading them, and checking that they belong to a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resim.datasets.annotation_values import as_id, finite_numbers
from resim.datasets.masks import rle_fault
from resim.datasets.records import DetectionData
from resim.errors import UserError
from resim.json_text import parse_json

Kind = Literal["bbox", "segm", "keypoints"]
# kinds of faults after which the data does not have all ids of its file
REMOVED_IDS = {
    "image_id": (
        "missing-image", "unreadable-image", "image-size", "missing-annotation", "bad-image", "one-id", "listed-twice",
    ),
    "category_id": ("same-name", "parent-category", "text-category", "no-categories", "class-ids", "unused-class"),
}  # fmt: skip
FIELDS: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a set of detections.

    Attributes:
        kind: boxes, masks or keypoints.
        values: by the name of the score, 0 to 1; NaN without objects.
        per_class: AP by the name of the class; NaN for a class without objects.
    """

    kind: Kind
    values: dict[str, float]
    per_class: dict[str, float]


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """A COCO results file: a list of detections, whose fields the scores check.

    Raises:
        UserError: the file cannot be read, or is not a list of JSON objects.
    """
    try:
        content = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a COCO results file") from None
    except ValueError as error:
        raise UserError(f"{path}: not a valid JSON file ({error}): name a COCO results file") from None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(
            f"{path}: not COCO results: name a JSON list of objects with image_id, category_id, bbox, score, ..."
        )
    return content


def match_ids(results: Sequence[dict[str, Any]], data: DetectionData) -> list[dict[str, Any]]:
    """Detections with the ids of the data: `"7"` and `7.0` become 7 if the data has no other id of that number."""
    known = {"image_id": [record.image_id for record in data.records], "category_id": list(data.category_ids)}
    for key, ids in known.items():
        exact, by_number = set(ids), {as_id(value): value for value in ids}
        is_ambiguous = len(by_number) < len(exact)
        results = [
            entry
            if is_ambiguous or _is_in(entry.get(key), exact) or as_id(entry.get(key)) not in by_number
            else {**entry, key: by_number[as_id(entry[key])]}
            for entry in results
        ]
    return list(results)


def result_kinds(results: Sequence[dict[str, Any]]) -> tuple[Kind, ...]:
    """The kinds that all detections have; boxes if there is no detection."""
    kinds: list[Kind] = [kind for kind, name in FIELDS.items() if results and all(name in entry for entry in results)]
    return tuple(kinds or ["bbox"])


def check_results(data: DetectionData, results: Sequence[dict[str, Any]], kind: Kind, source: str = "results") -> None:
    """Check that detections are complete and of this data set.

    Raises:
        UserError: unknown image ids or category ids; a detection without the field of `kind`, or with NaN or infinite
            numbers; a mask whose size is not that of its image.
    """
    sizes = {record.image_id: (record.height, record.width) for record in data.records}
    for key, known in (("image_id", sizes), ("category_id", set(data.category_ids))):
        unknown = [entry.get(key) for entry in results if not _is_in(entry.get(key), known)]
        if unknown:
            first = list(dict.fromkeys(map(repr, unknown)))[:5]
            message = (
                f"{source}: the {key} of {len(unknown)} of {len(results)} detections is not in {data.source} "
                f"({', '.join(first)}): name the data set and split of these results"
            )
            raise UserError("; ".join([message, *data.repairs.reasons(*REMOVED_IDS[key])]))
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
            numbers = finite_numbers(value, num_numbers)
            fault = "" if numbers else f"has {name} {value}, but needs {num_numbers} finite numbers"
            if numbers and kind == "bbox" and min(numbers[2:]) < 0:
                fault = f"has a box of negative size, width {numbers[2]:g} and height {numbers[3]:g}"
        if not fault and finite_numbers([entry.get("score")]) is None:
            fault = f"has score {entry.get('score')}, but needs a finite number"
        if fault:
            raise UserError(f"{source}: detection {position}, of image {entry['image_id']!r}, {fault}")


def check_masks(results: Sequence[dict[str, Any]], source: str) -> None:
    """Check that each mask is RLE of its stated size, which pycocotools does not check before accessing memory.

    Raises:
        UserError: names the detection and the fault.
    """
    for position, entry in enumerate(results):
        mask = entry.get("segmentation")
        size = finite_numbers(mask.get("size"), 2) if isinstance(mask, dict) else None
        fault = rle_fault(mask, int(size[1]), int(size[0])) if isinstance(mask, dict) and size is not None else ""
        if fault:
            raise UserError(f"{source}: detection {position}, of image {entry.get('image_id')!r}, has an {fault}")


def _is_in(value: Any, known: Any) -> bool:
    return isinstance(value, int | str) and value in known


def _mask_fault(value: Any, size: tuple[int, int]) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | bytes):
        return "needs a segmentation in compressed RLE"
    stated = value.get("size")
    return "" if list(stated or ()) == list(size) else f"has a mask of size {stated}, but its image is {list(size)}"
