"""Comparisons: AP under resampled images, intervals, and runs that go on where they stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection_data import rectangle, thing, truth_as_results, write_coco, write_voc, xml_object
from resim.cli.main import main
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.detection.compare import Start, compare
from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun, ImagesConfig, TuneConfig
from resim.detection.evaluate import read_scores
from resim.errors import StoppedError, UserError
from resim.report.comparison_pictures import draw_ap_curves, draw_comparison_sheet
from resim.scores.bootstrap import average_precision, match_detections, paired_interval, resample_precision
from resim.scores.coco import coco_scores


def scattered(data: DetectionData, seed: int) -> list[dict[str, Any]]:
    """The truth, shifted, some of it lost, with detections of nothing."""
    generator = np.random.default_rng(seed)
    results = []
    for result in truth_as_results(data):
        if generator.random() < 0.3:
            continue
        x, y, width, height = result["bbox"]
        shift = generator.normal(0, 0.08, 2) * (width, height)
        box = [x + shift[0], y + shift[1], width, height]
        results.append({**result, "bbox": box, "score": float(generator.random())})
    for record in data.records:
        box = [*generator.uniform(0, 60, 2).tolist(), 20.0, 20.0]
        category = int(generator.choice(data.category_ids))
        results.append(
            {"image_id": record.image_id, "category_id": category, "bbox": box, "score": float(generator.random())}
        )
    return results


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """Ten images, thirty objects, one of them a crowd."""
    generator = np.random.default_rng(0)
    things = []
    for number in range(1, 31):
        x, y = generator.uniform(0, 50, 2)
        width, height = generator.uniform(8, 30, 2)
        category, crowd = (7, 3)[number % 2], int(number == 30)
        box = (float(x), float(y), float(x + width), float(y + height))
        things.append(thing(number, 1 + number % 10, category, box, iscrowd=crowd))
    return read_coco(write_coco(tmp_path, things, num_images=10))


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_all_images_once_is_pycocotools(data: DetectionData, seed: int) -> None:
    results = scattered(data, seed)
    score = average_precision(match_detections(data, results), np.ones(len(data)))
    assert score == pytest.approx(coco_scores(data, results)["bbox"].values["AP"], abs=1e-12)


def test_ap_of_resampled_images_is_that_of_a_data_set_that_has_them_as_often(data: DetectionData) -> None:
    results = scattered(data, 1)
    weights = np.array([2, 0, 1, 3, 0, 1, 1, 0, 2, 0])
    copies = [(record, copy) for record, times in zip(data.records, weights, strict=True) for copy in range(times)]
    repeated = dataclasses.replace(
        data, records=tuple(dataclasses.replace(r, image_id=f"{r.image_id}-{copy}") for r, copy in copies)
    )
    more = [
        {**result, "image_id": f"{record.image_id}-{copy}"}
        for record, copy in copies
        for result in results
        if result["image_id"] == record.image_id
    ]
    score = average_precision(match_detections(data, results), weights.astype(float))
    assert score == pytest.approx(coco_scores(repeated, more)["bbox"].values["AP"], abs=1e-12)


def test_the_truth_has_ap_one_under_every_draw(data: DetectionData) -> None:
    under = resample_precision(match_detections(data, truth_as_results(data)), len(data), replicates=20, seed=0)
    assert under == pytest.approx(np.ones(20))


def test_difficult_objects_are_not_scored(tmp_path: Path) -> None:
    objects = {"a": [xml_object("dog", (10, 10, 40, 40)), xml_object("dog", (60, 10, 90, 40), difficult=1)]}
    data = read_voc(write_voc(tmp_path, "2007", {"test": ["a"]}, objects), "2007 test")
    results = truth_as_results(data)[:1]
    assert average_precision(match_detections(data, results), np.ones(1)) == pytest.approx(1.0)


def test_the_interval_of_equal_runs_is_zero() -> None:
    under = np.random.default_rng(0).random((3, 50))
    assert paired_interval(under, under, seed=0) == (0.0, 0.0)


def test_the_interval_of_a_constant_difference_is_that_difference() -> None:
    under = np.random.default_rng(0).random((3, 50))
    assert paired_interval(under + 0.2, under, seed=0) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.706), (3, 4.303), (5, 2.776)])
def test_the_interval_over_seeds_is_students(seeds: int, t: float) -> None:
    values = np.random.default_rng(seeds).normal(size=seeds)
    under = values[:, None].repeat(400, axis=1)  # the same under every draw of images
    half = t * values.std(ddof=1) / np.sqrt(seeds)
    expected = values.mean() - half, values.mean() + half
    assert paired_interval(under, np.zeros((seeds, 400)), seed=0) == pytest.approx(expected, abs=0.03 * half)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    holds = []
    for number in range(200):
        # a true difference of 0; the noise of the images, which seeds share, and that of each seed
        of_images = generator.normal() + generator.normal(size=300)
        of_seeds = 5 * generator.normal(size=(seeds, 1)) * (seeds > 1)
        low, high = paired_interval(of_images + of_seeds, np.zeros((seeds, 300)), seed=number)
        holds.append(low <= 0 <= high)
    assert np.mean(holds) >= 0.91


def test_the_interval_of_one_seed_is_over_images() -> None:
    under = np.arange(1001.0)[None] / 1000
    assert paired_interval(under, np.zeros_like(under), seed=0) == pytest.approx((0.025, 0.975))


@pytest.mark.parametrize(
    ("text", "name", "weights"),
    [
        ("random", "random", "random"),
        ("runs/a/checkpoints/last.pt", "a", "runs/a/checkpoints/last.pt"),
        ("runs/a", "a", "runs/a"),
        ("mine=runs/a", "mine", "runs/a"),
        ("moco_v2_200ep.pth", "moco_v2_200ep", "moco_v2_200ep.pth"),
    ],
)
def test_names_of_initialisations(text: str, name: str, weights: str) -> None:
    assert Start.parse(text) == Start(name=name, weights=weights)


RECIPE = DetectRecipe(
    name="tiny",
    detector=DetectorConfig(
        backbone="resnet18", fpn_width=8, rpn_regions=8, box_regions=8, proposals_train=20, proposals_test=10,
        anchor_sizes=(8, 16, 32, 64, 128),
    ),
    images=ImagesConfig(min_sizes=(64,), max_size=96, test_size=64),
    tune=TuneConfig(steps=2, batch_size=2, drops=(), warmup_steps=0, lr=0.001),
)  # fmt: skip


def small(folder: Path) -> DetectionData:
    data = read_coco(write_coco(folder, [thing(1, 1, 7, (10, 10, 50, 60)), thing(2, 2, 3, (30, 20, 80, 70))]))
    assert [rectangle(10, 10, 50, 60)] == data.records[0].masks[0]  # type: ignore[index]
    return data


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_stopped_and_reuses_what_is_finished(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    starts = [Start(name="a", weights="random"), Start(name="b", weights="random")]
    run = DetectRun(device="cpu", precision="float32", workers=0, stop_after=1, eval_every=1)
    out = tmp_path / "out"
    assert compare(RECIPE, run, data, data, starts, (0,), out, replicates=3, show=False) is None
    assert (out / "a-seed0" / "config.json").exists()
    assert not (out / "b-seed0").exists()

    run = dataclasses.replace(run, stop_after=0)
    comparison = compare(RECIPE, run, data, data, starts, (0,), out, replicates=3, show=False)
    assert comparison is not None
    assert [line["step"] for line in read_scores(out / "a-seed0")] == [1, 2]
    assert comparison.scores["a"]["bbox"] == comparison.scores["b"]["bbox"]  # the same weights, order and draws
    assert [(one.value, one.low, one.high) for one in comparison.differences] == [(0.0, 0.0, 0.0)]
    assert not comparison.differences[0].is_sure

    stamp = (out / "a-seed0" / "checkpoints" / "last.pt").stat().st_mtime_ns
    assert compare(RECIPE, run, data, data, starts, (0,), out, replicates=3, show=False) is not None
    assert (out / "a-seed0" / "checkpoints" / "last.pt").stat().st_mtime_ns == stamp
    stored = json.loads((out / "compare.json").read_text())
    assert stored["kind"] == "compare"
    assert set(stored["runs"]) == {"a", "b"}

    for path in (
        draw_ap_curves(comparison, out / "curves.png"),
        draw_comparison_sheet(comparison, data, out / "sheet.png"),
    ):
        assert path is not None
        with Image.open(path) as picture:
            assert min(picture.size) > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "state"), [(1, "0 of 2 runs finished, {}/a-seed0 saved after step 2"), (3, "1 of 2 runs finished")]
)
def test_a_signal_stops_a_comparison_which_goes_on(step: int, state: str, tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    starts = [Start(name="a", weights="random"), Start(name="b", weights="random")]
    recipe = dataclasses.replace(RECIPE, tune=dataclasses.replace(RECIPE.tune, steps=3))
    run = DetectRun(device="cpu", precision="float32", workers=0, eval_every=3, log_every=1)
    out = tmp_path / "out"

    def watch(done: int, steps: int) -> None:
        if done == step and not (out / "b-seed0").exists():
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError) as stopped:
        compare(recipe, run, data, data, starts, (0,), out, replicates=3, show=False, watch=watch)
    assert str(stopped.value) == f"stopped: {state.format(out)}"
    assert not (out / "compare.json").exists()
    comparison = compare(recipe, run, data, data, starts, (0,), out, replicates=3, show=False)
    assert comparison is not None
    assert comparison.scores["a"]["bbox"] == comparison.scores["b"]["bbox"]  # as of runs that nothing stopped


@pytest.mark.parametrize(
    ("starts", "seeds", "message"),
    [
        ([Start(name="a", weights="random")] * 2, (0,), "two have the same name"),
        ([], (0,), "at least one"),
        ([Start(name="a/b", weights="random")], (0,), "cannot be empty"),
        ([Start(name="a", weights="random")], (1, 1), "one is there twice"),
        ([Start(name="a", weights="random")], (0, -1), "--seeds -1: must be at least 0"),
        ([Start(name="a", weights="nowhere.pt")], (1,), "nowhere.pt"),
    ],
)
def test_comparisons_that_cannot_be(starts: list[Start], seeds: tuple[int, ...], message: str, tmp_path: Path) -> None:
    data = small(tmp_path)
    with pytest.raises(UserError, match=message):
        compare(RECIPE, DetectRun(device="cpu"), data, data, starts, seeds, tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def test_a_runs_own_folder_takes_no_comparison(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    words = ["--init", "random", "--val", "val", "--out", str(tmp_path)]
    assert main(["compare", str(tmp_path / "data"), *words]) == 2
    assert (
        f"--out {tmp_path}: is the folder of a run itself; name another for the comparison" in capsys.readouterr().err
    )
