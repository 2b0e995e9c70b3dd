"""Pre-trained weights in a detector: the same features, and a report that leaves nothing out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resim.detection.config import DetectorConfig
from resim.detection.detector import build_detector
from resim.detection.init import InitReport, load_init, resolve
from resim.errors import UserError
from resim.exchange.weights import Weights
from resim.model.encoder import Encoder, ModelConfig
from resim.regions.level import Level
from tiny_detectors import randomise_norms, tiny, tiny_images

LEVELS = (Level(name="P4", window=24, step=16), Level(name="P3", window=16, step=12))
WAYS = {f"{'normalised' if a else 'plain'}-to-{'normalised' if b else 'plain'}": (a, b) for a in (0, 1) for b in (0, 1)}
FOLDED_IN = "FPN: BatchNorm of the pre-training folded into weights and biases (features in evaluation are equal)"
FOLDED = "FPN: biases folded into BatchNorm's beta (features in evaluation are equal)"
DROPPED = "FPN: biases of the plain convolutions dropped, as published"
NOTES = {
    "plain-to-plain": (),
    "plain-to-normalised": (FOLDED,),
    "normalised-to-plain": (FOLDED_IN,),
    "normalised-to-normalised": (),
}


def pretrained(**fields: Any) -> tuple[Encoder, Weights]:
    """A query encoder with statistics and biases as training leaves them, and its weights as they are read."""
    settings: dict[str, Any] = {"backbone": "resnet18", "levels": LEVELS, "fpn_width": 16, "dim": 8, "group_size": 2}
    config = ModelConfig(**(settings | fields))
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    randomise_norms(encoder)
    for name, parameter in encoder.named_parameters():
        if name.startswith("fpn.") and name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    tensors = {name: value.clone() for name, value in encoder.state_dict().items()}
    return encoder, Weights(
        path=Path("w.pt"), kind="made", tensors=tensors, left_over=(), licence=None, origin=None, recipe=None,
        config=config,
    )  # fmt: skip


def filled(config: DetectorConfig, weights: Weights | None) -> tuple[Any, InitReport]:
    """A detector with those weights."""
    model = build_detector(config, tiny_images(), num_classes=2, seed=5)
    return model, load_init(model, config, weights)


def images() -> Tensor:
    return torch.randn(2, 3, 72, 104, generator=torch.Generator().manual_seed(2))  # sizes that are odd further up


@torch.no_grad()
def same_levels(model: Any, encoder: Encoder) -> None:
    """P3 and P4 of both, in evaluation."""
    _, levels = encoder(images())
    maps = model.eval().backbone(images())
    for level, name in (("P3", "1"), ("P4", "2")):
        assert maps[name].shape == levels[level].shape
        assert (maps[name] - levels[level]).norm() <= 1e-5 * levels[level].norm(), level


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["sync", "frozen"])
@pytest.mark.parametrize("way", list(WAYS))
def test_features_before_fine_tuning_are_those_of_the_query_encoder(way: str, norm: Any) -> None:
    normed, to_normed = (bool(n) for n in WAYS[way])
    encoder, weights = pretrained(fpn_norm=normed)
    model, report = filled(tiny(fpn_norm=to_normed, norm=norm), weights)
    same_levels(model, encoder)
    assert report.notes == NOTES[way]


@pytest.mark.parametrize("way", list(WAYS))
def test_the_report_lists_every_entry_once(way: str) -> None:
    normed, to_normed = (bool(n) for n in WAYS[way])
    _, weights = pretrained(fpn_norm=normed)
    model, report = filled(tiny(fpn_norm=to_normed), weights)
    state = model.state_dict()
    assert sorted([*report.loaded, *report.new]) == sorted(state)
    # all of the backbone, and laterals of C3 to C5 and outputs of P3 and P4, counted from C2 in torchvision
    parts = [f"backbone.fpn.{p}." for p in ("inner_blocks.1", "inner_blocks.2", "inner_blocks.3")]
    parts += [f"backbone.fpn.{p}." for p in ("layer_blocks.1", "layer_blocks.2")]
    expected = {name for name in state if name.startswith(("backbone.body.", *parts))}
    if to_normed and not normed:  # there is no counter of batches for statistics that were made
        expected -= {name for name in expected if "fpn" in name and name.endswith("num_batches_tracked")}
    assert set(report.loaded) == expected
    assert set(report.left_over) == {name for name in weights.tensors if name.startswith("head.")}


def test_new_entries_stay_as_they_were_drawn() -> None:
    _, weights = pretrained()
    config = tiny()
    drawn = build_detector(config, tiny_images(), num_classes=2, seed=5).state_dict()
    model, report = filled(config, weights)
    state = model.state_dict()
    assert all(torch.equal(state[name], drawn[name]) for name in report.new)
    assert not torch.equal(state["backbone.body.conv1.weight"], drawn["backbone.body.conv1.weight"])


def test_without_folding_biases_are_dropped_and_told() -> None:
    encoder, weights = pretrained()
    model, report = filled(tiny(fold_biases=False), weights)
    assert report.notes == (DROPPED,)
    state = model.state_dict()
    assert torch.equal(state["backbone.fpn.inner_blocks.3.0.weight"], weights.tensors["fpn.lateral5.weight"])
    assert not state["backbone.fpn.inner_blocks.3.1.bias"].any()
    assert "backbone.fpn.inner_blocks.3.1.bias" in report.new
    assert f"  {DROPPED}" in report.lines()
    with torch.no_grad():
        _, levels = encoder(images())
        maps = model.eval().backbone(images())
    assert (maps["1"] - levels["P3"]).norm() > 0.01 * levels["P3"].norm()


def test_a_pyramid_of_other_levels_fills_what_it_has() -> None:
    encoder, weights = pretrained(levels=(Level(name="P5", window=32, step=32), Level(name="P4", window=24, step=16)))
    model, report = filled(tiny(), weights)
    with torch.no_grad():
        _, levels = encoder(images())
        maps = model.eval().backbone(images())
    for level, name in (("P4", "2"), ("P5", "3")):
        assert (maps[name] - levels[level]).norm() <= 1e-5 * levels[level].norm()
    assert not any("inner_blocks.1" in name or "layer_blocks.1" in name for name in report.loaded)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_pre_training_without_an_fpn(neck: Any) -> None:
    encoder, weights = pretrained(levels=(Level(name="C4", window=24, step=16),))
    model, report = filled(tiny(neck=neck), weights)
    with torch.no_grad():
        c4 = encoder.backbone(images())["C4"]
        bodies = model.eval().backbone.body(images())
    result = bodies["2" if neck == "fpn" else "0"]
    assert (result - c4).norm() <= 1e-5 * c4.norm()
    assert not any(".fpn." in name for name in report.loaded)
    assert set(report.left_over) == {n for n in weights.tensors if n.startswith(("head.", "convs."))}
    assert report.notes == ()


def test_on_c4_the_fifth_stage_comes_from_the_backbone_and_the_pyramid_is_left_over() -> None:
    encoder, weights = pretrained()
    model, report = filled(tiny(neck="c4"), weights)
    backbone: Any = encoder.backbone
    regions = torch.rand(3, 64, 14, 14)
    with torch.no_grad():
        expected = backbone.layer4(regions)
        result = model.eval().roi_heads.box_head.layer4(regions)
    assert torch.equal(result, expected)
    assert set(report.left_over) == {n for n in weights.tensors if n.startswith(("head.", "fpn."))}
    assert {n for n in report.new if n.startswith("roi_heads.box_head.")} == {
        f"roi_heads.box_head.norm.{leaf}"
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


# -- what is message, what is refused


def test_what_is_told() -> None:
    _, weights = pretrained()
    _, report = filled(tiny(), weights)
    counts, loaded, new, left_over, note = report.lines()
    assert counts == f"weights from w.pt, made: {len(report.loaded)} entries loaded, {len(report.new)} new, 4 left over"
    assert loaded.startswith("  loaded: backbone.body.bn1 (5), backbone.body.conv1 (1), backbone.body.layer1 (24)")
    assert "backbone.fpn.inner_blocks.0 (6)" in new
    assert "rpn.head" in new
    assert left_over == "  left over: head.0 (2), head.2 (2)"
    assert note == f"  {FOLDED}"


def test_without_weights_all_is_new() -> None:
    model, report = filled(tiny(), None)
    assert report.loaded == report.left_over == ()
    assert sorted(report.new) == sorted(model.state_dict())
    assert report.lines()[0].startswith("weights from no file: all is new: 0 entries loaded, ")


def test_backbone_and_width_are_those_of_the_weights() -> None:
    _, weights = pretrained(fpn_width=24)
    open_config = tiny(backbone="auto", fpn_width=0)
    result = resolve(open_config, weights)
    assert (result.backbone, result.fpn_width) == ("resnet18", 24)
    _, without = pretrained(levels=())
    result = resolve(open_config, without)
    assert (result.backbone, result.fpn_width) == ("resnet18", 256)
    result = resolve(open_config, None)
    assert (result.backbone, result.fpn_width) == ("resnet50", 256)
    assert resolve(tiny(), weights) == tiny()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet50"}, "w.pt, made: is of a resnet18, the detector's backbone is resnet50"),
        ({"backbone": "resnet34"}, "w.pt, made: is of a resnet18, the detector's backbone is resnet34"),
        ({"fpn_width": 24}, r"w.pt, made: .* a detector on resnet18 with an FPN of width 24 has \[24, .*: leave "),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    _, weights = pretrained()
    with pytest.raises(UserError, match=message) as error:
        filled(tiny(**fields), weights)
    assert "\n" not in str(error.value)
