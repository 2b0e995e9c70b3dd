"""A whole detector goes out, heads and all, and detects in torchvision what it detects here."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import resim
from resim.cli.main import main
from resim.detection import export as export_room
from resim.detection.agreement import agreement, raw_images, settings
from resim.detection.checkpoint import load_detector
from resim.detection.config import DetectorConfig
from resim.detection.detector import build_detector, freeze_stages
from resim.detection.export import export_detector
from resim.errors import UserError
from resim.exchange.export import export
from resim.exchange.features import TOLERANCE
from resim.exchange.weights import read_weights
from resim.runs.checkpoints import save_checkpoint
from tiny_detectors import randomise_norms, tiny, tiny_images, tiny_recipe

Captured = pytest.CaptureFixture[str]
KINDS: dict[str, dict[str, Any]] = {
    "faster": {},
    "mask, two stages frozen": {"masks": True, "frozen_stages": 2},
    "keypoint": {"keypoints": True},
    "mask, fixed norms, plain fpn": {"masks": True, "norm": "frozen", "fpn_norm": False},
    "c4": {"neck": "c4"},
    "c4 mask": {"neck": "c4", "masks": True, "frozen_stages": 1},
}
HEADS = {
    "faster": set(), "mask, two stages frozen": {"masks"}, "keypoint": {"keypoints", "keypoints_scores"},
    "mask, fixed norms, plain fpn": {"masks"}, "c4": set(), "c4 mask": {"masks"},
}  # fmt: skip


@functools.lru_cache(maxsize=2)
def norms_of_their_own(config: DetectorConfig, num_keypoints: int) -> dict[str, Tensor]:
    """The state of a detector of two classes, with norms that stand nowhere near their start."""
    model = build_detector(config, tiny_images(), num_classes=2, num_keypoints=num_keypoints, seed=1)
    randomise_norms(model)
    freeze_stages(model, config.frozen_stages)
    return model.state_dict()


@pytest.fixture
def full_states() -> Iterator[None]:
    """States of thin ResNets are not taken for those of full ones, nor these for thin ones in the tests to come."""
    norms_of_their_own.cache_clear()
    yield
    norms_of_their_own.cache_clear()


def fine_tuned(folder: Path, metadata: dict[str, str] | None = None, **fields: Any) -> Path:
    """A run of `resim detect train` on two classes."""
    config = tiny(**({"detections": 5, "score_threshold": 0.01} | fields))
    names = ["nose", "left_eye", "right_eye"] if config.keypoints else []
    state = {
        "resim": "0", "kind": "detect", "recipe": tiny_recipe(config).to_json(), "init": "random", "step": 3,
        "classes": ['"quoted" one', "zwei \u00fc"], "category_ids": [7, 3], "keypoint_names": names,
        "keypoint_labels": [1] if names else [], "precision": "float32", "metadata": metadata or {},
        "model": norms_of_their_own(config, len(names)),
    }  # fmt: skip
    save_checkpoint(folder / "checkpoints" / "last.pt", state)
    return folder


def executed(line: str) -> Any:
    """The model that a line makes which the command prints."""
    scope: dict[str, Any] = {}
    exec(line, scope)
    return scope["model"]


def photo() -> Tensor:
    """(3, 75, 110) float32 in [0, 1], no size that the export was verified on."""
    return torch.rand(3, 75, 110, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def assert_same_detections(model: Any, run: Path) -> None:
    ours, theirs = load_detector(run).model([photo()])[0], model([photo()])[0]
    assert len(ours["boxes"]) > 0
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["labels"], theirs["labels"])
    for name in set(ours) - {"labels"}:  # sums of the same numbers, in another order where a norm was fixed
        assert torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_printed_line_gives_the_detector_in_torchvision(tmp_path: Path, kind: str) -> None:
    run = fine_tuned(tmp_path / "run", **KINDS[kind])
    done = export_detector(run, "torchvision-detection", tmp_path / "out" / "det.pth")
    assert done.differences is not None
    maps = {"C4"} if kind.startswith("c4") else {"P2", "P3", "P4", "P5", "P6"}
    assert set(done.differences) == maps | {"boxes", "scores", "labels"} | HEADS[kind]
    assert max(done.differences.values()) <= TOLERANCE
    assert (done.left_out, done.written.starts_new) == ((), ())
    model = executed(done.written.load)
    assert {type(part).__module__.partition(".")[0] for part in model.modules()} <= {"torch", "torchvision"}
    assert model.training is False
    assert_same_detections(model, run)


@pytest.mark.slow
def test_the_python_file_needs_no_resim(tmp_path: Path, full_resnets: None, full_states: None) -> None:
    run = fine_tuned(tmp_path / "run", masks=True)
    done = export_detector(run, "torchvision-detection", tmp_path / "it's a detector.pth")
    program = f"{done.written.load}; import sys; assert 'resim' not in sys.modules; print(type(model).__name__)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (process.stdout, process.returncode) == ("MaskRCNN\n", 0), process.stderr
    text = (tmp_path / "it's a detector.py").read_text(encoding="utf-8")
    assert """CLASSES = ['"quoted" one', 'zwei \\xfc']""" in text


@pytest.mark.slow
def test_a_folded_fpn_fits_torchvisions_own_function(tmp_path: Path) -> None:
    run = fine_tuned(tmp_path / "run", masks=True, fpn_width=256, anchor_sizes=(32, 64, 128, 256, 512))
    done = export_detector(run, "torchvision-detection", tmp_path / "det.pth", fpn_norm="plain")
    assert "the FPN's BatchNorm was folded into its convolutions" in done.notes[0]
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d)
    model: Any = MaskRCNN(backbone, num_classes=3)
    state = torch.load(tmp_path / "det.pth", weights_only=True)["state_dict"]
    assert str(model.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    assert_same_detections(executed(done.written.load), run)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_norms_are_put_into_a_plain_fpn(tmp_path: Path, norm: str) -> None:
    run = fine_tuned(tmp_path / "run", fpn_norm=False, norm=norm)
    done = export_detector(run, "safetensors", tmp_path / "det.safetensors", fpn_norm="batchnorm")
    assert max((done.differences or {}).values()) <= TOLERANCE
    assert load_detector(tmp_path / "det.safetensors").recipe.detector.fpn_norm is True


@pytest.mark.slow
def test_the_hub_gets_the_detector_with_its_card(tmp_path: Path) -> None:
    published = {"licence": "CC-BY-NC-4.0", "origin": "published ReSim-FPN checkpoint"}
    run = fine_tuned(tmp_path / "run", published, masks=True)
    (run / "scores.jsonl").write_text(
        json.dumps({"step": 2, "images": 9, "scores": {"bbox": {"AP": 0.333}}}) + "\n"
        + json.dumps({"step": 3, "images": 9, "scores": {"bbox": {"AP": 0.222}}}) + "\n"
    )  # fmt: skip
    split = {"val_fraction": 0.25, "seed": 4, "val_images": [11, 12, 13]}
    (run / "config.json").write_text(json.dumps({"data": {"split": split}}))
    done = export_detector(run, "hub", tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {
        "model.safetensors", "detector.py", "config.json", "README.md",
    }  # fmt: skip
    assert "resim.load_detector" in done.written.target
    assert_same_detections(executed(done.written.load), run)
    read = resim.load_detector(tmp_path / "hub")
    assert (read.classes, read.category_ids, read.step) == (('"quoted" one', "zwei \u00fc"), (7, 3), 3)
    assert read.recipe == load_detector(run).recipe
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    for fact in ("license: cc-by-nc-4.0", "Mask R-CNN, resnet18 with an FPN", "0.222", "| licence | CC-BY-NC-4.0 |"):
        assert fact in card, fact
    assert "0.333" not in card
    held_out = "3 images that were never trained on: --val-fraction 0.25, seed 4"
    assert f"| evaluated on | {held_out} |" in card
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["held_out"] == held_out
    weights = read_weights(tmp_path / "hub")  # its backbone, for another fine-tuning
    assert (weights.licence, weights.origin) == ("CC-BY-NC-4.0", "published ReSim-FPN checkpoint")
    with pytest.raises(UserError, match=r"these weights are CC-BY-NC-4\.0"):
        export_detector(run, "safetensors", tmp_path / "x.safetensors", licence="MIT")


@pytest.mark.slow
def test_an_export_is_exported_again(tmp_path: Path) -> None:
    run = fine_tuned(tmp_path / "run")
    first = export_detector(run, "torchvision-detection", tmp_path / "a.pth", licence="Apache-2.0")
    second = export_detector(first.paths[0], "safetensors", tmp_path / "b.safetensors")
    assert second.licence == "Apache-2.0"
    state = load_detector(run).model.state_dict()
    read = load_detector(tmp_path / "b.safetensors").model.state_dict()
    assert all(torch.equal(value, read[name]) for name, value in state.items())


# -- what is not right is not written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_mean=[0.485", "image_mean=[0.5", "mean and deviation"),
        ("box_score_thresh=0.01", "box_score_thresh=0.02", "detections"),
        ("min_size=(64, 80, 64)", "min_size=(64, 80, 80)", "size at test"),
        ("    return model.eval()", "    model.rpn.head.bbox_pred.bias.data += 0.01\n    return model.eval()", "boxes"),
        ("    return model.eval()", "    model.roi_heads.mask_predictor.mask_fcn_logits.bias.data += 1\n"
         "    return model.eval()", "masks"),
    ],
)  # fmt: skip
def test_a_detector_that_is_another_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    real = export_room.torchvision_source

    def spoilt(*arguments: Any) -> str:
        text = real(*arguments)
        assert text.count(old) == 1
        return text.replace(old, new)

    monkeypatch.setattr(export_room, "torchvision_source", spoilt)
    run = fine_tuned(tmp_path / "run", masks=True)
    with pytest.raises(UserError, match=f"not written: .*{message}"):
        export_detector(run, "torchvision-detection", tmp_path / "det.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    run = fine_tuned(tmp_path / "run")
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    state["model"]["rpn.head.cls_logits.bias"][0] = float("nan")
    save_checkpoint(run / "checkpoints" / "last.pt", state)
    with pytest.raises(UserError, match=r"rpn\.head\.cls_logits\.bias has 1 of 3 numbers that are NaN"):
        export_detector(run, "hub", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.slow
@pytest.mark.parametrize("exported_before", [False, True])
def test_a_python_file_of_ones_own_stays(tmp_path: Path, exported_before: bool) -> None:
    run = fine_tuned(tmp_path / "run")
    if exported_before:
        export_detector(run, "torchvision-detection", tmp_path / "det.pth")
        export_detector(run, "torchvision-detection", tmp_path / "det.pth")  # its own file is replaced
    (tmp_path / "det.py").write_text("print('mine')\n")
    with pytest.raises(UserError, match="its Python file would replace"):
        export_detector(run, "torchvision-detection", tmp_path / "det.pth")
    assert (tmp_path / "det.py").read_text() == "print('mine')\n"


# -- agreement


FEW = tiny(masks=True, detections=5)


@pytest.mark.slow
def test_agreement_is_zero_of_a_detector_with_itself_and_not_of_another() -> None:
    one, other = (build_detector(FEW, tiny_images(), num_classes=2, seed=seed).eval() for seed in (1, 2))
    assert set(agreement(one, one, raw_images()).values()) == {0.0}
    assert max(agreement(one, other, raw_images()).values()) > 0.01
    assert settings(one) == settings(other)


@pytest.mark.slow
def test_a_head_that_is_missing_is_an_infinite_difference() -> None:
    masks, boxes = (
        build_detector(dataclasses.replace(FEW, masks=m), tiny_images(), num_classes=2, seed=1).eval()
        for m in (True, False)
    )
    assert agreement(masks, boxes, raw_images())["masks"] == float("inf")


# -- the command


def run_command(capsys: Captured, *words: str) -> list[str]:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_the_command_prints_features_and_detections(capsys: Captured, tmp_path: Path) -> None:
    run, out = fine_tuned(tmp_path / "run", keypoints=True, box_beta=0.5), tmp_path / "det.pth"
    lines = run_command(capsys, "export", str(run), "--to", "torchvision-detection", "--out", str(out))
    message = next(line for line in lines if line.startswith("verified in torchvision"))
    assert "KeypointRCNN on resnet18: largest difference from our features and detections: P2 0.0e+00" in message
    assert all(f"{name} 0.0e+00" in message for name in ("boxes", "scores", "labels", "keypoints"))
    assert "left out: none" in lines
    assert "trained further, torchvision's box head has a smooth L1 with beta 1/9, not 0.5" in lines
    assert f"wrote {out}, {out.with_suffix('.py')}" in lines
    assert_same_detections(executed(lines[-1].removeprefix("load it: ")), run)
    words = ["export", str(run), "--to", "hub", "--out", str(tmp_path / "hub"), "--probes", "probe.json"]
    assert main(words) == 2
    assert "--probes probe.json: goes with pre-trained networks" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("full_resnets", "full_states")  # Detectron2 loads no thin ones
@pytest.mark.parametrize(("to", "pyramid"), [("torchvision", False), ("detectron2", True)])
def test_other_targets_take_the_backbone_and_name_what_is_left_out(
    capsys: Captured, tmp_path: Path, to: str, pyramid: bool
) -> None:
    run, out = fine_tuned(tmp_path / "run", masks=True), tmp_path / "backbone.pth"
    lines = run_command(capsys, "export", str(run), "--to", to, "--out", str(out))
    fpn = " and of its FPN lateral3, lateral4, lateral5, output3, output4, output5" if pyramid else ""
    parts = f"the backbone{fpn} are exported to {to}"
    assert f"the file is a detector: {parts}, its proposals and heads are left out" in lines
    for name in (
        "rpn.head.cls_logits",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    ):
        assert f"  {name}.{{weight,bias}}" in lines
    assert any(line.startswith("  backbone.fpn.inner_blocks.0.") for line in lines)
    assert any("fpn.output4" in line for line in lines) is not pyramid


@pytest.mark.slow
def test_the_backbone_of_a_c4_detector_has_its_fifth_stage(tmp_path: Path) -> None:
    run = fine_tuned(tmp_path / "run", neck="c4", masks=True)
    done = export(run, "torchvision", tmp_path / "resnet.pth")
    model: Any = torchvision.models.resnet18()
    state = torch.load(tmp_path / "resnet.pth", weights_only=True)["state_dict"]
    assert model.load_state_dict(state, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    theirs = load_detector(run).model.state_dict()
    assert torch.equal(state["layer4.1.conv2.weight"], theirs["roi_heads.box_head.layer4.1.conv2.weight"])
    assert "roi_heads.box_head.norm.weight" in done.left_out
