"""COCO's average precision: 1 for the ground truth, by hand in small cases, and pycocotools' on photographs."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection_data import (
    detection,
    perturbed_truth,
    rectangle,
    thing,
    truth_as_results,
    write_coco,
)
from needs import need
from resim.datasets.coco import read_coco
from resim.datasets.layouts import read_detection
from resim.datasets.masks import to_rle
from resim.errors import UserError
from resim.scores.coco import coco_scores
from resim.scores.voc import voc_scores

DOG = 7  # in the COCO data sets written here


def test_the_ground_truth_scores_one(tmp_path: Path) -> None:
    annotations = [
        thing(0, 1, 7, (10, 10, 20, 20)),  # id 0, which COCOeval itself takes for no match
        thing(1, 1, 3, (30, 10, 70, 60)),
        thing(2, 2, 3, (30, 10, 40, 60), segmentation=[rectangle(30, 10, 40, 30), rectangle(30, 40, 40, 60)], area=400),
    ]
    data = read_coco(write_coco(tmp_path, annotations))
    results = truth_as_results(data)
    before = json.dumps(results, default=str)
    scores = coco_scores(data, results, ("bbox", "segm"))
    for kind in ("bbox", "segm"):
        values = scores[kind].values
        assert {name: values[name] for name in ("AP", "AP50", "AP75", "APs", "APm")} == pytest.approx(
            {"AP": 1, "AP50": 1, "AP75": 1, "APs": 1, "APm": 1}
        )
        assert math.isnan(values["APl"])  # nothing is large
        assert scores[kind].per_class == pytest.approx({"cat": 1, "dog": 1})
    assert json.dumps(results, default=str) == before


def person(number: int, image_id: int, x: float, num_visible: int = 17) -> dict[str, Any]:
    points = [value for k in range(17) for value in ((x + k, 20 + 2 * k, 2) if k < num_visible else (0, 0, 0))]
    return thing(number, image_id, 1, (x, 15, x + 40, 60), keypoints=points, num_keypoints=num_visible)


PERSON = {"id": 1, "name": "person", "keypoints": [f"point {k}" for k in range(17)]}


def test_keypoints_of_the_ground_truth_score_one(tmp_path: Path) -> None:
    annotations = [person(1, 1, 5), person(2, 1, 50), person(3, 2, 20, num_visible=6), person(4, 2, 40, num_visible=0)]
    stone = {"id": 2, "name": "stone"}
    data = read_coco(write_coco(tmp_path, [*annotations, thing(5, 1, 2, (0, 0, 9, 9))], categories=[PERSON, stone]))
    results = truth_as_results(data)
    scores = coco_scores(data, results, ("keypoints",))["keypoints"]
    assert scores.values["AP"] == pytest.approx(1)
    assert scores.per_class == pytest.approx({"person": 1})
    assert "APs" not in scores.values
    for entry in results:
        entry["keypoints"] = [value + 30 for value in entry["keypoints"]]
    assert coco_scores(data, results, ("keypoints",))["keypoints"].values["AP"] == 0


def test_other_keypoints_than_those_of_coco_need_sigmas(tmp_path: Path) -> None:
    beetle = {"id": 1, "name": "beetle", "keypoints": ["head", "tail"]}
    annotation = thing(1, 1, 1, (0, 0, 40, 40), keypoints=[3, 20, 2, 37, 20, 2], num_keypoints=2)
    data = read_coco(write_coco(tmp_path, [annotation], categories=[beetle]))
    results = truth_as_results(data)
    with pytest.raises(UserError, match="2 keypoints need as many keypoint sigmas"):
        coco_scores(data, results, ("keypoints",))
    scores = coco_scores(data, results, ("keypoints",), keypoint_sigmas=[0.05, 0.05])
    assert scores["keypoints"].values["AP"] == pytest.approx(1)


def test_the_ground_truth_of_photographs_scores_one(shared: Path) -> None:
    data = read_detection(shared / "data" / "coco543", "val")
    scores = coco_scores(data, truth_as_results(data), ("bbox", "segm"))
    assert scores["bbox"].values == pytest.approx(dict.fromkeys(scores["bbox"].values, 1))
    assert scores["segm"].values == pytest.approx(dict.fromkeys(scores["segm"].values, 1))
    assert sum(not math.isnan(value) for value in scores["bbox"].per_class.values()) == 78  # val lacks two classes
    voc = read_detection(shared / "data" / "voc100", "test")
    for results in (truth_as_results(voc), truth_as_results(voc, with_ignored=False)):
        values = voc_scores(voc, results).values
        assert values == pytest.approx(dict.fromkeys(values, 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scores_are_those_of_pycocotools_on_the_file_itself(shared: Path, kind: Any) -> None:
    folder = shared / "data" / "coco543"
    data = read_detection(folder, "val")
    results = perturbed_truth(data)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "instances_val.json"))
        truth.dataset["info"] = {}  # type: ignore[typeddict-item]
        other = "segmentation" if kind == "bbox" else "bbox"
        only = [{key: value for key, value in entry.items() if key != other} for entry in results]
        evaluation = COCOeval(truth, truth.loadRes(only), kind)  # type: ignore[arg-type]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = coco_scores(data, results, (kind,))[kind].values
    assert list(values.values()) == evaluation.stats[:6].tolist()
    assert 0.05 < values["AP"] < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_faster_evaluator_gives_the_same_numbers(shared: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    need("faster_coco_eval", "the faster evaluator gives the same numbers", "fast-eval")
    folder = shared / "data" / "coco543"
    data = read_coco(folder / "instances_val.json", folder / "images", check_images=False)
    results = perturbed_truth(data)
    fast = coco_scores(data, results, [kind])[kind]
    monkeypatch.setattr("resim.scores.coco._implementation", lambda fast: (COCO, COCOeval))
    slow = coco_scores(data, results, [kind])[kind]
    assert fast.values == slow.values
    assert fast.per_class == pytest.approx(slow.per_class, abs=1e-12, nan_ok=True)  # means, summed in another order


def test_ap_by_hand(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 20, 20)), thing(2, 2, DOG, (50, 0, 70, 20))]))
    results = [
        detection(1, DOG, (0, 0, 20, 20), 0.9),  # right: recall 1/2, precision 1
        detection(1, DOG, (50, 50, 70, 70), 0.8),  # wrong: 1/2, 1/2
        detection(2, DOG, (50, 0, 70, 20), 0.7),  # right: 1, 2/3
    ]
    # recalls 0, 0.01, ..., 0.5 have a best precision of 1, the 50 above of 2/3
    expected = (51 * 1 + 50 * 2 / 3) / 101
    values = coco_scores(data, results)["bbox"].values
    assert (values["AP"], values["AP50"]) == pytest.approx((expected, expected))


def test_ap_over_iou_thresholds_by_hand(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    # IoU 0.82: right at 0.5, 0.55, ..., 0.8, missed at 0.85, 0.9, 0.95
    values = coco_scores(data, [detection(1, DOG, (0, 0, 10, 8.2), 0.9)])["bbox"].values
    assert (values["AP"], values["AP50"], values["AP75"], values["APs"]) == pytest.approx((0.7, 1, 1, 0.7))
    assert math.isnan(values["APm"])
    assert math.isnan(values["APl"])


def test_sizes_are_by_the_annotated_area(tmp_path: Path) -> None:
    areas = (31**2, 33**2, 95**2, 97**2)  # small is up to 32 x 32, medium up to 96 x 96
    things = [thing(n + 1, 1, DOG, (20 * n, 0, 20 * n + 10, 10), area=area) for n, area in enumerate(areas)]
    data = read_coco(write_coco(tmp_path, things))
    results = [detection(1, DOG, (20 * n, 0, 20 * n + 10, 10), 0.9) for n in (0, 1)]
    values = coco_scores(data, results)["bbox"].values
    # of the two medium ones the first: 51 of 101 recalls
    assert (values["APs"], values["APm"], values["APl"]) == pytest.approx((1, 51 / 101, 0))


@pytest.mark.parametrize(("crowd", "expected"), [(1, 1.0), (0, 51 / 101 / 2)])
def test_detections_in_a_crowd_region_are_not_wrong(tmp_path: Path, crowd: int, expected: float) -> None:
    herd = thing(2, 1, DOG, (40, 0, 100, 80), iscrowd=crowd)
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 20, 20)), herd]))
    results = [detection(1, DOG, (50, 10, 60, 20), 0.95), detection(1, DOG, (0, 0, 20, 20), 0.9)]
    # were it an object: wrong, then right: recall 1/2 at precision 1/2
    assert coco_scores(data, results)["bbox"].values["AP"] == pytest.approx(expected)
    rectangles = rectangle(50, 10, 60, 20), rectangle(0, 0, 20, 20)
    masks = [
        {**entry, "segmentation": to_rle([polygon], 80, 100)}
        for entry, polygon in zip(results, rectangles, strict=True)
    ]
    assert coco_scores(data, masks, ("segm",))["segm"].values["AP"] == pytest.approx(expected)


def test_an_object_whose_mask_was_dropped_is_ignored_in_the_scores_of_masks(tmp_path: Path) -> None:
    broken = thing(2, 1, DOG, (40, 0, 60, 20), segmentation=[[40, 0, 60, 20]])
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 20, 20)), broken]))
    mask = to_rle([rectangle(42, 2, 55, 18)], 80, 100)
    results = [
        {**detection(1, DOG, (42, 2, 55, 18), 0.95), "segmentation": mask},
        {**detection(1, DOG, (0, 0, 20, 20), 0.9), "segmentation": to_rle([rectangle(0, 0, 20, 20)], 80, 100)},
    ]
    scores = coco_scores(data, results, ("bbox", "segm"))
    assert scores["segm"].values["AP"] == pytest.approx(1)
    assert scores["bbox"].values["AP50"] == pytest.approx(1)  # IoU 208 / 400


def test_no_detection_scores_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    scores = coco_scores(data, [], ("bbox", "segm"))
    assert (scores["bbox"].values["AP"], scores["segm"].values["AP"]) == (0, 0)
    assert voc_scores(data, []).values["AP50"] == 0
    assert capsys.readouterr().out == ""
