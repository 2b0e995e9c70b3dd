"""Runs of frozen detectors: what is printed, stopping and resuming, comparisons and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detection.frozen import (
    BACKBONE,
    C4_AND_RES5,
    WIDTH,
    WITH_FPN,
    data,
    files,
    is_frozen,
)
from equal import same
from resim.datasets.records import DetectionData
from resim.detection.checkpoint import load_detector
from resim.detection.compare import Start, compare
from resim.detection.comparison_table import print_comparison
from resim.detection.config import DetectorConfig, DetectRecipe
from resim.detection.detector import build_detector
from resim.detection.fpn_parts import RESIM_FPN
from resim.detection.freeze import freeze_lines, freeze_parts, freeze_words
from resim.detection.init import load_init, resolve
from resim.detection.recipes import DETECT_RECIPES
from resim.detection.train import train_detector
from resim.errors import UserError
from resim.exchange.weights import Weights, read_weights
from resim.report.detection_section import detection
from resim.report.page import Table
from resim.report.run_files import read_runs
from resim.runs.checkpoints import load_checkpoint
from tiny_detectors import tiny, tiny_images, tiny_recipe, tiny_run

__all__ = ["data", "files"]


# -- what is printed


def lines_of(config: DetectorConfig, weights: Weights | None) -> list[str]:
    config = resolve(config, weights)
    model = build_detector(config, tiny_images(), num_classes=2, seed=1)
    report = load_init(model, config, weights)
    freeze_parts(model, config)
    return freeze_lines(model, config, report)


STAGES = "stem, layer1, layer2, layer3, layer4"
HEADS = "RPN, box head, box predictor"


@pytest.mark.slow
def test_frozen_trained_and_new_parts_are_printed(files: dict[str, Path]) -> None:
    weights = read_weights(files["both"])
    frozen, trained = lines_of(tiny(freeze="backbone+fpn"), weights)
    fpn = "FPN (lateral3, lateral4, lateral5, output3, output4)"
    # the thin ResNet-18 less its classifier: 3 x 3 convolutions in the blocks, of which a stage's first is narrower
    # where it begins, and 1 x 1 shortcuts; two numbers a norm, of which three stages have one more
    stem, layer1 = 3 * 49 * 16, 4 * 9 * 16**2
    others = [(3 + 1 / 2) * 9 * width**2 + width**2 / 2 for width in (32, 64, 128)]
    norms = [2 * (1 + 4) * 16, *(2 * 5 * width for width in (32, 64, 128))]
    body = int(stem + layer1 + sum(others) + sum(norms))
    assert body == 702_096
    # laterals on 32, 64 and 128 channels and two outputs, with two numbers a norm
    count = body + 16 * (32 + 64 + 128) + 2 * 9 * 16 * 16 + 5 * 2 * 16
    assert frozen == (
        f"frozen by --freeze backbone+fpn, computed without gradient: {STAGES}, {fpn} ({count / 1e6:.2f} M parameters)"
    )
    new = "FPN (lateral2, output2, output5)"
    assert trained.startswith(f"trained: {new}, {HEADS} (")
    assert trained.endswith(" M parameters), all of it new")

    frozen, trained = lines_of(tiny(freeze="backbone"), weights)
    assert frozen.endswith(f"{STAGES} (0.70 M parameters)")
    assert trained.endswith(f"; new of these: {new}, {HEADS}")

    frozen, trained = lines_of(tiny(freeze="backbone", neck="c4"), weights)
    assert frozen.endswith("gradient: stem, layer1, layer2, layer3 (0.18 M parameters)")
    assert trained.startswith("trained: RPN, res5, BatchNorm after res5, box predictor (")
    assert trained.endswith("; new of these: RPN, BatchNorm after res5, box predictor")


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["backbone", "backbone+fpn"])
def test_an_untrained_start_is_a_baseline_without_warning(
    data: DetectionData, tmp_path: Path, freeze: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tiny(freeze=freeze, frozen_stages=2), steps=1)
    assert train_detector(recipe, tiny_run(tmp_path / "run"), data, data).finished
    message = capsys.readouterr().out
    assert "warning" not in message
    assert "what is frozen was never trained: this is the baseline of an untrained network" in " ".join(message.split())
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["detector"]
    assert stored["freeze"] == freeze
    assert stored["frozen_fpn"] == (list(RESIM_FPN) if freeze == "backbone+fpn" else [])


@pytest.mark.slow
def test_weights_without_an_fpn_are_frozen_with_a_warning(files: dict[str, Path]) -> None:
    *_, warning = lines_of(tiny(freeze="backbone+fpn"), read_weights(files["none"]))
    assert warning.startswith(f"warning: {files['none']}, ")
    assert "has no FPN (lateral3, lateral4, lateral5, output3, output4), frozen as initialised: " in warning
    assert len(lines_of(tiny(freeze="backbone"), read_weights(files["none"]))) == 2


@pytest.mark.slow
def test_without_freeze_nothing_is_printed(files: dict[str, Path]) -> None:
    assert lines_of(tiny(), read_weights(files["both"])) == []
    assert freeze_words(tiny()) == ""
    assert freeze_words(BACKBONE) == "backbone"
    assert freeze_words(resolve(tiny(freeze="backbone+fpn"), read_weights(files["p4"]))) == (
        "backbone and FPN (lateral4, lateral5, output4)"
    )


# -- runs and comparisons


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["none", "backbone+fpn"])
def test_stopped_and_resumed_is_never_stopped(
    files: dict[str, Path], data: DetectionData, tmp_path: Path, freeze: Any
) -> None:
    copy = tmp_path / "weights.pt"
    copy.write_bytes(files["both"].read_bytes())
    detector = tiny(freeze=freeze, backbone="resnet18", fpn_width=WIDTH)
    recipe = tiny_recipe(detector, steps=2, drops=(1,), optimizer="adamw", lr=0.001, weight_decay=0.05)
    whole, out = tmp_path / "whole", tmp_path / "run"
    train_detector(recipe, tiny_run(whole), data, None, init=copy, show=False)
    train_detector(recipe, tiny_run(out, stop_after=1), data, None, init=copy, show=False)
    resolved = DetectRecipe.from_json(json.loads((out / "config.json").read_text())["recipe"])
    copy.unlink()  # what the weights decided stands in the run's recipe
    assert train_detector(resolved, tiny_run(out, resume=True), data, None, init=copy, show=False).finished
    states = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (out, whole)]
    assert same(*states)
    assert {"exp_avg", "exp_avg_sq", "step"} == set(states[0]["optimizer"]["state"][0])


def test_a_run_does_not_go_on_as_another(data: DetectionData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_detector(tiny_recipe(BACKBONE, steps=2), tiny_run(out, stop_after=1), data, None, show=False)
    for recipe, message in (
        (tiny_recipe(tiny(), steps=2), "another recipe than the run's: --freeze backbone -> none"),
        (tiny_recipe(BACKBONE, steps=2, optimizer="adamw"), "--optimizer sgd -> adamw"),
    ):
        with pytest.raises(UserError, match=message):
            train_detector(recipe, tiny_run(out, resume=True), data, None, show=False)


@pytest.mark.slow
@pytest.mark.parametrize("config", [BACKBONE, WITH_FPN, C4_AND_RES5], ids=["backbone", "backbone+fpn", "c4, res5"])
def test_a_frozen_detector_is_read_as_it_was_saved(data: DetectionData, tmp_path: Path, config: DetectorConfig) -> None:
    train_detector(tiny_recipe(config, steps=1), tiny_run(tmp_path / "run"), data, None, show=False)
    loaded = load_detector(tmp_path / "run")
    assert loaded.recipe.detector == config
    assert same(dict(loaded.model.state_dict()), dict(load_checkpoint(tmp_path / "run/checkpoints/last.pt")["model"]))
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in loaded.model.named_parameters() if not is_frozen(name, config)}


@pytest.mark.slow
def test_a_comparison_freezes_the_same_parts_in_all_runs(
    files: dict[str, Path], data: DetectionData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = [Start(name="random", weights="random"), Start(name="p4", weights=str(files["p4"]))]
    recipe = tiny_recipe(tiny(freeze="backbone+fpn"), steps=1)
    run = tiny_run(tmp_path, eval_every=1)
    comparison = compare(recipe, run, data, data, starts, (0,), tmp_path / "out", replicates=2, show=False)
    assert comparison is not None
    assert comparison.frozen == "backbone and FPN (lateral4, lateral5, output4)"
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["frozen"] == comparison.frozen
    for name in ("random", "p4"):
        config = json.loads((tmp_path / "out" / f"{name}-seed0" / "config.json").read_text())
        assert config["recipe"]["detector"]["frozen_fpn"] == ["lateral4", "lateral5", "output4"]

    capsys.readouterr()
    print_comparison(comparison, data)
    assert f"frozen in all runs: {comparison.frozen}; everything else was trained" in capsys.readouterr().out
    parts = detection(read_runs([tmp_path / "out", tmp_path / "out" / "random-seed0"]))
    tables = [part for part in parts if isinstance(part, Table)]
    assert [table.rows[0][1] for table in tables if table.columns[0] == "run"] == ["random (backbone+fpn frozen)"]
    assert any(f"; frozen: {comparison.frozen}" in table.caption for table in tables)

    starts.append(Start(name="both", weights=str(files["both"])))
    message = r"different parts of an FPN cannot be compared \(lateral3 .*; lateral4 .*\): name them by --frozen-fpn"
    with pytest.raises(UserError, match=message):
        compare(recipe, run, data, data, starts, (0,), tmp_path / "other", show=False)


def test_recipes_of_before_have_nothing_frozen() -> None:
    stored = DETECT_RECIPES["quick"]().to_json()
    for part, field in (("detector", "freeze"), ("detector", "frozen_fpn"), ("tune", "optimizer"), ("tune", "betas")):
        del stored[part][field]
    assert DetectRecipe.from_json(stored) == DETECT_RECIPES["quick"]()
