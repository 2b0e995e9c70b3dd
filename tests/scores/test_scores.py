"""Average precision: of the truth it is 1, of small cases what is worked out by hand, of large ones the official."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection_data import (
    H,
    W,
    corners,
    detection,
    polygons,
    rectangle,
    thing,
    truth_as_results,
    write_cityscapes,
    write_coco,
    write_voc,
    xml_object,
)
from needs import need
from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.layouts import read_detection
from resim.datasets.masks import to_rle
from resim.datasets.records import DetectionData
from resim.datasets.voc import CLASSES, read_voc
from resim.errors import UserError
from resim.scores.cityscapes import cityscapes_scores
from resim.scores.coco import coco_scores
from resim.scores.results import check_masks, read_results
from resim.scores.voc import THRESHOLDS, ap_area, ap_eleven_points, precision_recall, voc_scores

DOG = 7  # in the COCO data sets written here
VOC_DOG = CLASSES.index("dog") + 1


def jittered(data: DetectionData, seed: int = 0) -> list[dict[str, Any]]:
    """The truth, moved, some of it left out, some of it twice or of another class, with scores that repeat."""
    rng = np.random.default_rng(seed)
    results = []
    for entry in truth_as_results(data):
        for _ in range(int(rng.choice([0, 1, 1, 2]))):
            x, y, width, height = entry["bbox"]
            move = rng.normal(0, 0.12, 4) * [width, height, width, height]
            box = [x + move[0], y + move[1], max(1, width + move[2]), max(1, height + move[3])]
            other = bool(rng.random() < 0.1)
            category_id = data.category_ids[int(rng.integers(len(data.classes)))] if other else entry["category_id"]
            score = round(float(rng.random()), 2)
            results.append({**entry, "bbox": box, "category_id": category_id, "score": score})
    return results


# -- the truth


def test_the_truth_scores_one_by_coco(tmp_path: Path) -> None:
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


def person(number: int, image_id: int, x: float, num_seen: int = 17) -> dict[str, Any]:
    points = [value for k in range(17) for value in ((x + k, 20 + 2 * k, 2) if k < num_seen else (0, 0, 0))]
    return thing(number, image_id, 1, (x, 15, x + 40, 60), keypoints=points, num_keypoints=num_seen)


PERSON = {"id": 1, "name": "person", "keypoints": [f"point {k}" for k in range(17)]}


def test_the_truth_scores_one_by_keypoints(tmp_path: Path) -> None:
    annotations = [person(1, 1, 5), person(2, 1, 50), person(3, 2, 20, num_seen=6), person(4, 2, 40, num_seen=0)]
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


def test_other_keypoints_than_cocos_need_their_sigmas(tmp_path: Path) -> None:
    beetle = {"id": 1, "name": "beetle", "keypoints": ["head", "tail"]}
    annotation = thing(1, 1, 1, (0, 0, 40, 40), keypoints=[3, 20, 2, 37, 20, 2], num_keypoints=2)
    data = read_coco(write_coco(tmp_path, [annotation], categories=[beetle]))
    results = truth_as_results(data)
    with pytest.raises(UserError, match="2 keypoints need as many keypoint sigmas"):
        coco_scores(data, results, ("keypoints",))
    scores = coco_scores(data, results, ("keypoints",), keypoint_sigmas=[0.05, 0.05])
    assert scores["keypoints"].values["AP"] == pytest.approx(1)


def test_the_truth_of_real_photographs_scores_one(shared: Path) -> None:
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
    results = jittered(data)
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


# -- COCO by hand


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_faster_evaluator_gives_the_same_numbers(shared: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    need("faster_coco_eval", "the faster evaluator gives the same numbers", "fast-eval")
    folder = shared / "data" / "coco543"
    data = read_coco(folder / "instances_val.json", folder / "images", check_images=False)
    results = jittered(data)
    fast = coco_scores(data, results, [kind])[kind]
    monkeypatch.setattr("resim.scores.coco._implementation", lambda fast: (COCO, COCOeval))
    slow = coco_scores(data, results, [kind])[kind]
    assert fast.values == slow.values
    assert fast.per_class == pytest.approx(slow.per_class, abs=1e-12, nan_ok=True)  # means, summed in another order


def test_coco_ap_by_hand(tmp_path: Path) -> None:
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


def test_coco_ap_over_overlaps_by_hand(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    # IoU 0.82: found at 0.5, 0.55, ..., 0.8, missed at 0.85, 0.9, 0.95
    values = coco_scores(data, [detection(1, DOG, (0, 0, 10, 8.2), 0.9)])["bbox"].values
    assert (values["AP"], values["AP50"], values["AP75"], values["APs"]) == pytest.approx((0.7, 1, 1, 0.7))
    assert math.isnan(values["APm"])
    assert math.isnan(values["APl"])


def test_sizes_go_by_the_annotated_area(tmp_path: Path) -> None:
    areas = (31**2, 33**2, 95**2, 97**2)  # small is up to 32 x 32, medium up to 96 x 96
    things = [thing(n + 1, 1, DOG, (20 * n, 0, 20 * n + 10, 10), area=area) for n, area in enumerate(areas)]
    data = read_coco(write_coco(tmp_path, things))
    found = [detection(1, DOG, (20 * n, 0, 20 * n + 10, 10), 0.9) for n in (0, 1)]
    values = coco_scores(data, found)["bbox"].values
    # of the two medium ones the first: 51 of 101 recalls
    assert (values["APs"], values["APm"], values["APl"]) == pytest.approx((1, 51 / 101, 0))


@pytest.mark.parametrize(("crowd", "expected"), [(1, 1.0), (0, 51 / 101 / 2)])
def test_detections_in_a_crowd_region_are_not_wrong(tmp_path: Path, crowd: int, expected: float) -> None:
    herd = thing(2, 1, DOG, (40, 0, 100, 80), iscrowd=crowd)
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 20, 20)), herd]))
    results = [detection(1, DOG, (50, 10, 60, 20), 0.95), detection(1, DOG, (0, 0, 20, 20), 0.9)]
    # were it an object: wrong, then right: 1 of 2 found at precision 1/2
    assert coco_scores(data, results)["bbox"].values["AP"] == pytest.approx(expected)
    rectangles = rectangle(50, 10, 60, 20), rectangle(0, 0, 20, 20)
    masks = [
        {**entry, "segmentation": to_rle([polygon], 80, 100)}
        for entry, polygon in zip(results, rectangles, strict=True)
    ]
    assert coco_scores(data, masks, ("segm",))["segm"].values["AP"] == pytest.approx(expected)


def test_an_object_that_lost_its_mask_is_ignored_by_the_scores_of_masks(tmp_path: Path) -> None:
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


# -- VOC by hand


def dogs(tmp_path: Path, *boxes: tuple[tuple[int, int, int, int], int]) -> DetectionData:
    """Image a with dogs in VOC's corners, each with its `difficult`."""
    things = [xml_object("dog", box, difficult) for box, difficult in boxes]
    return read_voc(write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": things}))


def both(values: dict[str, float]) -> tuple[float, float]:
    return values["AP50"], values["AP50_area"]


def test_voc_curves_by_hand() -> None:
    # 4 boxes; right, wrong, right, right, wrong: one box is never found
    right = np.array([1, 0, 1, 1, 0], dtype=bool)
    recall, precision = precision_recall(right, ~right, num_boxes=4)
    assert recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    # best precision at 0, 0.1, 0.2: 1; at 0.3 to 0.7: 3/4; at 0.8, 0.9, 1: 0
    assert ap_eleven_points(recall, precision) == pytest.approx((3 * 1 + 5 * 0.75) / 11)
    # recall from 0 to 1/4 at 1, to 1/2 and to 3/4 at 3/4
    assert ap_area(recall, precision) == pytest.approx(0.25 * 1 + 0.5 * 0.75)


def test_a_recall_of_three_tenths_reaches_its_point() -> None:
    recall, precision = np.array([0.1, 0.2, 3 / 10]), np.ones(3)
    assert ap_eleven_points(recall, precision) == pytest.approx(4 / 11)
    assert ap_area(recall, precision) == pytest.approx(0.3)


def test_curves_without_detections_are_zero() -> None:
    assert ap_eleven_points(np.zeros(0), np.zeros(0)) == ap_area(np.zeros(0), np.zeros(0)) == 0


def test_a_second_detection_of_a_box_is_wrong(tmp_path: Path) -> None:
    data = dogs(tmp_path, ((1, 1, 20, 20), 0), ((51, 1, 70, 20), 0))
    results = [
        detection("a", VOC_DOG, (0, 0, 20, 20), 0.9),  # right: recall 1/2, precision 1
        detection("a", VOC_DOG, (0, 0, 20, 19), 0.8),  # the same box again: 1/2, 1/2
        detection("a", VOC_DOG, (50, 0, 70, 20), 0.7),  # right: 1, 2/3
    ]
    # 11 points: 0 to 0.5 at 1, 0.6 to 1 at 2/3; area: half at 1, half at 2/3
    assert both(voc_scores(data, results).values) == pytest.approx(((6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3))


@pytest.mark.parametrize("difficult", [0, 1])
def test_difficult_boxes_are_neither_missed_nor_found(tmp_path: Path, difficult: int) -> None:
    data = dogs(tmp_path, ((1, 1, 20, 20), 0), ((51, 1, 70, 20), difficult))
    one = detection("a", VOC_DOG, (0, 0, 20, 20), 0.7)
    # not found: of one box all, of two boxes half
    assert both(voc_scores(data, [one]).values) == pytest.approx((1, 1) if difficult else (6 / 11, 0.5))
    # found three times before: nothing; or right, wrong, wrong, right: recalls 1/2, 1 at 1 and 2/4
    thrice = [detection("a", VOC_DOG, (50, 0, 70, 20), score) for score in (0.99, 0.98, 0.97)]
    expected = (1, 1) if difficult else ((6 + 5 / 2) / 11, 0.75)
    assert both(voc_scores(data, [*thrice, one]).values) == pytest.approx(expected)


def test_widths_count_the_last_pixel_and_half_is_enough(tmp_path: Path) -> None:
    # 10 x 10 pixels, and the upper 5 rows of them: 50 / 100. Without the last pixel it would be 9 x 4 / 81.
    data = dogs(tmp_path, ((1, 1, 10, 10), 0))
    assert voc_scores(data, [detection("a", VOC_DOG, (0, 0, 10, 5), 0.9)]).values["AP50"] == 1
    assert voc_scores(data, [detection("a", VOC_DOG, (0, 0, 10, 4.9), 0.9)]).values["AP50"] == 0


def test_voc_ap_over_overlaps_by_hand(tmp_path: Path) -> None:
    data = dogs(tmp_path, ((1, 1, 10, 10), 0), ((51, 1, 60, 10), 0))
    found = [detection("a", VOC_DOG, (0, 0, 10, 8.2), 0.9)]
    # one of two at 0.5 to 0.8, none at 0.85 to 0.95
    assert voc_scores(data, found).values == pytest.approx(
        {"AP": 0.7 * 6 / 11, "AP50": 6 / 11, "AP75": 6 / 11, "AP_area": 0.35, "AP50_area": 0.5, "AP75_area": 0.5}
    )


def test_classes_without_a_box_to_find_are_left_out_of_the_mean(tmp_path: Path) -> None:
    cat = xml_object("cat", (31, 31, 40, 40), difficult=1)
    things = {"a": [xml_object("dog", (1, 1, 10, 10)), cat]}
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": ["a"]}, things))
    scores = voc_scores(data, [*truth_as_results(data), detection("a", 1, (0, 0, 5, 5), 0.9)])
    assert scores.values["AP50"] == 1
    assert scores.per_class["dog"] == 1
    assert math.isnan(scores.per_class["cat"])


def devkit_ap50(data: DetectionData, results: list[dict[str, Any]], label: int, threshold: float) -> tuple[float, ...]:
    """VOCevaldet.m, line by line, on VOC's own 1-based corners with both ends included."""
    truth: dict[Any, list[dict[str, Any]]] = {}
    num_boxes = 0
    for record in data.records:
        for index in np.flatnonzero(record.labels == label):
            x0, y0, x1, y1 = record.boxes[index]
            difficult = bool(record.difficult[index])
            truth.setdefault(record.image_id, []).append({"bb": (x0 + 1, y0 + 1, x1, y1), "diff": difficult, "det": 0})
            num_boxes += not difficult
    own = [entry for entry in results if entry["category_id"] == label]
    tp, fp = [], []
    for entry in sorted(own, key=lambda entry: -entry["score"]):
        x, y, width, height = entry["bbox"]
        bb = (x + 1, y + 1, x + width, y + height)
        most, best = -math.inf, None
        for box in truth.get(entry["image_id"], []):
            bg = box["bb"]
            iw = min(bb[2], bg[2]) - max(bb[0], bg[0]) + 1
            ih = min(bb[3], bg[3]) - max(bb[1], bg[1]) + 1
            if iw > 0 and ih > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (bb, bg)]
                overlap = iw * ih / (sum(areas) - iw * ih)
                if overlap > most:
                    most, best = overlap, box
        hit = 0 if best is None or most < threshold else -1 if best["diff"] else 1
        tp.append(hit == 1 and best is not None and not best["det"])
        fp.append(hit == 0 or (hit == 1 and best is not None and bool(best["det"])))
        if hit == 1 and best is not None:
            best["det"] = 1
    recall = np.cumsum(tp) / num_boxes
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(np.cumsum(tp) / (np.cumsum(fp) + np.cumsum(tp)))
    eleven = 0.0
    for point in range(11):
        reached = precision[recall >= point / 10]
        eleven += (max(reached) if len(reached) else 0) / 11
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return eleven, sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_voc_scores_are_those_of_the_devkit(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {}
    for number in range(12):
        low = rng.integers(1, 60, (5, 2))
        high = low + rng.integers(5, 20, (5, 2))
        images[f"{number:06d}"] = [
            xml_object(
                str(rng.choice(["dog", "cat"])),
                (*map(int, low[n]), *map(int, high[n])),
                int(number > 0 and rng.random() < 0.3),
            )
            for n in range(5)
        ]
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": list(images)}, images))
    results = [entry for n in range(2) for entry in jittered(data, seed + 10 * n)]
    labels = [CLASSES.index("cat") + 1, VOC_DOG]
    official = np.array([[devkit_ap50(data, results, label, t) for t in THRESHOLDS] for label in labels])
    eleven, area = np.moveaxis(official.mean(axis=0), -1, 0)
    expected = {"AP": eleven.mean(), "AP50": eleven[0], "AP75": eleven[5]}
    expected |= {"AP_area": area.mean(), "AP50_area": area[0], "AP75_area": area[5]}
    assert voc_scores(data, results).values == pytest.approx(expected)
    assert 0.1 < expected["AP50"] < 0.95


# -- results that do not fit


def test_results_of_another_data_set_are_refused(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    good = detection(1, DOG, (0, 0, 10, 10), 0.9)
    strange = [good, {**good, "image_id": 41}, {**good, "image_id": "b"}]
    for score in (coco_scores, voc_scores):
        with pytest.raises(
            UserError, match=r"a\.json: the image_id of 2 of 3 detections is not in .*\(41, 'b'\): name the data set"
        ):
            score(data, strange, source="a.json")
        with pytest.raises(UserError, match=r"the category_id of 1 of 2 detections is not in .* \(99\)"):
            score(data, [good, {**good, "category_id": 99}])


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"score": float("nan")}, "bbox", "detection 1, of image 1, has score nan, but needs a finite"),
        ({"score": None}, "bbox", "has score None, but needs a finite"),
        ({"bbox": [1, 2, 3]}, "bbox", r"has bbox \[1, 2, 3\], but needs 4 finite numbers"),
        ({"bbox": [1, 2, 3, float("inf")]}, "bbox", r"inf\], but needs 4 finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "bbox", "has a box of negative size, width -3 and height 4"),
        ({}, "segm", "needs a segmentation in compressed RLE"),
        ({"segmentation": [rectangle(0, 0, 5, 5)]}, "segm", "needs a segmentation in compressed RLE"),
        ({"segmentation": {"size": [10, 10], "counts": "0"}}, "segm", r"a mask of size \[10, 10\], but its image is"),
    ],
)
def test_incomplete_detections_are_refused(tmp_path: Path, wrong: dict[str, Any], kind: Any, message: str) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    good = truth_as_results(data)[0]
    bad = detection(1, DOG, (0, 0, 10, 10), 0.9) | wrong
    with pytest.raises(UserError, match=message):
        coco_scores(data, [good, bad], (kind,))


def test_a_kind_that_the_truth_has_not_is_refused(tmp_path: Path) -> None:
    data = dogs(tmp_path, ((1, 1, 10, 10), 0))
    with pytest.raises(UserError, match="has no masks, so that"):
        coco_scores(data, [], ("segm",))
    with pytest.raises(UserError, match="has no keypoints, so that"):
        coco_scores(data, [], ("keypoints",))


def test_results_files(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([detection(1, DOG, (0, 0, 10, 10), 0.9)]))
    assert read_results(path)[0]["bbox"] == [0, 0, 10, 10]
    for content, message in (("{}", "not COCO results"), ("[1]", "not COCO results"), ("", "not a valid JSON file")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_results(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "nowhere.json")


def test_masks_of_a_results_file_are_whole(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    good = truth_as_results(data)[0]
    check_masks([good, {**good, "segmentation": None}], "a.json")
    for counts, told in (
        ("zzzz", "RLE whose counts are not run lengths"),
        ("11", f"RLE of 2 pixels instead of {H * W}"),
    ):
        broken = {**good, "segmentation": {"size": [H, W], "counts": counts}}
        with pytest.raises(UserError, match=rf"^a\.json: detection 1, of image 1, has an {told}"):
            check_masks([good, broken], "a.json")


# -- Cityscapes

STREET = polygons(
    [
        ("road", corners(0, 40, 99, 79)),
        ("car", corners(10, 30, 39, 49)),
        ("car", corners(50, 30, 69, 49)),
        ("persongroup", corners(80, 10, 94, 24)),
        ("person", corners(0, 0, 14, 14)),
        ("rider", corners(90, 60, 94, 69)),  # 50 pixels: too few to count
    ]
)


@pytest.fixture
def street(tmp_path: Path) -> DetectionData:
    return read_cityscapes(
        write_cityscapes(tmp_path, {"ulm_000000_000019": STREET, "ulm_000000_000020": STREET}), "val"
    )


def test_cityscapes_by_its_own_scripts(street: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("cityscapesscripts", "Cityscapes' AP by its own scripts", "cityscapes")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    results = truth_as_results(street)
    scores = cityscapes_scores(street, results)
    assert scores.values == pytest.approx({"AP": 1, "AP50": 1})
    assert scores.per_class["car"] == scores.per_class["person"] == 1  # the group is ignored
    assert math.isnan(scores.per_class["rider"])
    # two of four cars, all right: a recall of 1/2 at precision 1
    left = [entry for entry in results if entry["category_id"] != 26 or entry["bbox"][0] == 10]
    assert cityscapes_scores(street, left).per_class["car"] == pytest.approx(0.5)
    assert sorted(tmp_path.rglob("*")) == before


def test_cityscapes_scores_without_its_scripts_say_how_to_install_them(
    street: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
    with pytest.raises(UserError, match=r"pip install '\.\[cityscapes\]' in resim's clone"):
        cityscapes_scores(street, truth_as_results(street))


def test_cityscapes_masks_and_boxes_score_by_coco_too(street: DetectionData) -> None:
    scores = coco_scores(street, truth_as_results(street, with_ignored=False), ("bbox", "segm"))
    assert scores["bbox"].values["AP"] == scores["segm"].values["AP"] == pytest.approx(1)
