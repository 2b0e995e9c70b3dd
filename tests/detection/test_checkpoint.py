"""A detector's checkpoint is loaded if its recipe, classes and tensors belong together, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from resim.detection import detector
from resim.detection.checkpoint import load_detector
from resim.errors import UserError
from resim.runs.checkpoints import save_checkpoint
from tiny_detectors import tiny, tiny_recipe

RECIPE = tiny_recipe(tiny(neck="c4", norm="batch"))


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Of a detector of two classes."""
    model = detector.build_detector(RECIPE.detector, RECIPE.images, num_classes=2)
    return {
        "resim": "1.0", "kind": "detect", "recipe": RECIPE.to_json(), "classes": ["cat", "dog"],
        "category_ids": [7, 3], "keypoint_names": [], "keypoint_labels": [], "init": "random",
        "precision": "float32", "step": 5, "model": model.state_dict(),
    }  # fmt: skip


def refused(path: Path, state: dict[str, Any]) -> str:
    save_checkpoint(path, state)
    with pytest.raises(UserError) as error:
        load_detector(path)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_whole_one_is_loaded(state: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_detector(tmp_path / "last.pt")
    assert (loaded.classes, loaded.category_ids, loaded.step) == (("cat", "dog"), (7, 3), 5)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in state["model"].items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": "ab"}, "classes: must be a list of texts"),
        ({"classes": ["cat", 3]}, "classes: must be a list of texts"),
        ({"category_ids": [7, True]}, "category_ids: must be a list of whole numbers"),
        ({"category_ids": [7]}, "1 category_ids for 2 classes"),
        ({"keypoint_names": {"nose": 1}}, "keypoint_names: must be a list of texts"),
        ({"precision": "float16"}, "precision 'float16': must be one of float32, bf16"),
        ({"precision": ["bf16"]}, "precision ['bf16']: must be one of float32, bf16"),
        ({"step": 0.5}, "step 0.5: must be a whole number"),
        ({"model": [1]}, "'list' object has no attribute"),
    ],
)
def test_an_entry_of_another_kind_is_named(
    state: dict[str, Any], change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in refused(tmp_path / "last.pt", state | change)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["cat"] * 300_000, "category_ids": [7] * 300_000},
        {"recipe": tiny_recipe(tiny(fpn_width=60_000)).to_json()},
        {"recipe": tiny_recipe(tiny(neck="c4", norm="batch", anchor_sizes=(8,) * 3000)).to_json()},
    ],
)
def test_what_a_file_claims_takes_no_memory(
    state: dict[str, Any], change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, devices = detector.build_detector, list[str]()

    def recorded(*parts: Any, **numbers: Any) -> Any:
        devices.append(torch.empty(0).device.type)
        return build(*parts, **numbers)

    monkeypatch.setattr(detector, "build_detector", recorded)
    assert "is no detector's checkpoint of this version" in refused(tmp_path / "last.pt", state | change)
    assert devices == ["meta"]


def test_a_tensor_larger_than_its_storage_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    name = "roi_heads.box_predictor.bbox_pred.bias"
    large = dict(state["model"]) | {name: torch.zeros(1).expand(12)}
    reason = refused(tmp_path / "last.pt", state | {"model": large})
    assert f"{name!r} claims 48 bytes, more than it has in the file" in reason


def test_sides_beyond_32768_px_are_refused(state: dict[str, Any], tmp_path: Path) -> None:
    recipe = RECIPE.to_json()
    recipe["images"] |= {"max_size": 40_000, "test_size": 40_000}
    assert "max-size 40000: must be at most 32768 px" in refused(tmp_path / "last.pt", state | {"recipe": recipe})
    recipe = RECIPE.to_json()
    recipe["detector"]["anchor_sizes"] = [8, 40_000]
    assert "each must be at most 32768 px" in refused(tmp_path / "last.pt", state | {"recipe": recipe})
