"""JSON files of other formats than COCO's: the format, and how to convert it."""

from __future__ import annotations

from typing import Any

EXPORT = "export it as COCO (object detection) from the tool that wrote it, then type resim detect train FILE.json"
LABELME = (
    "convert the folder with labelme2coco.py of LabelMe's repository (examples/instance_segmentation), then type "
    "resim detect train OUT/annotations.json"
)


def foreign_format(content: Any, *, known_only: bool = False) -> str:
    """The format of a JSON file that is not COCO's, and the remedy; empty if it may be COCO's.

    Args:
        content: of the file.
        known_only: also return an empty text if the format has no name.
    """
    if isinstance(content, list):
        return _format_of_list(content, known_only=known_only)
    if not isinstance(content, dict):
        return "" if known_only else f"a single {type(content).__name__}"
    if isinstance(content.get("images"), list):
        return _format_with_images(content)
    if "shapes" in content:
        return f"one image of LabelMe: {LABELME}"
    formats = {
        "a project of VGG's annotator VIA": "_via_img_metadata" in content or _all_have(content, "filename", "regions"),
        "a FiftyOne data set": "samples" in content,
        "a Datumaro file": isinstance(content.get("items"), list),
        "one image of Supervisely": "objects" in content and "size" in content,
        "one image of Cityscapes (to read Cityscapes, name the folder that contains gtFine)": "imgHeight" in content,
        "a GeoJSON file": content.get("type") in ("FeatureCollection", "Feature"),
        "a BDD100K (Scalabel) file": "frames" in content,
        "a video data set (YouTube-VIS, TAO)": "videos" in content,
        "one image of SA-1B": isinstance(content.get("image"), dict) and "annotations" in content,
        "the configuration of a run": "recipe" in content and "versions" in content,
    }
    for name, matches in formats.items():
        if matches:
            return f"{name}: {EXPORT}"
    if known_only:
        return ""
    if "images" in content:
        return f"an object whose `images` are of type {type(content['images']).__name__}, but must be a list"
    keys = ", ".join(map(str, list(content)[:5])) or "nothing"
    return f"an object without a list of images (its keys: {keys}): a COCO file has images, annotations and categories"


def _format_with_images(content: dict[str, Any]) -> str:
    """The format of a file with a list of images but without boxes; empty if it may be COCO's."""
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
    """The format of a file whose top level is a list."""
    first = next((entry for entry in content if isinstance(entry, dict)), None)
    if first is None:
        if known_only:
            return ""
        kind = f"a list whose first entry is of type {type(content[0]).__name__}" if content else "an empty list"
        return f"{kind}: a COCO file is an object with images, annotations and categories"
    formats = {
        "COCO results (detections with scores), which contain no labels: to score them, type resim detect eval "
        "RESULTS.json ANNOTATIONS.json": "image_id" in first and "score" in first,
        "the list of annotations alone: put it under `annotations`, next to `images` and `categories`": (
            "image_id" in first and ("category_id" in first or "bbox" in first)
        ),
        "a Detectron2 data set: convert it with convert_to_coco_json(NAME, FILE) of "
        "detectron2.data.datasets.coco, then type resim detect train FILE": "annotations" in first
        and "file_name" in first,
        "the list of images alone: put it under `images`, next to `annotations` and `categories`": "file_name" in first,
        f"a CreateML file: {EXPORT}": "annotations" in first and ("image" in first or "imagefilename" in first),
        f"a Label Studio file: {EXPORT}": "data" in first
        and any(key in first for key in ("annotations", "completions", "predictions")),
        f"a Labelbox file: {EXPORT}": any(key in first for key in ("Labeled Data", "data_row", "DataRow ID")),
        f"a list of VGG's annotator VIA: {EXPORT}": "filename" in first and "regions" in first,
        f"a list of LabelMe files: {LABELME}": "shapes" in first,
        f"a BDD100K (Scalabel) file: {EXPORT}": "labels" in first and "name" in first,
    }
    for name, matches in formats.items():
        if matches:
            return name
    if known_only:
        return ""
    return f"a list of objects with {', '.join(map(str, list(first)[:5]))}: {EXPORT}"


def _all_have(content: dict[str, Any], *keys: str) -> bool:
    values = list(content.values())
    return bool(values) and all(isinstance(value, dict) and all(key in value for key in keys) for value in values)
