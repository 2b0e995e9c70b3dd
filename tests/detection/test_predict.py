"""What a detector finds in COCO's form, the same on any number of processes; images without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor, nn

from forked import on_processes
from resim.datasets.records import DetectionData
from resim.detection.checkpoint import detector_state
from resim.detection.detector import build_detector
from resim.detection.predict import detect, predict_images, to_results
from resim.detection.summary import summary
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.checkpoints import save_checkpoint
from thin_resnets import ThinResNet, resnets_of
from tiny_detectors import noise, things, tiny, tiny_images, tiny_recipe

ONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)


# -- COCO's form


def test_boxes_are_corner_and_size_and_labels_are_category_ids() -> None:
    output = {
        "boxes": torch.tensor([[10.0, 20, 30, 60], [0, 0, 5, 5]]), "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([2, 1]),
    }  # fmt: skip
    assert to_results(output, "2007_1", [3, 7]) == [
        {"image_id": "2007_1", "category_id": 7, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": "2007_1", "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5},
    ]
    assert to_results({"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}, 1, [3]) == []


def test_masks_are_rle_of_a_half_and_more() -> None:
    masks = torch.zeros(1, 1, 6, 8)
    masks[0, 0, 1:3, 2:7], masks[0, 0, 4, 4] = 0.5, 0.49
    output = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1), "masks": masks}
    (result,) = json.loads(json.dumps(to_results(output, 1, [3])))
    assert result["segmentation"]["size"] == [6, 8]
    assert np.array_equal(rle.decode(result["segmentation"]), (masks[0, 0] >= 0.5).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keypoints_are_counted_in_pixels_again(dtype: torch.dtype) -> None:
    points = torch.tensor([[[30.5, 20.5, 1], [7.0, 9.5, 1]]], dtype=dtype)
    output = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1), "keypoints": points}
    (result,) = to_results(output, 1, [3])
    assert result["keypoints"] == [30, 20, 1, 6.5, 9, 1]
    assert points[0, 0, 0] == 30.5  # what was given stays as it was


# -- a data set


def model_of(data: DetectionData) -> nn.Module:
    config = tiny(masks=True, score_threshold=0.0, detections=5)
    return build_detector(config, tiny_images(), num_classes=len(data.classes), seed=1)


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        data = things(Path(folder) / f"things-{rank}", num_images=5)
        processes = Processes(rank=rank, count=2, device=torch.device("cpu"), cores=1)
        with resnets_of(ThinResNet):
            model = model_of(data)
        detections = detect(model, data, processes)
        (Path(folder) / f"{rank}.json").write_text(json.dumps(detections))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    data = things(tmp_path / "things", num_images=5)
    counts: list[int] = []
    expected = detect(model_of(data), data, ONE, report=counts.append)
    assert [r["image_id"] for r in expected] == [n for n in range(1, 6) for _ in range(5)]
    assert {r["category_id"] for r in expected} <= {3, 7}
    assert counts == [1, 2, 3, 4, 5]
    assert detect(model_of(data), data, ONE, workers=1) == expected
    on_processes(work, (str(tmp_path),), 2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


@pytest.mark.slow
def test_images_together_are_found_in_as_alone(tmp_path: Path) -> None:
    data = things(tmp_path, num_images=3)
    alone, together = (detect(model_of(data), data, ONE, batch=batch) for batch in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_the_mode_of_the_detector_stays(tmp_path: Path) -> None:
    data = things(tmp_path, num_images=1)
    for training in (True, False):
        model = model_of(data).train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        detect(model, data, ONE)
        assert model.training == training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- images without labels


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a detector of two classes that gives every score."""
    folder = tmp_path_factory.mktemp("detector")
    data = things(folder / "things", num_images=1)
    recipe = tiny_recipe(tiny(masks=True, score_threshold=0.0, detections=4))
    model = build_detector(recipe.detector, recipe.images, num_classes=2, seed=1)
    state: dict[str, Any] = {"step": 3, "precision": "float32", "model": model.state_dict()}
    save_checkpoint(folder / "checkpoints" / "last.pt", detector_state(recipe, data, "random", **state))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of the same stem, one of another, and one that is none."""
    folder = tmp_path / "images"
    for name in ("a/one.jpg", "b/one.png", "b/two.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(folder / name, seed=len(name))
    (folder / "broken.jpg").write_bytes(b"none")
    return folder


@pytest.mark.slow
def test_a_folder_of_images(detector: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    detections = predict_images(detector, [images], out, threshold=0.0, device="cpu")
    names = [str(images / name) for name in ("a/one.jpg", "b/one.png", "b/two.png")]
    assert sorted({r["image_id"] for r in detections}) == names
    assert json.loads((out / "results.json").read_text()) == detections
    assert json.loads((out / "classes.json").read_text()) == {"3": "cat", "7": "dog"}
    assert sorted(path.name for path in out.iterdir()) == [
        "bad_files.txt", "classes.json", "one-2.jpg", "one.jpg", "results.json", "two.jpg"
    ]  # fmt: skip
    with Image.open(out / "one.jpg") as picture:
        assert picture.size[0] == 480  # enlarged, so that its tags can be read
    message = capsys.readouterr().out
    assert "passed over: 1 image that cannot be decoded, the first is" in message
    assert str(images / "broken.jpg") in message
    assert message.splitlines()[-1] == "12 detections with a score of 0 or more, in all of 3 images"


@pytest.mark.parametrize(
    ("scores", "threshold", "line"),
    [
        ({"a": [0.5]}, 0.5, "1 detection with a score of 0.5 or more, in 1 image"),
        ({"a": [0.9, 0.6], "b": [0.7, 0.1]}, 0.5, "3 detections with a score of 0.5 or more, in all of 2 images"),
        (
            {"a": [0.9, 0.2], "b": [0.3126], "c": []}, 0.5,
            "1 detection with a score of 0.5 or more, in 1 of 3 images; 2 have none; the best score there is 0.312, "
            "in b: --threshold 0.31 draws it",
        ),
        (
            {"a": [0.49999, 0.2], "b": [0.4], "c": []}, 0.5,
            "3 of 3 images have no detection with a score of 0.5 or more; the best score is 0.499, in a: "
            "--threshold 0.49 draws it",
        ),
        (
            {"a": [0.001]}, 0.25,
            "1 of 1 image has no detection with a score of 0.25 or more; the best score is 0.001, in a: "
            "--threshold 0 draws it",
        ),
        (
            {"a": [], "b": []}, 0.5,
            "2 of 2 images have no detection with a score of 0.5 or more, and none below it (this detector returns "
            "none below 0.05)",
        ),
        ({"a": [0.8], "b": []}, 0.5, "1 detection with a score of 0.5 or more, in 1 of 2 images; 1 has none, and none "
         "below it (this detector returns none below 0.05)"),
    ],
)  # fmt: skip
def test_the_summary_says_where_nothing_is_and_how_near_it_came(
    scores: dict[str, list[float]], threshold: float, line: str
) -> None:
    assert summary(scores, threshold, least=0.05) == line


def test_detections_below_the_threshold_are_summed_up(
    detector: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detections = predict_images(detector, [images / "b"], tmp_path / "out", threshold=1.0, pictures=False, device="cpu")
    best = max(detections, key=lambda result: result["score"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("2 of 2 images have no detection with a score of 1 or more; the best score is 0.")
    assert f", in {best['image_id']}: --threshold 0." in line


@pytest.mark.slow
def test_what_is_found_is_what_the_detector_finds(detector: Path, images: Path, tmp_path: Path) -> None:
    from resim.detection.checkpoint import load_detector

    loaded = load_detector(detector)
    with Image.open(images / "b" / "two.png") as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        expected: dict[str, Tensor] = loaded.model([pixels])[0]
    path = images / "b" / "two.png"
    detections = predict_images(detector, [path], tmp_path / "out", pictures=False, device="cpu")
    assert detections == to_results(expected, str(path), loaded.category_ids)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.json", "results.json"]


def test_what_cannot_work(detector: Path, images: Path, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    for arguments, message in (
        ((detector, [tmp_path / "none"], tmp_path / "out"), "none: there is no such folder or file"),
        ((tmp_path / "none", [images], tmp_path / "out"), "none: cannot be read"),
        ((detector, [images], taken), "file: cannot be written to"),
    ):
        with pytest.raises(UserError, match=message):
            predict_images(*arguments, device="cpu")
    assert not (tmp_path / "out").exists()
