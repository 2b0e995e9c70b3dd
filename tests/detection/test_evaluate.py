"""Scores by the evaluation that belongs to the data: of the truth they are 1; what is written, and what is message."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from detection_data import (
    corners,
    detection,
    polygons,
    thing,
    truth_as_results,
    write_cityscapes,
    write_coco,
    write_voc,
    xml_object,
)
from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.detection.evaluate import (
    SHEET_IMAGES,
    kinds_of,
    lines,
    official_scores,
    plain,
    read_scores,
    sheet_images,
    write_evaluation,
)
from resim.errors import UserError
from resim.scores.results import Scores
from tiny_detectors import things, tiny, write_people

POINTS = [number for place in range(17) for number in (20 + place, 30 + 2 * place, 2)]
PERSON = {"id": 1, "name": "person", "keypoints": [f"point_{n}" for n in range(17)]}
ALL = ("bbox", "segm", "keypoints")


def people(folder: Path) -> DetectionData:
    """Two images with a person of COCO's 17 keypoints."""
    annotations = [thing(n, n, 1, (10, 10, 60, 70), keypoints=POINTS, num_keypoints=17, area=50 * 60.0) for n in (1, 2)]
    return read_coco(write_coco(folder, annotations, categories=[PERSON]))


# -- the truth


def test_the_truth_of_coco_scores_one_in_boxes_masks_and_keypoints(tmp_path: Path) -> None:
    data = people(tmp_path)
    scores = official_scores(data, truth_as_results(data), ALL)
    assert list(scores) == list(ALL)
    for score in scores.values():
        assert score.values["AP"] == score.values["AP50"] == score.values["AP75"] == pytest.approx(1)
        assert score.per_class == pytest.approx({"person": 1})


def test_the_truth_of_voc_scores_one(tmp_path: Path) -> None:
    objects = {
        "a": [xml_object("dog", (5, 5, 60, 60)), xml_object("cat", (30, 30, 90, 70), difficult=1)],
        "b": [xml_object("cat", (5, 5, 50, 50))],
    }
    data = read_voc(write_voc(tmp_path, "2007", {"test": ["a", "b"]}, objects), "2007 test")
    scores = official_scores(data, truth_as_results(data), ("bbox", "segm"))
    assert list(scores) == ["bbox"]
    assert all(value == pytest.approx(1) for value in scores["bbox"].values.values())


def test_the_truth_of_cityscapes_scores_one(tmp_path: Path) -> None:
    scene = polygons([("car", corners(10, 20, 59, 69)), ("person", corners(70, 5, 89, 60))])
    data = read_cityscapes(write_cityscapes(tmp_path, {"ulm_000000_000019": scene}), "val")
    scores = official_scores(data, truth_as_results(data), ("bbox", "segm"))
    assert scores["bbox"].values["AP"] == scores["segm"].values["AP"] == pytest.approx(1)
    installed = importlib.util.find_spec("cityscapesscripts") is not None
    assert ("cityscapes" in scores) == installed
    message = lines(scores, data)
    assert any("Cityscapes' own need cityscapesScripts" in line for line in message) != installed


def test_nothing_found_scores_nothing(tmp_path: Path) -> None:
    data = people(tmp_path)
    assert official_scores(data, [], ("bbox",))["bbox"].values["AP"] == 0


# -- what can be scored


def test_what_the_truth_has_not_is_left_out(tmp_path: Path) -> None:
    whole = things(tmp_path, num_images=2)
    without = tuple(dataclasses.replace(record, masks=None) for record in whole.records)
    data = dataclasses.replace(whole, records=without)
    results = truth_as_results(whole)
    assert list(official_scores(data, results, ALL)) == ["bbox"]
    with pytest.raises(UserError, match=r"mine.json: has segm, keypoints, for which nothing in .* can be scored"):
        official_scores(data, results, ("segm", "keypoints"), source="mine.json")


def test_keypoints_without_known_tolerances_are_left_out_and_told(tmp_path: Path) -> None:
    data = read_coco(write_people(tmp_path))
    scores = official_scores(data, truth_as_results(data), ("bbox", "keypoints"))
    assert list(scores) == ["bbox"]
    assert lines(scores, data)[-1] == ("keypoints are not scored: COCO's tolerances are of 17 keypoints, these are 3")


def test_results_of_another_data_set_are_refused(tmp_path: Path) -> None:
    data = people(tmp_path)
    with pytest.raises(UserError, match=r"other.json: the image_id of 1 of 1 detections is not in .* \(99\)"):
        official_scores(data, [detection(99, 1, (1, 1, 5, 5), 0.5)], ("bbox",), source="other.json")


def test_kinds_of_detectors() -> None:
    assert kinds_of(tiny()) == ("bbox",)
    assert kinds_of(tiny(masks=True)) == ("bbox", "segm")
    assert kinds_of(tiny(keypoints=True)) == ("bbox", "keypoints")


def test_lines_are_in_percent(tmp_path: Path) -> None:
    score = Scores(kind="bbox", values={"AP": 0.4213, "APs": math.nan}, per_class={})
    assert lines({"bbox": score}, things(tmp_path, num_images=1)) == ["bbox      AP 42.13  APs -"]
    assert plain({"bbox": score}) == {"bbox": {"AP": 0.4213, "APs": None}}


# -- what is written


def write(out: Path, data: DetectionData, step: int, *, go_on: bool = True) -> None:
    results = truth_as_results(data)
    scores = official_scores(data, results, ("bbox", "segm"))
    plain_results = json.loads(json.dumps(results, default=bytes.decode))
    write_evaluation(out, data, plain_results, scores, step=step, name="n", title="t", go_on=go_on)


def test_an_evaluation_of_its_own_has_its_line_alone(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=2)
    for step in (2, 4):
        write(tmp_path / "out", data, step, go_on=False)
    assert [line["step"] for line in read_scores(tmp_path / "out")] == [4]


def test_an_evaluation_replaces_later_ones_and_itself(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=2)
    out = tmp_path / "out"
    assert read_scores(out) == []
    for step in (2, 4, 6, 4):
        write(out, data, step)
    entries = read_scores(out)
    assert [line["step"] for line in entries] == [2, 4]
    assert entries[0]["images"] == 2
    assert entries[0]["scores"]["segm"]["AP"] == pytest.approx(1)
    assert entries[0]["scores"]["bbox"]["APl"] is None  # no object is large
    assert entries[0]["per_class"]["bbox"] == pytest.approx({"cat": 1, "dog": 1})
    assert len(json.loads((out / "results.json").read_text())) == 4
    with Image.open(out / "pictures" / "detections.png") as picture:
        picture.verify()


def test_the_sheet_has_the_first_images_with_objects(tmp_path: Path) -> None:
    annotations = [thing(n, n, 7, (10, 10, 40, 40)) for n in range(2, 11)]
    data = read_coco(write_coco(tmp_path, annotations, num_images=10))
    Path(data.records[2].image).write_bytes(b"none")
    shown = [record.image_id for record, _ in sheet_images(data)]
    assert shown == [2, 4, 5, 6, 7, 8]
    assert len(shown) == SHEET_IMAGES
    assert all(pixels.shape == (80, 100, 3) for _, pixels in sheet_images(data))


def test_without_images_there_is_no_sheet(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=1)
    Path(data.records[0].image).unlink()
    write(tmp_path / "out", data, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "scores.jsonl"]
