"""Fine-tuning from end to end in small: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detection_data import corners, polygons, write_cityscapes, write_voc, xml_object
from equal import same
from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.detection import tuning, validate
from resim.detection.checkpoint import load_detector
from resim.detection.config import DetectRecipe
from resim.detection.evaluate import read_scores
from resim.detection.train import DetectResult, train_detector
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.exchange.weights import read_weights
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import Recipe
from resim.runs.log import read_metrics
from tiny_detectors import noise, things, tiny, tiny_images, tiny_recipe, tiny_run, write_people, write_things

STEPS = 5
RECIPE = tiny_recipe(steps=STEPS, precise_bn=2, drops=(3,), warmup_steps=2)
EVERY: dict[str, Any] = {"eval_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("data"), num_images=5)


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("val"), num_images=2)


def train(out: Path, data: DetectionData, val: DetectionData | None, recipe: DetectRecipe = RECIPE, **more: Any) -> Any:
    init = more.pop("init", "random")
    return train_detector(recipe, tiny_run(out, **more), data, val, init=init, show=more.pop("show", False))


@pytest.fixture(scope="module")
def whole(data: DetectionData, val: DetectionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result: DetectResult = train(out, data, val, **EVERY)
    assert (result.out, result.step, result.finished) == (out, STEPS, True)
    assert result.scores == read_scores(out)[-1]["scores"]
    return out


def state_of(out: Path) -> dict[str, Any]:
    return load_checkpoint(out / "checkpoints" / "last.pt")


def numbers(out: Path) -> list[dict[str, float]]:
    timing = ("images_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in timing} for line in read_metrics(out / "metrics.jsonl")]


def alike(out: Path, whole: Path) -> None:
    """Two runs ended the same."""
    assert same(state_of(out), state_of(whole))
    assert numbers(out) == numbers(whole)
    for name in ("scores.jsonl", "results.json"):
        assert (out / name).read_text() == (whole / name).read_text()


# -- what it writes


@pytest.mark.slow
def test_what_a_run_writes(whole: Path, data: DetectionData, val: DetectionData) -> None:
    written = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    events = {name for name in written if name.startswith("tensorboard/")}
    assert len(events) == 1
    assert written - events == {
        "config.json", "metrics.jsonl", "scores.jsonl", "results.json", "curves.png", "checkpoints/last.pt",
            "checkpoints/previous.pt",
        "pictures/detections.png",
    }  # fmt: skip
    lines = read_scores(whole)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert all(line["images"] == 2 and set(line["per_class"]["bbox"]) == {"cat", "dog"} for line in lines)
    assert all({"AP", "AP50", "AP75"} <= set(line["scores"]["bbox"]) for line in lines)
    config = json.loads((whole / "config.json").read_text())
    assert DetectRecipe.from_json(config["recipe"]) == RECIPE
    assert (config["kind"], config["init"], config["processes"]) == ("detect", "random", 1)
    assert config["classes"] == ["cat", "dog"]
    assert config["data"]["images"] == 5
    assert config["data"]["objects"] == 10
    assert config["data"]["val"] == val.source
    assert not config["weights"]["loaded"]
    assert len(config["weights"]["new"]) > 100
    with Image.open(whole / "pictures" / "detections.png") as picture:
        assert picture.width > 700


@pytest.mark.slow
def test_the_learning_rate_and_the_losses_are_written_for_every_step(whole: Path) -> None:
    lines = numbers(whole)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["lr"] for line in lines] == [RECIPE.tune.learning_rate(step) for step in range(STEPS)]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1]  # five images, two a step
    for line in lines:
        parts = sum(value for name, value in line.items() if name.startswith("loss/") and name != "loss/total")
        assert line["loss/total"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_is_the_detector(whole: Path, data: DetectionData) -> None:
    state, loaded = state_of(whole), load_detector(whole)
    assert (state["step"], state["evaluated"], state["kind"]) == (STEPS, True, "detect")
    assert same(dict(loaded.model.state_dict()), dict(state["model"]))
    assert not loaded.model.training
    assert (loaded.classes, loaded.category_ids, loaded.recipe) == (data.classes, data.category_ids, RECIPE)
    assert loaded.source == f"{whole / 'checkpoints' / 'last.pt'}, step {STEPS}"
    assert load_detector(whole / "checkpoints" / "last.pt").step == STEPS


# -- how it goes on


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(1, 1), (4,), (5,)], ids=str)
def test_stopped_and_resumed_is_never_stopped(
    whole: Path, data: DetectionData, val: DetectionData, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    out = tmp_path / "run"
    for number, steps in enumerate(stops):
        result = train(out, data, val, stop_after=steps, resume=number > 0, **EVERY)
        assert (result.step, result.finished) == (sum(stops[: number + 1]), sum(stops[: number + 1]) == STEPS)
    assert train(out, data, val, resume=True, **EVERY).finished
    alike(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5])
def test_killed_in_an_evaluation_and_resumed(
    whole: Path, data: DetectionData, val: DetectionData, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def killed(folder: Path, *arguments: Any, **more: Any) -> None:
        if more["step"] == step:
            raise KeyboardInterrupt
        written(folder, *arguments, **more)

    written: Callable[..., None] = validate.write_evaluation
    with monkeypatch.context() as patch:
        patch.setattr(validate, "write_evaluation", killed)
        with pytest.raises(KeyboardInterrupt):
            train(out, data, val, **EVERY)
    assert (state_of(out)["step"], state_of(out)["evaluated"]) == (step, False)
    assert train(out, data, val, resume=True, **EVERY).finished
    alike(out, whole)


@pytest.mark.slow
def test_steps_that_were_written_after_the_last_checkpoint_are_not_doubled(
    whole: Path, data: DetectionData, val: DetectionData, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(out, data, val, stop_after=2, **EVERY)
    saved = (out / "checkpoints" / "last.pt").read_bytes()
    train(out, data, val, resume=True, stop_after=2, **EVERY)
    assert [line["step"] for line in read_scores(out)] == [2, 4]
    (out / "checkpoints" / "last.pt").write_bytes(saved)  # as if it had been killed before it was written
    train(out, data, val, resume=True, **EVERY)
    alike(out, whole)


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_stays_as_it_is(whole: Path, data: DetectionData, val: DetectionData) -> None:
    before = {path: path.read_bytes() for path in (whole / "checkpoints" / "last.pt", whole / "scores.jsonl")}
    assert train(whole, data, val, resume=True, **EVERY).finished
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_precise_statistics_are_those_of_the_weights_at_the_end(data: DetectionData, tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=2, precise_bn=2)
    with_val, without = tmp_path / "with", tmp_path / "without"
    train(with_val, data, things(tmp_path / "val", num_images=1), recipe)
    train(without, data, None, recipe)
    assert same(dict(state_of(without)["model"]), dict(state_of(with_val)["model"]))
    running = tmp_path / "running"
    train(running, data, None, tiny_recipe(steps=2))
    ours, theirs = state_of(running)["model"], state_of(without)["model"]
    differing = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differing
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in differing)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "averaged"), [("batch", True), ("sync", False)])
def test_statistics_of_each_process_are_averaged_before_they_are_saved(
    data: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: Any, averaged: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Processes, "average_", lambda processes, tensors: calls.append(len(tensors)))
    train(tmp_path / "run", data, None, tiny_recipe(tiny(norm=norm), steps=1))
    statistics = sum("running_" in name for name in state_of(tmp_path / "run")["model"])
    assert (statistics in calls) == averaged


# -- from pre-trained weights


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training's checkpoint."""
    levels = (Level(name="P4", window=24, step=16), Level(name="P3", window=16, step=12))
    model = ModelConfig(backbone="resnet18", levels=levels, fpn_width=24, dim=8, queue_size=16, group_size=4)
    recipe = dataclasses.replace(Recipe(), model=model)
    path = tmp_path_factory.mktemp("pretrained") / "last.pt"
    state = {"resim": "test", "recipe": recipe.to_json(), "step": 7, "model": ReSim(model, seed=9).state_dict()}
    save_checkpoint(path, state)
    return path


@pytest.mark.slow
def test_weights_are_loaded_and_told(pretrained: Path, data: DetectionData, tmp_path: Path, capsys: Any) -> None:
    recipe = tiny_recipe(tiny(backbone="auto", fpn_width=0), steps=1)
    out = tmp_path / "run"
    train_detector(recipe, tiny_run(out), data, None, init=pretrained)
    config = json.loads((out / "config.json").read_text())
    assert config["init"] == str(pretrained)
    assert (config["recipe"]["detector"]["backbone"], config["recipe"]["detector"]["fpn_width"]) == ("resnet18", 24)
    assert "backbone.fpn.layer_blocks.1.0.weight" in config["weights"]["loaded"]
    message = capsys.readouterr().out
    assert f"weights from {pretrained}, resim checkpoint (resim-fpn, resnet18, step 7): " in message
    assert "  FPN: biases folded into BatchNorm's beta (features in evaluation are equal)" in message
    assert "  left over: head.0 (2), head.2 (2)" in message
    assert "no --val: it is not evaluated" in message


@pytest.mark.slow
def test_the_licence_of_the_weights_goes_with_what_is_made_of_them(
    pretrained: Path, data: DetectionData, tmp_path: Path
) -> None:
    state = load_checkpoint(pretrained)
    foreign = tmp_path / "foreign.pt"
    origin = {"licence": "CC-BY-NC-4.0", "origin": "someone"}
    save_checkpoint(foreign, state | {"imported": origin})
    out = tmp_path / "run"
    recipe = tiny_recipe(tiny(backbone="auto", fpn_width=0), steps=2)
    train(out, data, None, recipe, init=str(foreign), stop_after=1)
    train(out, data, None, recipe, init=str(foreign), resume=True)
    weights = read_weights(out)
    assert (weights.licence, weights.origin) == ("CC-BY-NC-4.0", "someone")


@pytest.mark.slow
def test_stopped_before_the_first_checkpoint_it_begins_with_its_weights_again(
    pretrained: Path, data: DetectionData, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny(fpn_width=24), steps=1)
    out, again = tmp_path / "run", tmp_path / "again"
    train(out, data, None, recipe, init=pretrained)
    train(again, data, None, recipe, init=pretrained)
    (again / "checkpoints" / "last.pt").unlink()
    train(again, data, None, recipe, init=pretrained, resume=True)
    assert same(dict(state_of(again)["model"]), dict(state_of(out)["model"]))


@pytest.mark.slow
def test_a_run_does_not_go_on_with_weights_that_have_changed(
    pretrained: Path, data: DetectionData, tmp_path: Path
) -> None:
    own, out = tmp_path / "own.pt", tmp_path / "run"
    state = load_checkpoint(pretrained)
    save_checkpoint(own, state)
    recipe = tiny_recipe(tiny(backbone="auto", fpn_width=0), steps=2)
    train(out, data, None, recipe, init=str(own), stop_after=1)
    save_checkpoint(own, state | {"model": {name: value + 1 for name, value in state["model"].items()}})
    with pytest.raises(UserError, match=r"own.pt: holds other weights than when the run began: name another --out"):
        train(out, data, None, recipe, init=str(own), resume=True)
    assert state_of(out)["step"] == 1


@pytest.mark.slow
def test_a_run_goes_on_without_the_file_it_began_with(pretrained: Path, data: DetectionData, tmp_path: Path) -> None:
    copy = tmp_path / "weights.pt"
    copy.write_bytes(pretrained.read_bytes())
    recipe = tiny_recipe(tiny(fpn_width=24), steps=2)
    out = tmp_path / "run"
    train(out, data, None, recipe, init=copy, stop_after=1)
    copy.unlink()
    assert train(out, data, None, recipe, init=copy, resume=True).finished


# -- kinds of detectors and data


def trains(out: Path, data: DetectionData, recipe: DetectRecipe) -> dict[str, Any]:
    """One step, evaluated on the same images; the scores."""
    result = train(out, data, data, recipe)
    assert result.finished
    model = load_detector(out)
    assert model.classes == data.classes
    return result.scores


@pytest.mark.slow
def test_cityscapes_with_masks(tmp_path: Path) -> None:
    names = ("ulm_000000_000019", "ulm_000001_000019")
    scene = polygons(
        [("car", corners(10, 20, 49, 59)), ("person", corners(60, 5, 89, 70)), ("cargroup", corners(0, 0, 9, 9))]
    )
    root = write_cityscapes(tmp_path / "city", dict.fromkeys(names, scene), split="train")
    for name in names:
        noise(root / "leftImg8bit" / "train" / "ulm" / f"{name}_leftImg8bit.png", seed=1)
    scores = trains(tmp_path / "run", read_cityscapes(root, "train"), tiny_recipe(tiny(masks=True), steps=1))
    assert {"bbox", "segm"} <= set(scores)


@pytest.mark.slow
def test_voc_on_c4(tmp_path: Path) -> None:
    objects = {n: [xml_object("dog", (5, 5, 60, 60)), xml_object("cat", (30, 30, 90, 70), 1)] for n in ("a", "b")}
    root = write_voc(tmp_path / "voc", "2007", {"trainval": ["a", "b"]}, objects)
    scores = trains(tmp_path / "run", read_voc(root, "2007 trainval"), tiny_recipe(tiny(neck="c4"), steps=1))
    assert set(scores) == {"bbox"}
    assert {"AP", "AP50", "AP75"} <= set(scores["bbox"])


@pytest.mark.slow
def test_keypoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_coco(write_people(tmp_path / "people"))
    recipe = tiny_recipe(tiny(keypoints=True), steps=1)
    train_detector(recipe, tiny_run(tmp_path / "run"), data, data)
    assert set(read_scores(tmp_path / "run")[-1]["scores"]) == {"bbox"}
    assert "keypoints are not scored: COCO's tolerances are of 17 keypoints, these are 3" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(len(result["keypoints"]) == 9 for result in results)
    state = state_of(tmp_path / "run")
    assert state["model"]["roi_heads.keypoint_predictor.kps_score_lowres.weight"].shape[1] == 3


@pytest.mark.slow
@pytest.mark.parametrize("detector", [tiny(masks=True), tiny(masks=True, neck="c4")], ids=["fpn", "c4"])
def test_images_without_objects_can_be_learnt_from(tmp_path: Path, detector: Any) -> None:
    data = things(tmp_path / "data", num_images=3)
    empty = [dataclasses.replace(data.records[0], **{
        name: getattr(data.records[0], name)[:0]
        for name in ("boxes", "labels", "masks", "crowd", "difficult", "annotation_ids", "areas")
    })] * 2  # fmt: skip
    data = dataclasses.replace(data, records=(*empty, data.records[1]))
    recipe = tiny_recipe(detector, tiny_images(empty=True), steps=3)
    train(tmp_path / "run", data, None, recipe)
    assert all(torch.isfinite(v).all() for v in state_of(tmp_path / "run")["model"].values())
    calls: list[DetectionData] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "fingerprint", lambda data: calls.append(data) or "")
        train(tmp_path / "other", data, None, dataclasses.replace(recipe, images=tiny_images()))
    assert len(calls[0]) == 1  # without --empty they are left out


@pytest.mark.slow
def test_faults_of_both_data_sets_are_listed(
    data: DetectionData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_things(tmp_path / "val", 3)
    next((tmp_path / "val" / "images").iterdir()).unlink()
    train_detector(tiny_recipe(steps=1), tiny_run(tmp_path / "run"), data, read_coco(path))
    message = " ".join(capsys.readouterr().out.split())
    line = f"1 image file not found, skipped with 2 annotations: {path}"
    assert f"in {path}, the validation data: {line}" in message


def test_a_share_of_the_images(data: DetectionData, tmp_path: Path) -> None:
    train(tmp_path / "run", data, None, tiny_recipe(steps=1, fraction=0.4, seed=3))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["images"] == 2


# -- what is refused


@pytest.mark.slow
def test_a_run_goes_on_only_as_what_it_is(
    whole: Path, data: DetectionData, val: DetectionData, pretrained: Path
) -> None:
    before = state_of(whole)
    other = dataclasses.replace(RECIPE, tune=dataclasses.replace(RECIPE.tune, lr=0.5))
    fewer = dataclasses.replace(data, records=data.records[:3])
    run = tiny_run(whole, resume=True)
    for call, message in (
        (
            lambda: train_detector(other, run, data, val),
            "--resume with another recipe than the run's: --lr 0.01 -> 0.5",
        ),
        (lambda: train_detector(RECIPE, run, fewer, val), "--resume with other data: the run began with"),
        (lambda: train_detector(RECIPE, run, data, None), "--resume with --val left out: the run is evaluated on"),
        (lambda: train_detector(RECIPE, run, data, fewer), "--resume with --val .*: the run is evaluated on"),
        (
            lambda: train_detector(RECIPE, run, data, val, init=pretrained),
            "--resume with --init .*: the run began with r",
        ),
        (lambda: train_detector(RECIPE, tiny_run(whole), data, val), "already contains a run"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert same(state_of(whole), before)


def test_what_cannot_work_leaves_nothing(data: DetectionData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    boxes = dataclasses.replace(data, records=tuple(dataclasses.replace(r, masks=None) for r in data.records))
    others = dataclasses.replace(data, classes=("cat", "horse"))
    none = dataclasses.replace(data, records=())
    for recipe, train_on, val, more, message in (
        (tiny_recipe(tiny(masks=True)), boxes, None, {}, "has no masks: leave --masks out"),
        (tiny_recipe(tiny(keypoints=True)), data, None, {}, "has no keypoints: leave --keypoints out"),
        (RECIPE, data, others, {}, "has classes that .* lacks: horse"),
        (RECIPE, none, None, {}, "none of its 0 images has an object to learn from"),
        (RECIPE, data, None, {"init": tmp_path / "gone.pt"}, "gone.pt"),
        (RECIPE, data, None, {"resume": True}, "--resume: .* contains no run"),
    ):
        with pytest.raises(UserError, match=message) as error:
            train(out, train_on, val, recipe, **more)
        assert "\n" not in str(error.value)
        assert not out.exists()


def test_a_loss_that_is_not_finite_stops_the_run(data: DetectionData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(the loss is (nan|inf)|overflow) at step \d+ .*lower --lr"):
        train(tmp_path / "run", data, None, tiny_recipe(lr=1e20, steps=4))


def test_photographs_that_all_go_missing_are_named(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=2)
    for record in data.records:
        Path(record.image).unlink()
    with pytest.raises(UserError, match=r"\d.png: cannot be decoded \(FileNotFoundError.* 20 images in a row"):
        train(tmp_path / "run", data, None, tiny_recipe(steps=2))


@pytest.mark.slow
def test_a_seed_decides_all(data: DetectionData, tmp_path: Path) -> None:
    runs = {name: tiny_recipe(steps=1, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))}
    for name, recipe in runs.items():
        torch.manual_seed(ord(name))
        train(tmp_path / name, data, None, recipe)
    a, b, c = (state_of(tmp_path / name) for name in runs)
    assert same(a, b)
    assert not same(a["model"], c["model"])
