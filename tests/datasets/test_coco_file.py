"""Whole COCO files: what the exporters write is read, other formats are named."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from detection_data import (
    BOX,
    rectangle,
    rewrite_lists,
    thing,
    write_coco,
)
from resim.datasets.coco import read_coco
from resim.datasets.masks import decode_masks
from resim.errors import UserError


@pytest.mark.parametrize("annotations", [None, []])
def test_a_file_of_test_images_is_reported_to_have_no_annotations(tmp_path: Path, annotations: Any) -> None:
    path = rewrite_lists(write_coco(tmp_path, []), annotations=annotations)
    with pytest.raises(UserError, match=r"no annotated object in its 2 images: it has no annotations, like image_info"):
        read_coco(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "COCO results"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "id": 5}], "the list of annotations alone"),
        ([{"id": 1, "file_name": "a.jpg"}], "the list of images alone"),
        ([{"image": "a.jpg", "annotations": [{"label": "a", "coordinates": {}}]}], "CreateML"),
        ([{"data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
        ([{"filename": "a.jpg", "regions": []}], "VIA"),
        ([{"name": "a.jpg", "labels": []}], "BDD100K"),
        ([], "an empty list"),
        ([[1, 2]], "a list whose first entry is of type list"),
        (5, "a single int"),
        ({"shapes": [], "imagePath": "a.jpg"}, "one image of LabelMe"),
        ({"_via_img_metadata": {}}, "VIA"),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, "VIA"),
        ({"items": [], "categories": {}}, "Datumaro"),
        ({"objects": [], "size": {}}, "Supervisely"),
        ({"type": "FeatureCollection"}, "GeoJSON"),
        ({"videos": [], "annotations": []}, "video"),
        ({"image": {}, "annotations": []}, "SA-1B"),
        ({"images": [], "annotations": [{"segments_info": []}]}, "panoptic"),
        ({"images": [], "annotations": [{"caption": "a dog"}]}, "captions"),
        ({"foo": 1}, r"an object without a list of images \(its keys: foo\)"),
    ],
)  # fmt: skip
def test_files_of_other_formats_are_named(tmp_path: Path, content: Any, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"a\.json: not a COCO file but .*{name}") as raised:
        read_coco(path)
    assert "\n" not in str(raised.value)


def test_extra_keys_and_a_byte_order_mark_are_no_faults(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path, [thing(1, 1, 3, BOX, attributes={"occluded": False}, score=None)], licenses=[], info=None
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_coco(path).repairs.counts == {}


def test_a_file_written_by_via_is_read(tmp_path: Path) -> None:
    """Ids as text, no sizes, one flat polygon, areas as they are, iscrowd 0."""
    annotation = thing(1, "1", "1", BOX, segmentation=rectangle(10, 20, 30, 60), area=800)  # type: ignore[arg-type]
    path = write_coco(
        tmp_path, [annotation], num_images=1, categories=[{"id": 1, "name": "cat", "supercategory": "type"}]
    )
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": 0, "height": 0}
    data = read_coco(rewrite_lists(path, **content))
    record = data.records[0]
    assert (record.boxes.tolist(), record.labels.tolist(), record.areas.tolist()) == ([[10, 20, 30, 60]], [1], [800])
    assert decode_masks(record).sum() == 800
    assert data.repairs.counts == {"image-id": 1, "mask-form": 1}


@pytest.mark.parametrize("is_frozen", [False, True])
def test_reading_leaves_the_garbage_collection_as_it_was(tmp_path: Path, is_frozen: bool) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX)])
    if is_frozen:
        gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        assert len(read_coco(path)) == 2
        assert gc.isenabled()
        assert (gc.get_freeze_count() > 0) == is_frozen == (frozen > 0)
        gc.disable()
        assert len(read_coco(path)) == 2
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
