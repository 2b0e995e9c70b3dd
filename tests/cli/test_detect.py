"""`resim detect`: what it does when all is well, and one line for whatever cannot work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from detection_data import write_cityscapes, write_voc, xml_object
from resim.cli.main import main
from resim.detection.config import DetectRecipe
from resim.detection.recipes import DETECT_RECIPES
from tiny_detectors import noise, tiny_images, write_people, write_things

Captured = pytest.CaptureFixture[str]
TINY = [
    "--backbone", "resnet18", "--fpn-width", "16", "--rpn-regions", "16", "--box-regions", "16",
    "--proposals-train", "30", "--proposals-test", "20", "--min-sizes", "64", "--max-size", "128", "--test-size", "64",
    "--steps", "2", "--batch-size", "2", "--drops", "1", "--precise-bn", "0",
    "--device", "cpu", "--precision", "float32", "--workers", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO's layout with two splits."""
    folder = tmp_path_factory.mktemp("coco")
    for split, count in (("train2017", 4), ("val2017", 2)):
        path = write_things(folder / split, count)
        (folder / "annotations").mkdir(exist_ok=True)
        shutil.move(path, folder / "annotations" / f"instances_{split}.json")
        for image in (folder / split / "images").iterdir():
            shutil.move(image, folder / split / image.name)
        (folder / split / "images").rmdir()
    return folder


@pytest.fixture(scope="module")
def finished(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["detect", "train", str(coco), "--split", "train2017", "--val", "val2017", *TINY, "--out", str(out)]
    assert main(words) == 0
    return out


def refusal(capsys: Captured, *words: str | Path) -> str:
    """The one line on the error output; the exit code is 2."""
    capsys.readouterr()
    assert main(["detect", *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("resim detect: ")
    assert message.endswith("\n")
    assert message.count("\n") == 1
    return message.removeprefix("resim detect: ").rstrip("\n")


def train(coco: Path, *words: str | Path) -> tuple[str | Path, ...]:
    return ("train", coco, "--split", "train2017", *TINY, *words)


# -- what it does


def test_verbs_are_listed(capsys: Captured) -> None:
    assert main(["detect", "--help"]) == 0
    message = capsys.readouterr().out
    assert all(f"\n  {verb} " in message for verb in ("train", "eval", "predict", "recipes"))


@pytest.mark.parametrize("verb", ["train", "eval", "predict", "recipes"])
def test_help_explains_the_options(capsys: Captured, verb: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["detect", verb, "--help"])
    assert not stop.value.code
    assert f"usage: resim detect {verb}" in capsys.readouterr().out


def test_protocols_are_listed_and_printed_whole(capsys: Captured) -> None:
    assert main(["detect", "recipes"]) == 0
    message = capsys.readouterr().out
    assert all(name in message for name in DETECT_RECIPES)
    assert main(["detect", "recipes", "voc-c4-24k"]) == 0
    assert DetectRecipe.from_json(json.loads(capsys.readouterr().out)) == DETECT_RECIPES["voc-c4-24k"]()


@pytest.mark.slow
def test_a_run_ends_with_scores_and_where_they_are(finished: Path, coco: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["recipe"]["name"] == "quick"
    assert config["data"]["val"] == str(coco / "annotations" / "instances_val2017.json")
    assert config["recipe"]["images"]["min_sizes"] == list(tiny_images(min_sizes=(64,)).min_sizes)
    assert len((finished / "scores.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_settings(finished: Path, coco: Path, tmp_path: Path, capsys: Captured) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    words = ["detect", "train", str(coco), "--split", "train2017", "--val", "val2017", "--out", str(out), "--resume"]
    assert main(words) == 0
    assert "done: " in capsys.readouterr().out
    assert len((out / "resumed.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_folder_of_images_with_the_name_of_a_split_is_not_taken_for_data(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(coco)  # ./val2017 holds the images
    words = ["detect", "train", ".", "--split", "train2017", "--val", "val2017", *TINY, "--stop-after", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["val"] == "annotations/instances_val2017.json"


@pytest.mark.slow
def test_evaluation_of_a_run_and_of_its_results_are_the_same(
    finished: Path, coco: Path, tmp_path: Path, capsys: Captured
) -> None:
    capsys.readouterr()
    message = []
    for model in (finished, finished / "checkpoints" / "last.pt", finished / "results.json"):
        out = tmp_path / model.name
        words = ["detect", "eval", str(model), str(coco), "--split", "val2017", "--device", "cpu", "--workers", "0"]
        assert main([*words, "--out", str(out)]) == 0
        *before, line, where = capsys.readouterr().out.splitlines()
        assert [text.partition(" ")[2] for text in before] == ["detections in 2 of 2 images"] * (
            model.suffix == ".json"
        )
        assert where == str(out)
        assert (out / "scores.jsonl").exists()
        message.append(line)
    assert message[0].startswith("bbox      AP ")
    assert len(set(message)) == 1
    ours, theirs = (json.loads((f / "scores.jsonl").read_text()) for f in (finished, tmp_path / finished.name))
    assert ours == theirs


@pytest.mark.slow
def test_detections_are_drawn_and_written(finished: Path, coco: Path, tmp_path: Path, capsys: Captured) -> None:
    capsys.readouterr()
    out = tmp_path / "out"
    words = ["detect", "predict", str(coco / "val2017"), "--model", str(finished), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--threshold", "0.05"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "results.json")
    assert sorted(path.name for path in out.iterdir()) == ["1.jpg", "2.jpg", "classes.json", "results.json"]


# -- input that cannot work


def test_verbs_that_are_none(capsys: Captured) -> None:
    assert refusal(capsys) == "one of train, eval, predict, recipes is needed, none is given"
    assert refusal(capsys, "tune") == "one of train, eval, predict, recipes is needed, not 'tune'"


@pytest.mark.slow
def test_data_that_cannot_be_read(capsys: Captured, coco: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.txt").write_text("")
    (tmp_path / "data.json").write_text("{")
    instances = "annotations/instances_train2017.json"
    for path, more, message in (
        (tmp_path / "none", (), "none: no such file or folder"),
        (tmp_path / "empty", (), "empty: no detection data set: name a folder of COCO (instances_SPLIT.json"),
        (tmp_path / "data.txt", (), "data.txt: not a .json file"),
        (tmp_path / "data.json", (), "data.json"),
        (
            coco,
            (),
            "2 JSON files: choose one of instances_train2017.json, instances_val2017.json: type resim detect train",
        ),
        (coco, ("--split", "train2014"), "no split 'train2014'; choose one of instances_train2017.json"),
        (coco / instances, ("--images-in", tmp_path / "empty"), "images"),
        (coco / instances, ("--split", "val2017"), "a single file has no split 'val2017': leave --split out"),
        (coco, ("--split", "train2017", "--classes", "dog"), "--classes applies only to VOC and YOLO data sets"),
    ):
        assert message in refusal(capsys, "train", path, *more, *TINY, "--out", tmp_path / "run")
        if "--classes" not in more:
            assert message in refusal(capsys, "eval", finished, path, *more)
    for val, message in (
        ("val2014", "no split 'val2014'; choose one of instances_train2017.json"),
        (str(tmp_path / "none"), "none: no such file or folder"),
        (str(tmp_path / "empty"), "empty: no detection data set"),
    ):
        assert message in refusal(capsys, *train(coco, "--val", val, "--out", tmp_path / "run"))
    # a file to evaluate on that is not there must not become what is trained on
    message = refusal(capsys, "train", coco / instances, "--val", "gone.json", *TINY, "--out", tmp_path / "run")
    assert "a single file has no split 'gone.json'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "voc"], "no protocol 'voc': one of coco-fpn-1x, "),
        (["--recipe", "mine.json"], "mine.json: cannot be read (No such file or directory)"),
        (["--backbone", "resnet51"], "no backbone 'resnet51': one of "),
        (["--backbone", "timm/resnet18"], "backbone 'timm/resnet18': a detector needs a torchvision ResNet"),
        (["--init", "gone.pt"], "gone.pt"),
        (["--learning-rate", "1"], "--learning-rate"),
        (["--masks", "--keypoints"], "masks and keypoints: one detector has one of them"),
        (["--keypoints"], "has no keypoints: leave --keypoints out"),
        (["--neck", "c4", "--keypoints"], "keypoints need --neck fpn"),
        (["--neck", "c5"], "--neck"),
        (["--min-sizes", "1000"], "size 1000 px: must be from 32 to --max-size 128"),
        (["--min-sizes"], "min-sizes: at least one is needed (resim detect train --help explains the options)"),
        (["--drops", "5", "3"], "drops 5 3: each must be above the one before it"),
        (["--steps", "0"], "steps 0: must be at least 1"),
        (["--batch-size", "two"], "Error parsing --batch-size: invalid literal for int() with base 10: 'two' (resim"),
        (["--momentum", "1"], "momentum 1.0: must be below 1"),
        (["--score-threshold", "5"], "score-threshold 5.0: must be below 1"),
        (["--val-split", "val2017"], "--val-split val2017: goes with a --val that is the path of another data set"),
        (["--fraction", "2"], "fraction 2.0: must be at most 1"),
        (["--workers", "999"], "workers 999: must be at most 512"),
        (["--device", "tpu"], "--device"),
        (["--anchor-sizes", "32"], "anchor-sizes: an FPN needs five, one a level, not 1"),
        (["--resume"], "contains no run (no config.json); leave --resume out to start one there"),
    ],
)
def test_settings_that_cannot_work(
    capsys: Captured, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *train(coco, *words, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_to_resume_needs_the_folder(capsys: Captured, coco: Path) -> None:
    assert refusal(capsys, *train(coco, "--resume")) == "--resume needs --out: the folder of the run to continue"


@pytest.mark.slow
def test_a_run_is_not_begun_twice_nor_resumed_as_another(capsys: Captured, coco: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    data = (coco, "--split", "train2017", "--val", "val2017", "--out", finished)
    for words, message in (
        ((*data, *TINY), "already contains a run: continue it with --resume, or name another folder"),
        ((*data, "--resume", "--lr", "0.5"), "--resume with another recipe than the run's: --lr 0.02 -> 0.5"),
        (
            (*data, "--resume", "--recipe", "quick"),
            "--resume with another recipe than the run's: --backbone resnet18 ->",
        ),
        ((coco, "--split", "val2017", "--val", "val2017", "--out", finished, "--resume"), "--resume with other data:"),
        ((coco, "--split", "train2017", "--out", finished, "--resume"), "--resume with --val left out: the run is ev"),
        ((*data, "--resume", "--init", coco / "w.pt"), "--resume with --init"),
    ):
        assert message in refusal(capsys, "train", *words), message
    assert {path: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_recipe_of_another_kind(capsys: Captured, coco: Path, tmp_path: Path) -> None:
    from resim.recipes import quick

    path = tmp_path / "config.json"
    path.write_text(json.dumps({"recipe": quick().to_json()}))
    assert f"{path}: contains no recipe (not a detection recipe" in refusal(capsys, *train(coco, "--recipe", path))
    assert "config.json: contains no recipe" in refusal(capsys, "train", coco, "--out", tmp_path, "--resume")


@pytest.mark.slow
def test_voc(capsys: Captured, tmp_path: Path) -> None:
    objects = {n: [xml_object("dog", (5, 5, 60, 60)), xml_object("fox", (30, 30, 90, 70))] for n in ("a", "b")}
    root = write_voc(tmp_path / "VOCdevkit", "2007", {"trainval": ["a", "b"], "test": ["b"]}, objects)
    out = ("--out", tmp_path / "run", *TINY)
    assert "fox" in refusal(capsys, "train", root, "--strict", *out)
    assert "has no masks: leave --masks out" in refusal(capsys, "train", root, "--masks", *out)
    assert "2012" in refusal(capsys, "train", root, "--split", "2007 trainval+2012 trainval", *out)
    assert "applies only to COCO files" in refusal(capsys, "train", root, "--images-in", tmp_path, *out)
    assert not (tmp_path / "run").exists()
    words = ["train", str(root), "--split", "2007 trainval", "--val", "2007 test", "--classes", "dog", "fox"]
    assert main(["detect", *words, *map(str, out)]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"] == ["dog", "fox"]
    line = refusal(capsys, "eval", tmp_path / "run", root, "--split", "2007 test")
    assert "was read under classes that" in line
    assert line.endswith("name its own: --classes dog fox")


def test_masks_and_keypoints_need_data_that_has_them(capsys: Captured, coco: Path, tmp_path: Path) -> None:
    path = write_people(tmp_path / "people")
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation")
    path.write_text(json.dumps(content))
    line = refusal(capsys, "train", path, *TINY, "--masks", "--out", tmp_path / "run")
    assert line == f"{path}: has no masks: leave --masks out"


def test_cityscapes_splits(capsys: Captured, tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "city", {}, split="val")
    (root / "gtFine").mkdir(parents=True)
    assert "train" in refusal(capsys, "train", root, *TINY, "--out", tmp_path / "run")


def test_evaluations_that_cannot_work(capsys: Captured, coco: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"a": 1}')
    (tmp_path / "other.json").write_text('[{"image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1}]')
    (tmp_path / "damaged.pt").write_bytes(b"none")
    val = (coco, "--split", "val2017")
    for words, message in (
        ((tmp_path / "none", *val), "none: cannot be read"),
        ((tmp_path / "none.json", *val), "none.json: cannot be read"),
        ((tmp_path / "list.json", *val), "list.json: not COCO results"),
        ((tmp_path / "other.json", *val), "other.json: the image_id of 1 of 1 detections is not in"),
        ((tmp_path / "damaged.pt", *val), "damaged.pt: damaged, or no checkpoint (4 bytes"),
        ((finished, *val, "--out", finished), "holds a run, whose own scores would be replaced"),
        ((finished, *val, "--eval-images", "0"), "--eval-images 0: must be at least 1"),
        ((finished, *val, "--workers", "-1"), "--workers -1: must be at least 0"),
        ((finished,), "Missing from resim detect eval"),
        ((finished, *val, "--device", "cuda"), "--device cuda: no GPU is available"),
    ):
        if "cuda" in words and torch.cuda.is_available():
            continue
        assert message in refusal(capsys, "eval", *words), message


@pytest.mark.slow
def test_predictions_that_cannot_work(capsys: Captured, coco: Path, finished: Path, tmp_path: Path) -> None:
    images = coco / "val2017"
    (tmp_path / "empty").mkdir()
    noise(tmp_path / "one.png", seed=0)
    for words, message in (
        ((images, "--model", tmp_path / "none"), "none: cannot be read"),
        ((tmp_path / "empty", "--model", finished), "no images found in"),
        ((tmp_path / "none", "--model", finished), "none: there is no such folder or file"),
        (("--model", finished), "no images: name at least one folder"),
        ((images,), "--model"),
        ((images, "--model", finished, "--threshold", "2"), "--threshold 2.0: must be in [0, 1]"),
        ((images, "--model", finished, "--out", tmp_path / "one.png"), "one.png: cannot be written to"),
        ((images, "--model", finished, "--out", finished), "holds a run, whose own results would be replaced"),
    ):
        assert message in refusal(capsys, "predict", *words), message
    before = {path: path.read_bytes() for path in images.iterdir()}
    assert "which is to be read: name another folder" in refusal(
        capsys, "predict", images, "--model", finished, "--out", images
    )
    assert {path: path.read_bytes() for path in images.iterdir()} == before
