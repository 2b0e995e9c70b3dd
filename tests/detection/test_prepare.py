"""A data set made ready: its share, what can be learnt from, classes that agree; and a detector's checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection_data import thing, write_coco, write_voc, xml_object
from resim.datasets.coco import read_coco
from resim.datasets.voc import read_voc
from resim.detection.checkpoint import detector_state, load_detector
from resim.detection.detector import build_detector, freeze_stages
from resim.detection.prepare import check_tasks, fingerprint, usable, with_classes_of
from resim.errors import UserError
from resim.runs.checkpoints import save_checkpoint
from tiny_detectors import things, tiny, tiny_images, tiny_recipe, write_people


def test_images_with_nothing_to_learn_from_are_left_out(tmp_path: Path) -> None:
    crowd = {"size": [80, 100], "counts": [0, 8000]}
    annotations = [
        thing(1, 1, 7, (10, 10, 40, 40)),
        thing(2, 2, 7, (0, 0, 100, 80), iscrowd=1, segmentation=crowd),
        thing(3, 3, 7, (10, 10, 40, 40), segmentation=[]),
    ]
    data = read_coco(write_coco(tmp_path, annotations, num_images=4))

    def ids(recipe: Any) -> list[int | str]:
        return [record.image_id for record in usable(data, recipe).records]

    assert ids(tiny_recipe()) == [1, 3]
    assert ids(tiny_recipe(tiny(masks=True))) == [1]
    assert ids(tiny_recipe(images=tiny_images(empty=True))) == [1, 2, 3, 4]


def test_difficult_objects_alone_are_nothing_to_learn_from_unless_asked(tmp_path: Path) -> None:
    objects = {"a": [xml_object("dog", (5, 5, 60, 60), difficult=1)], "b": [xml_object("dog", (5, 5, 60, 60))]}
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": ["a", "b"]}, objects), "2007 trainval")
    assert len(usable(data, tiny_recipe())) == 2
    assert len(usable(data, tiny_recipe(images=tiny_images(difficult=False)))) == 1


def test_a_smaller_share_is_part_of_a_larger(tmp_path: Path) -> None:
    data = things(tmp_path, num_images=10)
    shares = {
        part: {r.image_id for r in usable(data, tiny_recipe(fraction=part, seed=2)).records} for part in (0.2, 0.5, 1.0)
    }
    assert [len(ids) for ids in shares.values()] == [2, 5, 10]
    assert shares[0.2] < shares[0.5] < shares[1.0]
    assert {r.image_id for r in usable(data, tiny_recipe(fraction=0.5, seed=3)).records} != shares[0.5]


def test_nothing_to_learn_from_at_all(tmp_path: Path) -> None:
    crowd = {"size": [80, 100], "counts": [0, 8000]}
    annotations = [thing(1, 1, 7, (0, 0, 100, 80), iscrowd=1, segmentation=crowd)]
    data = read_coco(write_coco(tmp_path, annotations, num_images=3))
    with pytest.raises(UserError, match="none of its 3 images has an object to learn from"):
        usable(data, tiny_recipe())


def test_a_detector_learns_what_the_data_has(tmp_path: Path) -> None:
    boxes, people = things(tmp_path / "boxes", 1), read_coco(write_people(tmp_path / "people"))
    check_tasks(tiny(masks=True), boxes)
    check_tasks(tiny(keypoints=True), people)
    with pytest.raises(UserError, match="has no keypoints: leave --keypoints out"):
        check_tasks(tiny(keypoints=True), boxes)


# -- classes


def test_labels_follow_the_classes_of_the_detector(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 7, (10, 10, 40, 40)), thing(2, 2, 3, (1, 1, 9, 9))]))
    assert (data.classes, data.category_ids) == (("cat", "dog"), (3, 7))
    classes, numbers = ("bird", "cat", "cow", "dog"), (1, 3, 5, 7)
    result = with_classes_of(data, classes, numbers, "detector")
    assert (result.classes, result.category_ids) == (classes, numbers)
    assert [record.labels.tolist() for record in result.records] == [[4], [2]]
    for before, after in zip(data.records, result.records, strict=True):
        assert [data.classes[n - 1] for n in before.labels] == [classes[n - 1] for n in after.labels]
    assert with_classes_of(data, data.classes, data.category_ids, "itself") is data


def test_labels_with_keypoints_follow_too(tmp_path: Path) -> None:
    data = read_coco(write_people(tmp_path))
    assert with_classes_of(data, ("animal", "person"), (0, 1), "detector").keypoint_labels == (2,)


@pytest.mark.parametrize(
    ("classes", "numbers"), [(("cat",), (3,)), (("cat", "horse"), (3, 7)), (("cat", "hot dog"), (3, 7))]
)
def test_classes_that_a_detector_has_not(tmp_path: Path, classes: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"has classes that mine lacks: dog \(1 object\); that has cat"):
        with_classes_of(things(tmp_path, 1), classes, numbers, "mine")


# -- what tells data sets apart


def test_a_fingerprint_is_of_all_that_a_run_must_find_again(tmp_path: Path) -> None:
    data = things(tmp_path / "one", 2)
    record = data.records[0]
    assert fingerprint(things(tmp_path / "same", 2)) == fingerprint(data)
    others = [
        dataclasses.replace(record, image_id=77),
        dataclasses.replace(record, boxes=record.boxes + np.array([[0, 0, 0, 1.0]])),
        dataclasses.replace(record, labels=record.labels[::-1].copy()),
        dataclasses.replace(record, crowd=~record.crowd),
        dataclasses.replace(record, difficult=~record.difficult),
    ]
    marks = {fingerprint(dataclasses.replace(data, records=(other, *data.records[1:]))) for other in others}
    marks |= {fingerprint(dataclasses.replace(data, classes=(*data.classes, "one more")))}
    assert len(marks | {fingerprint(data)}) == 7
    assert fingerprint(dataclasses.replace(data, records=data.records[::-1])) != fingerprint(data)


# -- a checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    "detector",
    [
        tiny(frozen_stages=2),
        tiny(neck="c4", masks=True, frozen_stages=5),
        tiny(norm="frozen", fpn_norm=False),
        tiny(keypoints=True),
    ],
    ids=["fpn", "c4", "frozen", "keypoints"],
)
def test_a_detector_comes_back_from_its_checkpoint(tmp_path: Path, detector: Any) -> None:
    data = read_coco(write_people(tmp_path)) if detector.keypoints else things(tmp_path, 1)
    recipe = tiny_recipe(detector)
    model = build_detector(
        detector, recipe.images, num_classes=len(data.classes), num_keypoints=len(data.keypoint_names), seed=3
    )
    freeze_stages(model, detector.frozen_stages)
    state: dict[str, Any] = {"step": 9, "precision": "float32", "model": model.state_dict()}
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", detector_state(recipe, data, "random", **state))
    loaded = load_detector(tmp_path / "run")
    images = [torch.rand(3, 60, 90)]
    with torch.no_grad():
        (expected,), (result,) = model.eval()(images), loaded.model(images)
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert (loaded.recipe, loaded.classes, loaded.category_ids) == (recipe, data.classes, data.category_ids)
    assert (loaded.keypoint_names, loaded.keypoint_labels) == (data.keypoint_names, data.keypoint_labels)
    assert (loaded.step, loaded.precision) == (9, "float32")


def test_files_that_are_no_detector(tmp_path: Path) -> None:
    pre = tmp_path / "pre.pt"
    save_checkpoint(pre, {"resim": "1", "model": {}})
    with pytest.raises(UserError, match=r"pre.pt: holds no detector but a pre-training: fine-tune it by resim detect"):
        load_detector(pre)
    with pytest.raises(UserError, match=r"last.pt: cannot be read \(No such file"):
        load_detector(tmp_path)
    later = tmp_path / "later.pt"
    save_checkpoint(later, {"resim": "9", "kind": "detect", "recipe": {"name": "x"}})
    with pytest.raises(UserError, match=r"later.pt: .*not a detection recipe of this version"):
        load_detector(later)
