"""A COCO file's three lists, or what another JSON file is: an error that names the format and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resim.datasets.repair import Repairs
from resim.errors import UserError

EXPORT = "export COCO (object detection) from the tool that wrote it, then type resim detect train THAT.json"
LABELME = (
    "convert the folder by labelme2coco.py of LabelMe's repository (examples/instance_segmentation), then type "
    "resim detect train OUT/annotations.json"
)


def load_coco(path: Path, repairs: Repairs) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories`; entries that are no objects are noted and left out.

    `annotations` and `categories` may be missing or null, which is for the caller to judge; `images` may not.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not COCO's (what it is instead, where that is known).
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a COCO JSON file") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise UserError(f"{path}: is not written in UTF-8, as JSON must be ({where}): save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    other = other_format(content)
    if other:
        raise UserError(f"{path}: not a COCO file but {other}")
    assert isinstance(content, dict)
    lists: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        entries = [] if entries is None else entries
        if not isinstance(entries, list):
            raise UserError(f"{path}: not a COCO file, its {key} are not a list but of type {type(entries).__name__}")
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                detail = f"entry {position} of {key} is {str(entry)[:40]}"
                repairs.add("bad-entry", file=str(path), detail=detail)
        lists[key] = [entry for entry in entries if isinstance(entry, dict)]
    return lists


def other_format(content: Any, *, known_only: bool = False) -> str:
    """Which format a JSON file has that is not COCO's, and what to do; empty: it may be COCO's.

    With `known_only` it is empty for formats without a name too.
    """
    if isinstance(content, list):
        return _format_of_list(content, known_only=known_only)
    if not isinstance(content, dict):
        return "" if known_only else f"a single {type(content).__name__}"
    if isinstance(content.get("images"), list):
        return _format_with_images(content)
    if "shapes" in content:
        return f"one image of LabelMe: {LABELME}"
    named = {
        "a project of VGG's annotator VIA": "_via_img_metadata" in content or _all_have(content, "filename", "regions"),
        "FiftyOne's own form": "samples" in content,
        "a Datumaro file": isinstance(content.get("items"), list),
        "one image of Supervisely": "objects" in content and "size" in content,
        "polygons of one Cityscapes image (name its folder, the one with gtFine, instead)": "imgHeight" in content,
        "a GeoJSON file": content.get("type") in ("FeatureCollection", "Feature"),
        "a BDD100K (Scalabel) file": "frames" in content,
        "a video data set (YouTube-VIS, TAO)": "videos" in content,
        "one image of SA-1B": isinstance(content.get("image"), dict) and "annotations" in content,
        "the config of a run": "recipe" in content and "versions" in content,
    }
    for name, is_it in named.items():
        if is_it:
            return f"{name}: {EXPORT}"
    if known_only:
        return ""
    if "images" in content:
        return f"an object whose images are not a list but of type {type(content['images']).__name__}"
    keys = ", ".join(map(str, list(content)[:5])) or "nothing"
    return f"an object without a list of images (at its top: {keys}): a COCO file has images, annotations, categories"


def _format_with_images(content: dict[str, Any]) -> str:
    """What has a list of images and is no set of boxes and masks all the same."""
    annotations = content.get("annotations")
    first = (
        next((entry for entry in annotations if isinstance(entry, dict)), {}) if isinstance(annotations, list) else {}
    )
    if "segments_info" in first:
        return "COCO's panoptic annotations: name the instances file of the same images"
    if "caption" in first and "category_id" not in first:
        return "COCO's captions: name the instances file of the same images"
    if "videos" in content:
        return f"a video data set (YouTube-VIS, TAO): {EXPORT}"
    return ""


def _format_of_list(content: list[Any], *, known_only: bool) -> str:
    """What a file is that holds a list at its top level."""
    first = next((entry for entry in content if isinstance(entry, dict)), None)
    if first is None:
        if known_only:
            return ""
        what = "an empty list" if not content else f"a list whose first entry is of type {type(content[0]).__name__}"
        return f"{what}: a COCO file is an object with images, annotations, categories"
    named = {
        "COCO results (detections with scores), which have no truth in them: to score them, type resim detect eval "
        "RESULTS.json ANNOTATIONS.json": "image_id" in first and "score" in first,
        "the list of annotations alone: put it under `annotations`, beside `images` and `categories`": (
            "image_id" in first and ("category_id" in first or "bbox" in first)
        ),
        "a list of Detectron2's: convert its data set by convert_to_coco_json(NAME, FILE) of "
        "detectron2.data.datasets.coco, then type resim detect train FILE": "annotations" in first
        and "file_name" in first,
        "the list of images alone: put it under `images`, beside `annotations` and `categories`": "file_name" in first,
        f"a CreateML file: {EXPORT}": "annotations" in first and ("image" in first or "imagefilename" in first),
        f"a Label Studio file: {EXPORT}": "data" in first
        and any(key in first for key in ("annotations", "completions", "predictions")),
        f"a Labelbox file: {EXPORT}": any(key in first for key in ("Labeled Data", "data_row", "DataRow ID")),
        f"a list of VGG's annotator VIA: {EXPORT}": "filename" in first and "regions" in first,
        f"a list of LabelMe's: {LABELME}": "shapes" in first,
        f"a BDD100K (Scalabel) file: {EXPORT}": "labels" in first and "name" in first,
    }
    for name, is_it in named.items():
        if is_it:
            return name
    if known_only:
        return ""
    return f"a list of objects with {', '.join(map(str, list(first)[:5]))}: {EXPORT}"


def _all_have(content: dict[str, Any], *keys: str) -> bool:
    values = list(content.values())
    return bool(values) and all(isinstance(value, dict) and all(key in value for key in keys) for value in values)
