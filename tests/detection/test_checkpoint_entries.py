"""A detector's checkpoint that lacks an entry, or has one of another shape or type, is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from resim.cli.main import main
from resim.detection.checkpoint import load_detector
from resim.detection.detector import build_detector
from resim.errors import UserError
from resim.exit_codes import USER_ERROR
from resim.runs.checkpoints import save_checkpoint
from tiny_detectors import tiny_recipe

DESCRIPTION = ("recipe", "classes", "category_ids", "keypoint_names", "keypoint_labels", "precision", "step", "model")


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """The entries that a detector of two classes is loaded from."""
    recipe = tiny_recipe()
    model = build_detector(recipe.detector, recipe.images, num_classes=2, num_keypoints=0)
    lists = {"classes": ["cat", "dog"], "category_ids": [3, 7], "keypoint_names": [], "keypoint_labels": []}
    entries = {"kind": "detect", "recipe": recipe.to_json(), "precision": "float32", "step": 5, "init": "random"}
    return {"resim": "1.0", "model": model.state_dict()} | entries | lists


def refusal(path: Path, state: dict[str, Any]) -> str:
    """The message, which is one line that begins with the file's path."""
    save_checkpoint(path, state)
    with pytest.raises(UserError) as caught:
        load_detector(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", DESCRIPTION)
def test_a_missing_entry_is_named(tmp_path: Path, state: dict[str, Any], name: str) -> None:
    message = refusal(tmp_path / "a.pt", {key: value for key, value in state.items() if key != name})
    assert message == f"is no detector's checkpoint of this version (KeyError: '{name}')"


def test_without_a_kind_it_is_no_detector(tmp_path: Path, state: dict[str, Any]) -> None:
    message = refusal(tmp_path / "a.pt", {key: value for key, value in state.items() if key != "kind"})
    assert message == "holds no detector but a pre-training: fine-tune it by resim detect train --init"


@pytest.mark.parametrize("name", DESCRIPTION)
@pytest.mark.parametrize("value", [None, -1.5, "a", ["a", []], {"a": 1}, torch.zeros(2, 2)], ids=repr)
def test_an_entry_of_another_type_is_refused(tmp_path: Path, state: dict[str, Any], name: str, value: Any) -> None:
    message = refusal(tmp_path / "a.pt", state | {name: value})
    assert message.startswith("is no detector's checkpoint of this version (")


def changed(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The checkpoint with another value of one weight; None: without it."""
    weights = {key: tensor for key, tensor in state["model"].items() if key != name or value is not None}
    return state | {"model": weights | ({} if value is None else {name: value})}


@pytest.mark.parametrize("name", ["backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.bias"])
def test_a_missing_weight_and_one_of_another_shape_are_named(tmp_path: Path, state: dict[str, Any], name: str) -> None:
    assert f'Missing key(s) in state_dict: "{name}"' in refusal(tmp_path / "a.pt", changed(state, name, None))
    for shape in ((), (5,), (3, 3, 3, 3), (0,)):
        message = refusal(tmp_path / "a.pt", changed(state, name, torch.zeros(shape)))
        assert f"size mismatch for {name}" in message
    for value in (1.5, [1.0], {"a": 1}):
        assert name in refusal(tmp_path / "a.pt", changed(state, name, value))


def test_weights_that_are_not_finite_are_named_with_their_number(tmp_path: Path, state: dict[str, Any]) -> None:
    name = "backbone.body.conv1.weight"
    weights = state["model"][name].clone()
    weights[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    message = refusal(tmp_path / "a.pt", changed(state, name, weights))
    assert message.startswith(f"{name} has 2 of {weights.numel()} numbers that are NaN or infinite")


def test_more_classes_than_the_weights_have_are_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    message = refusal(tmp_path / "a.pt", state | {"classes": ["cat", "dog", "cow"], "category_ids": [3, 7, 9]})
    assert "size mismatch for roi_heads.box_predictor" in message


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, state: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "a.pt", changed(state, "backbone.body.conv1.weight", None))
    (tmp_path / "a.jpg").touch()
    words = ["detect", "predict", str(tmp_path), "--model", str(tmp_path / "a.pt"), "--out", str(tmp_path / "out")]
    assert main(words) == USER_ERROR
    printed = capsys.readouterr().err
    assert printed.startswith("resim detect: ")
    assert 'Missing key(s) in state_dict: "backbone.body.conv1.weight"' in printed
    assert printed.count("\n") == 1
