"""Label maps in the commands: `resim probe` with segmentation and retrieval, the online reading, the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resim.cli.main import main
from resim.draw.segmentation_sheet import Column, Comparison, class_colour, segmentation_sheet
from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.probes.dense import dense_maps
from resim.probes.features import Network
from resim.probes.labels import read_images
from resim.probes.online import OnlineProbe
from resim.recipes import quick
from resim.regions.level import Level
from resim.runs.config import OptimConfig, RunConfig, read_run_settings
from resim.runs.log import read_metrics
from resim.training.pretrain import pretrain

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a bright square, class 1, or a dark one, class 2; six for training, four for testing."""
    home = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 4)):
        for i in range(count):
            pixels = rng.integers(90, 150, (64, 80, 3), dtype=np.uint8)
            labels = np.zeros((64, 80), dtype=np.uint8)
            labels[16:48, 20:60] = 1 + i % 2
            pixels[labels == 1], pixels[labels == 2] = 250, 5
            for name, values in (("images", pixels), ("segmentation", labels)):
                (home / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(home / part / name / f"{part}{i}.png")
    return home


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The probe.json of two networks, and its folder."""
    out = tmp_path_factory.mktemp("measured") / "probe.json"
    argv = ["random:quick", "random", str(folder), "--image-size", "64"]
    argv += ["--probes", "segmentation", "retrieval", "--retrieval-shares", "0.5", "1", "--device", "cpu"]
    assert main(["probe", *argv, "--out", str(out), "--dense-levels", "C3", "P4"]) == 0
    return json.loads(out.read_text()), out.parent


@pytest.mark.slow
def test_all_scores_are_written(measured: tuple[dict[str, Any], Path]) -> None:
    content, _ = measured
    first, second = content["networks"]
    assert list(first["scores"]) == ["segmentation", "retrieval"]
    assert list(first["scores"]["segmentation"]) == ["C3", "P4", "all"]
    assert list(first["scores"]["retrieval"]) == ["50%", "100%"]
    assert list(first["scores"]["retrieval"]["50%"]) == ["C3", "P4"]
    for score in first["scores"]["segmentation"].values():
        assert (score["n"], score["n_train"], score["pixels"]) == (4, 6, 4 * 64 * 64)
        assert score["miou_interval"][0] <= score["miou"] <= score["miou_interval"][1]
        assert score["constant"] == pytest.approx(0.75 / 3, abs=0.01)
        assert score["converged"]
    assert first["scores"]["segmentation"]["C3"]["miou"] > 0.5  # bright and dark are easy to separate
    assert first["scores"]["retrieval"]["50%"]["C3"]["n_train"] == 3
    assert content["label_maps"]["classes"] == ["0", "1", "2"]
    assert content["reference"] == "random:quick"
    minus = second["minus"][first["name"]]
    assert "segmentation/C3" in minus
    assert "retrieval/100%/P4" in minus
    assert len(content["verdicts"]) == 3
    assert content["settings"]["dense"]["dense_levels"] == ["C3", "P4"]


@pytest.mark.slow
def test_the_sheet_has_a_column_for_each_network(measured: tuple[dict[str, Any], Path]) -> None:
    with Image.open(measured[1] / "probe_segmentation.png") as picture:
        assert picture.width > 4 * 220
        assert picture.height > 2 * 4 * 220  # both probes, four images


def test_a_report_shows_tables_verdicts_and_the_sheet(measured: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    assert main(["report", str(measured[1]), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    for text in ("Segmentation: mIoU", "Segmentation: foreground IoU", "retrieval, 50%", "Linear segmentation, mIoU: "):
        assert text in page
    assert "segmentation with frozen features" in page


def test_the_output_of_the_command(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    argv = ["random:quick", str(folder / "train" / "images"), "--labels", str(folder / "train" / "segmentation")]
    argv += ["--probes", "segmentation", "knn", "--dense-levels", "C4", "--image-size", "64", "--device", "cpu"]
    assert main(["probe", *argv, "--out", str(tmp_path / "p.json"), "--background", "-1"]) == 0
    out = capsys.readouterr().out
    assert "the images have no classes: kNN and linear probes are left out" in out
    assert "label maps of 64 px: 5 training images" in out
    assert "3 classes, no background" in out
    assert "Segmentation: % [95 % bootstrap interval" in out
    where, *verdict = out.rstrip().splitlines()[-4:]
    assert where == f"wrote {tmp_path / 'p_segmentation.png'}"
    assert verdict[0].startswith(
        "1. Better than untrained (random:quick)? not measured: the networks are all untrained"
    )


@pytest.mark.slow
def test_options_that_cannot_work_are_one_line(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    data, dense = str(folder), ["--probes", "segmentation"]
    for argv, reason in (
        ([data, "--labels", data], "--labels: is for --probes segmentation retrieval"),
        ([str(tmp_path / "a.json")], "a COCO file holds label maps"),
        ([data, *dense, "--dense-levels", "P7"], "--dense-levels P7: random:quick has the levels C3, C4, C5, P3, P4"),
        (
            [data, *dense, "--dense-memory", "0.0001"],
            "take 0.0 GiB, --dense-memory is 0.0001: raise it, or reduce --images",
        ),
        ([data, *dense, "--dense-cells", "0"], "dense-cells 0: must be at least 1"),
        ([data, "--probes", "retrieval", "--retrieval-shares", "2"], "retrieval-shares 2.0: each must be at most 1"),
        ([data, "--probes", "retrieval", "--retrieval-temperature", "0"], "retrieval-temperature 0.0: must be above 0"),
        ([data, *dense, "--classes", "cat"], "--classes cat: "),
        ([data, *dense, "--test-labels", data], "name the images of these labels with --test"),
        ([str(tmp_path), *dense], "no label maps: name a COCO .json"),
    ):
        capsys.readouterr()
        assert main(["probe", "random:quick", *argv, "--out", str(tmp_path / "p.json"), "--image-size", "64"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert reason in line
    assert not (tmp_path / "p.json").exists()


def test_maps_are_kept_in_half_precision_unless_their_values_do_not_fit(folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(ModelConfig(backbone="resnet18", levels=())).eval()
    images = read_images(folder / "val" / "images", labelled=False)
    half = dense_maps(Network(name="", encoder=encoder), images, size=64)
    assert {level: tuple(values.shape[1:]) for level, values in half.maps.items()} == {
        "C3": (128, 8, 8), "C4": (256, 4, 4), "C5": (512, 2, 2),
    }  # fmt: skip
    assert all(values.dtype == torch.float16 for values in half.maps.values())
    with torch.no_grad():
        for name, parameter in encoder.backbone.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.mul_(50)
    wide = dense_maps(Network(name="", encoder=encoder), images, size=64)
    assert wide.maps["C5"].dtype == torch.float32
    assert wide.maps["C5"].isfinite().all()


# -- during pre-training

RECIPE = dataclasses.replace(
    quick(),
    model=ModelConfig(
        backbone="resnet18", levels=(Level(name="P4", window=32, step=16),), fpn_width=16, dim=16, queue_size=16,
        group_size=4,
    ),
    views=dataclasses.replace(quick().views, image_size=64),
    optim=OptimConfig(epochs=1, batch_size=4, lr=0.01),
)  # fmt: skip


def run_of(folder: Path, out: Path, **settings: Any) -> Path:
    run = RunConfig(out=out, device="cpu", precision="float32", workers=0, picture_every=0, **settings)
    pretrain(RECIPE, run, folder / "train" / "images", show=False, probe=OnlineProbe)
    return out


@pytest.mark.slow
def test_linear_segmentation_during_training_does_not_change_the_training(folder: Path, tmp_path: Path) -> None:
    plain = run_of(folder, tmp_path / "plain")
    probed = run_of(folder, tmp_path / "probed", probe_every=1, probe_data=folder)
    losses = [[line["loss/total"] for line in read_metrics(out / "metrics.jsonl")] for out in (plain, probed)]
    assert losses[0] == losses[1]
    first, second = (torch.load(out / "checkpoints" / "last.pt", weights_only=True)["model"] for out in (plain, probed))
    assert all(value.equal(second[name]) for name, value in first.items())
    lines = [json.loads(line) for line in (probed / "probes.jsonl").read_text().splitlines()]
    readings = [line for line in lines if "segmentation/P4" in line]
    assert [line["step"] for line in readings] == [0, 1]
    for line in readings:
        assert {f"segmentation/{level}" for level in ("C3", "C4", "C5", "P4")} <= set(line)
        assert 0 <= line["foreground_iou/P4"] <= 1
    assert read_run_settings(probed / "config.json").probe_data == folder


def test_labels_of_probe_data_can_be_named(folder: Path) -> None:
    labels = folder / "train" / "segmentation"
    run = RunConfig(probe_every=1, probe_data=folder / "train" / "images", probe_labels=labels)
    probe = OnlineProbe(RECIPE, run, "float32", [], 1)
    assert probe.labelled is not None
    assert [len(part) for part in probe.labelled] == [5, 1]
    with pytest.raises(UserError, match="name its images with --probe-data"):
        OnlineProbe(RECIPE, RunConfig(probe_every=1, probe_labels=labels), "float32", ["a.png"], 1)


# -- the sheet


def test_classes_have_colours_and_the_background_has_none() -> None:
    pixels = np.full((8, 8, 3), 200, dtype=np.uint8)
    truth = np.zeros((8, 8), dtype=np.int16)
    truth[:, 4:] = 1
    truth[0] = -1
    columns = [Column(name="mine", note="mIoU 50.0 %", maps=[truth.clip(0)])]
    sheet = segmentation_sheet(
        [pixels],
        [truth],
        ["a.png"],
        [Comparison(title="Linear", columns=columns)],
        classes=("ground", "cat"),
        background=0,
    )
    colours = {colour for _, colour in sheet.getcolors(2**20) or ()}
    cat = tuple(round(0.38 * 200 + 0.62 * channel) for channel in class_colour(1, 0))
    assert {(200, 200, 200), cat} <= colours
    assert class_colour(0, None) == class_colour(1, 0)
    assert class_colour(1, None) == class_colour(2, 0)
