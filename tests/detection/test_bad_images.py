"""Images that cannot be decoded are replaced in training and left out of scores; a run goes on without them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from detection_data import thing, write_coco
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.detection.bad_images import LEAST, put_back, remember, scored_part, without, without_remembered
from resim.detection.detector import build_detector
from resim.detection.predict import detect
from resim.detection.prepare import fingerprint
from resim.detection.samples import TrainingSet
from resim.detection.step import DetectorStepper
from resim.detection.train import train_detector
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.checkpoints import load_checkpoint
from tiny_detectors import noise, things, tiny, tiny_images, tiny_recipe, tiny_run, write_people, write_things

ONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)


def truncate(data: DetectionData, *positions: int) -> None:
    """Cut files off after their header, so that only decoding shows it."""
    for position in positions:
        path = Path(data.records[position].image)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


# -- training


def test_a_bad_image_is_replaced_by_one_of_its_shape(tmp_path: Path) -> None:
    path = write_things(tmp_path, num_images=6)
    content = json.loads(path.read_text())
    for image in content["images"][3:]:  # the last three are upright
        image.update(width=80, height=100)
        noise(tmp_path / "images" / image["file_name"], seed=9, width=80, height=100)
    path.write_text(json.dumps(content))
    data = read_coco(path)
    truncate(data, 0, 3)
    samples = TrainingSet(data, tiny_images(), seed=0)
    for epoch in range(4):
        for index, others in ((0, {1, 2}), (3, {4, 5})):
            sample = samples[epoch, index]
            assert sample.index in others
            assert not sample.fault
            assert {bad.path for bad in sample.bad} == {data.records[index].image}
            assert samples[epoch, index].index == sample.index
            sound = samples[epoch, sample.index]
            assert not sound.bad


def test_what_is_drawn_for_sound_images_does_not_change(tmp_path: Path) -> None:
    data = things(tmp_path, num_images=4)
    before = [TrainingSet(data, tiny_images(), seed=0)[0, index] for index in (1, 2, 3)]
    truncate(data, 0)
    after = [TrainingSet(data, tiny_images(), seed=0)[0, index] for index in (1, 2, 3)]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.image, other.image)
        assert (one.size, one.seed) == (other.size, other.seed)


# -- what is remembered


@pytest.mark.parametrize("kind", ["masks", "keypoints"])
def test_images_taken_out_are_put_back_in_their_places(tmp_path: Path, kind: str) -> None:
    path = write_things(tmp_path, 5) if kind == "masks" else write_people(tmp_path, 5)
    data = read_coco(path)
    bad = [data.records[at].image for at in (0, 3)]
    remember(tmp_path / "run", "train", data, [bad[0]])
    remember(tmp_path / "run", "train", data, bad)  # a second one later
    remember(tmp_path / "run", "train", data, bad)
    rest = without(data, bad)
    assert [record.image_id for record in rest.records] == [2, 3, 5]
    again = put_back(tmp_path / "run", "train", rest)
    assert [record.image_id for record in again.records] == [1, 2, 3, 4, 5]
    assert fingerprint(again) == fingerprint(data) != fingerprint(rest)
    assert [record.has_mask.tolist() for record in again.records] == [r.has_mask.tolist() for r in data.records]
    assert put_back(tmp_path / "run", "train", data).records == data.records
    assert put_back(tmp_path / "run", "val", rest).records == rest.records
    assert put_back(tmp_path / "elsewhere", "train", rest).records == rest.records


def numbers(out: Path) -> list[float]:
    return [json.loads(line)["loss/total"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps read their batch and train nothing."""
    monkeypatch.setattr(DetectorStepper, "__call__", lambda self, batch: {"total": torch.tensor(1.0)})


RECIPE = tiny_recipe(steps=3, batch_size=1, fraction=0.8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two bad images of five that nothing stopped, and one stopped after two steps that met one of them."""
    folder = tmp_path_factory.mktemp("runs")
    data = read_coco(write_things(folder / "data", num_images=5))
    truncate(data, 1, 4)
    for out, stop in (("whole", 0), ("parts", 2)):
        train_detector(RECIPE, tiny_run(folder / out, stop_after=stop), data, None, show=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "annotations"])
def test_a_run_goes_on_once_the_bad_image_is_taken_out(
    runs: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "parts", tmp_path / "run")
    shutil.copytree(runs / "data", tmp_path / "data")
    (listed,) = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    gone = Path(listed.split("\t")[0]).name
    assert gone in ("2.png", "5.png")
    path = tmp_path / "data" / "instances_val.json"
    if how == "file":
        (tmp_path / "data" / "images" / gone).unlink()
    else:
        content = json.loads(path.read_text())
        content["images"] = [image for image in content["images"] if image["file_name"] != gone]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != int(gone[0])]
        path.write_text(json.dumps(content))
    train_detector(RECIPE, tiny_run(tmp_path / "run", resume=True), read_coco(path, check_images=False), None)
    text = " ".join(capsys.readouterr().out.split())
    assert "gone: 1 image that could not be decoded; the run goes on as if there were no change" in text
    assert "1 file could not be decoded (replaced in training, left out of evaluations): see" in text
    assert numbers(tmp_path / "run") == numbers(runs / "whole")
    one, other = (
        load_checkpoint(out / "checkpoints" / "last.pt")["model"] for out in (runs / "whole", tmp_path / "run")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.usefixtures("no_steps")
def test_another_image_taken_out_is_still_refused(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=4)
    truncate(data, 1)
    recipe = tiny_recipe(steps=4, batch_size=1)
    train_detector(recipe, tiny_run(tmp_path / "run", stop_after=3), data, None, show=False)
    fewer = dataclasses.replace(data, records=data.records[:3])
    with pytest.raises(UserError, match="--resume with other data"):
        train_detector(recipe, tiny_run(tmp_path / "run", resume=True), fewer, None, show=False)


@pytest.mark.usefixtures("no_steps")
def test_too_many_bad_images_stop_the_run_and_are_listed(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=4)
    truncate(data, 0, 1)
    recipe = tiny_recipe(steps=30, batch_size=4, lr=0.0)
    with pytest.raises(UserError, match=r"\d+ of \d+ files read cannot be decoded, more than --max-bad-share 0.2"):
        train_detector(recipe, tiny_run(tmp_path / "run", max_bad_share=0.2), data, None, show=False)
    assert (tmp_path / "run" / "bad_files.txt").read_text().count("\n") == 2
    assert [entry["position"] for entry in json.loads((tmp_path / "run" / "bad_images.json").read_text())["train"]] == [
        0, 1,
    ]  # fmt: skip


# -- scores


def test_bad_images_have_no_results_and_their_objects_do_not_count(tmp_path: Path) -> None:
    data = things(tmp_path, num_images=4)
    truncate(data, 2)
    model = build_detector(
        tiny(score_threshold=0.0, detections=3), tiny_images(), num_classes=len(data.classes), seed=1
    )
    bad: dict[str, str] = {}
    results = detect(model, data, ONE, bad=bad)
    assert list(bad) == [data.records[2].image]
    assert [result["image_id"] for result in results] == [number for number in (1, 2, 4) for _ in range(3)]
    assert results == detect(model, without(data, bad), ONE)
    part, note = scored_part(data, bad, 0.1)
    assert [record.image_id for record in part.records] == [1, 2, 4]
    assert note.startswith("not counted: 1 of 4 images, which cannot be decoded, and 2 objects there, for example ")
    with pytest.raises(UserError, match=r"3.png: cannot be decoded"):
        detect(model, data, ONE)


def test_a_share_of_bad_images_and_more(tmp_path: Path) -> None:
    (record,) = read_coco(write_coco(tmp_path, [thing(1, 1, 7, (10, 10, 40, 40))], num_images=1)).records
    records = tuple(dataclasses.replace(record, image=f"{n}.png", image_id=n) for n in range(LEAST))
    data = DetectionData(records=records, classes=("dog",), category_ids=(7,), kind="coco", source="a.json")
    bad = {f"{n}.png": "cut off" for n in range(5)}
    assert len(scored_part(data, bad, 0.1)[0]) == LEAST - 5
    message = r"a\.json: 6 of 50 images cannot be decoded, more than --max-bad-share 0.1, for example 0\.png \(cut off"
    with pytest.raises(UserError, match=message):
        scored_part(data, bad | {"5.png": "cut off"}, 0.1)
    few = dataclasses.replace(data, records=records[:4])
    assert scored_part(few, {}, 0.1) == (few, "")
    assert len(scored_part(few, {"0.png": "", "1.png": "", "2.png": ""}, 0.1)[0]) == 1
    with pytest.raises(UserError, match="none of its 4 images can be decoded"):
        scored_part(few, {f"{n}.png": "" for n in range(4)}, 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_steps")
def test_an_evaluation_in_training_leaves_bad_images_out_and_goes_on_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, val = things(tmp_path / "train", num_images=2), things(tmp_path / "val", num_images=3)
    truncate(val, 1)
    recipe, out = tiny_recipe(steps=4), tmp_path / "run"
    train_detector(recipe, tiny_run(out, eval_every=2, stop_after=2), data, val)
    text = " ".join(capsys.readouterr().out.split())
    assert "after step 2: not counted: 1 of 3 images, which cannot be decoded, and 2 objects there" in text
    line = json.loads((out / "scores.jsonl").read_text())
    assert line["images"] == 2
    assert "2.png\t" in (out / "bad_files.txt").read_text()
    rest = dataclasses.replace(val, records=(val.records[0], val.records[2]))
    assert [record.image_id for record in without_remembered(val, [out]).records] == [1, 3]
    assert train_detector(recipe, tiny_run(out, eval_every=2, resume=True), data, rest).finished
    assert [json.loads(text)["images"] for text in (out / "scores.jsonl").read_text().splitlines()] == [2, 2]
    assert np.isfinite(numbers(out)).all()
