"""The categories of COCO files: ids and names in any notation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detection_data import (
    BOX,
    read_annotations,
    rewrite_lists,
    thing,
    truth_as_results,
    write_coco,
)
from resim.datasets.coco import read_coco
from resim.detection.prepare import check_tasks
from resim.errors import UserError
from resim.scores.coco import coco_scores
from tiny_detectors import tiny


def test_ids_of_categories_in_any_notation_are_matched(tmp_path: Path) -> None:
    categories = [{"id": "7", "name": "dog"}, {"id": 3.0, "name": "cat"}]
    annotations = [thing(1, 1, 7, BOX), thing(2, 1, "3", BOX), thing(3, 1, 7.0, BOX)]  # type: ignore[arg-type]
    data = read_annotations(tmp_path, *annotations, categories=categories)
    assert (data.classes, data.category_ids) == (("cat", "dog"), (3, 7))
    assert data.records[0].labels.tolist() == [2, 1, 2]
    assert data.repairs.counts == {}


def test_ids_that_are_text_are_numbered(tmp_path: Path) -> None:
    categories = [{"id": "dog-a1", "name": "dog"}, {"id": "cat-b2", "name": "cat"}, {"id": 4, "name": "cow"}]
    annotations = [thing(1, 1, "cat-b2", BOX), thing(2, 1, "dog-a1", BOX), thing(3, 1, "cow", BOX)]  # type: ignore[arg-type]
    data = read_annotations(tmp_path, *annotations, categories=categories)
    assert (data.classes, data.category_ids) == (("cow", "dog", "cat"), (4, 5, 6))
    assert data.records[0].labels.tolist() == [3, 2, 1]
    assert data.repairs.counts == {"text-category": 2, "category-by-name": 1}


def test_the_parent_category_of_roboflow_is_not_a_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    data = read_annotations(tmp_path / "a", thing(1, 1, 2, BOX), categories=categories)
    assert (data.classes, data.category_ids) == (("cat", "dog"), (1, 2))
    assert data.records[0].labels.tolist() == [2]
    assert data.repairs.counts == {"parent-category": 1}
    used = read_annotations(tmp_path / "b", thing(1, 1, 2, BOX), thing(2, 1, 0, BOX), categories=categories)
    assert used.classes == ("animals", "cat", "dog")
    alone = [{"id": 0, "name": "dog", "supercategory": "none"}, {"id": 1, "name": "dog", "supercategory": "dog"}]
    assert read_annotations(tmp_path / "c", thing(1, 1, 1, BOX), categories=alone).classes == ("dog",)


def test_categories_with_one_name_are_one_class(tmp_path: Path) -> None:
    categories = [
        {"id": 5, "name": "dog "},
        {"id": 2, "name": "dog"},
        {"id": 3, "name": "cat"},
        {"id": 3, "name": "cat"},
    ]
    data = read_annotations(
        tmp_path, thing(1, 1, 5, BOX), thing(2, 1, 2, BOX), thing(3, 1, 3, BOX), categories=categories
    )
    assert (data.classes, data.category_ids) == (("dog", "cat"), (2, 3))
    assert data.records[0].labels.tolist() == [1, 1, 2]
    assert data.repairs.counts == {"category-twice": 1, "same-name": 1}
    perfect = truth_as_results(data)
    assert coco_scores(data, perfect)["bbox"].values["AP"] == pytest.approx(1)


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_category_without_a_name_is_named_by_its_id(tmp_path: Path, name: str | None) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX), categories=[{"id": 3, "name": name}])
    assert data.classes == ("3",)
    assert data.repairs.counts == {"no-name": 1}


@pytest.mark.parametrize("categories", [None, []])
def test_a_missing_list_of_categories_is_made_from_the_annotations(tmp_path: Path, categories: Any) -> None:
    annotations = [thing(1, 1, 7, BOX), thing(2, 1, "3", BOX, category_name="cat"), thing(3, 2, 7, BOX)]  # type: ignore[arg-type]
    data = read_coco(rewrite_lists(write_coco(tmp_path, annotations), categories=categories))
    assert (data.classes, data.category_ids) == (("cat", "7"), (3, 7))
    assert [record.labels.tolist() for record in data.records] == [[2, 1], [2]]
    assert data.repairs.counts == {"no-categories": 1}


def test_a_file_without_any_category_has_one_class(tmp_path: Path) -> None:
    annotation = thing(1, 1, 7, BOX)
    del annotation["category_id"]
    data = read_coco(rewrite_lists(write_coco(tmp_path, [annotation]), categories=None))
    assert (data.classes, data.category_ids) == (("object",), (1,))
    assert data.records[0].labels.tolist() == [1]
    assert data.repairs.counts == {"no-categories": 1, "only-category": 1}


def test_classes_with_different_keypoints_keep_their_boxes(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "a", "keypoints": ["x"]}, {"id": 2, "name": "b", "keypoints": ["y", "z"]}]
    data = read_annotations(tmp_path, thing(1, 1, 1, BOX, keypoints=[1, 2, 2]), categories=categories)
    assert data.num_objects == 1
    assert not data.has_keypoints
    with pytest.raises(
        UserError, match=r"has no keypoints: leave --keypoints out; .*1 keypoints of 'a' and 2 others of"
    ):
        check_tasks(tiny(keypoints=True), data)
