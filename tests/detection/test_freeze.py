"""Frozen detectors: what is fixed never changes and has no gradient graph; all else is trained."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.frozen import (
    ADAMW,
    BACKBONE,
    C4,
    ONE,
    SGD,
    batch,
    built,
    data,
    files,
    is_frozen,
    modes,
)
from resim.datasets.records import DetectionData
from resim.detection.config import DetectorConfig
from resim.detection.detector import build_detector
from resim.detection.fpn_parts import FPN_PARTS, RESIM_FPN, fixed_among, fpn_place
from resim.detection.freeze import freeze_parts
from resim.detection.init import resolve
from resim.detection.norms import recompute_statistics
from resim.detection.samples import DetectionBatch
from resim.detection.step import make_detector_stepper
from resim.detection.train import train_detector
from resim.exchange.weights import read_weights
from resim.model.encoder import Encoder
from tiny_detectors import tiny, tiny_images, tiny_recipe, tiny_run

__all__ = ["batch", "data", "files"]


def frozen_modules(model: Any, config: DetectorConfig) -> dict[str, nn.Module]:
    """The largest submodules of which nothing is trained, by name."""
    modules = {"backbone.body": model.backbone.body}
    modules |= {fpn_place(part): model.get_submodule(fpn_place(part)) for part in config.frozen_fpn}
    if config.neck == "c4" and config.frozen_stages == 5:
        modules["roi_heads.box_head.layer4"] = model.roi_heads.box_head.layer4
    return modules


# -- nothing that is frozen changes, and all else is trained


@pytest.mark.slow
@modes
def test_nothing_that_is_frozen_changes_by_a_bit(batch: DetectionBatch, config: DetectorConfig) -> None:
    model = built(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # AdamW's weight decay would change weights without a gradient too
    stepper = make_detector_stepper(model, SGD if config is BACKBONE else ADAMW, ONE, precision="float32")
    for _ in range(2):
        stepper(batch)
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if not is_frozen(name, config)}  # statistics and their counters too


@modes
def test_the_optimiser_has_what_is_trained_alone(config: DetectorConfig) -> None:
    model = built(config)
    stepper = make_detector_stepper(model, ADAMW, ONE, precision="float32")
    optimised = {id(p) for group in stepper.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for name, p in model.named_parameters() if not is_frozen(name, config)}


@modes
def test_precise_statistics_are_those_of_trained_parts(batch: DetectionBatch, config: DetectorConfig) -> None:
    model = built(config)
    stepper = make_detector_stepper(model, SGD, ONE, precision="float32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recompute_statistics(model, stepper.forward, [batch])
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {
        name
        for name in before
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")) and not is_frozen(name, config)
    }


# -- no gradient graph


def graph_of(loss: Tensor) -> tuple[set[int], int]:
    """The ids of the tensors that a loss has a gradient for, and the convolutions that it goes back through."""
    leaves: set[int] = set()
    visited, waiting, convolutions = set(), [loss.grad_fn], 0
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        convolutions += node.name().startswith("ConvolutionBackward")
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting += [parent for parent, _ in node.next_functions]
    return leaves, convolutions


@modes
def test_what_is_frozen_has_no_gradient_graph(batch: DetectionBatch, config: DetectorConfig) -> None:
    model = built(config).train()
    stepper = make_detector_stepper(model, SGD, ONE, precision="float32")
    outputs: dict[str, list[Tensor]] = {}
    kept: dict[str, int] = {}
    inside: list[str] = []

    def keep(tensor: Tensor) -> Tensor:
        where = inside[-1] if inside else "the rest"
        kept[where] = kept.get(where, 0) + 1
        return tensor

    def enter(name: str, *arguments: Any) -> None:
        inside.append(name)

    def leave(module: nn.Module, inputs: Any, out: Any) -> None:
        outputs[inside.pop()] = list(out.values()) if isinstance(out, dict) else [out]

    for name, module in frozen_modules(model, config).items():
        module.register_forward_pre_hook(partial(enter, name))
        module.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = stepper.losses(batch)
    assert set(outputs) == set(frozen_modules(model, config))
    assert all(tensor.grad_fn is None and not tensor.requires_grad for out in outputs.values() for tensor in out)
    assert set(kept) == {"the rest"}  # nothing is kept for a backward pass inside of what is frozen
    leaves, convolutions = graph_of(torch.stack(list(losses.values())).sum())
    assert leaves == {id(p) for name, p in model.named_parameters() if not is_frozen(name, config)}
    in_fpn = 8 - len(config.frozen_fpn) if config.neck == "fpn" else 0
    in_rpn = 3 * (5 if config.neck == "fpn" else 1)  # on each level
    in_res5 = 5 if config is C4 else 0
    assert convolutions == in_fpn + in_rpn + in_res5


@modes
def test_a_gradient_that_is_asked_for_ends_at_what_is_frozen(config: DetectorConfig) -> None:
    model = built(config).train()
    pictures = torch.randn(1, 3, 64, 64, requires_grad=True)
    assert not any(level.requires_grad for level in model.backbone.body(pictures).values())
    for part in FPN_PARTS if config.neck == "fpn" else ():
        block = model.get_submodule(fpn_place(part))
        cells = torch.randn(1, block[0].in_channels, 8, 8, requires_grad=True)
        assert block(cells).requires_grad == (part not in config.frozen_fpn)


def test_without_freeze_the_graph_is_of_everything(batch: DetectionBatch) -> None:
    model = built(tiny()).train()
    stepper = make_detector_stepper(model, SGD, ONE, precision="float32")
    leaves, convolutions = graph_of(torch.stack(list(stepper.losses(batch).values())).sum())
    assert leaves == {id(p) for p in model.parameters()}
    assert convolutions == 20 + 8 + 15  # ResNet-18 without its classifier, the FPN, the RPN on five levels


# -- what is computed


@pytest.mark.slow
@modes
def test_the_first_losses_are_those_of_a_detector_that_is_not_frozen(
    batch: DetectionBatch, config: DetectorConfig
) -> None:
    frozen, free = built(config), built(dataclasses.replace(config, freeze="none", frozen_fpn=(), frozen_stages=0))
    losses = []
    for model in (frozen, free):
        stepper = make_detector_stepper(model, SGD, ONE, precision="float32")
        model.train()
        if model is free:
            for module in frozen_modules(model, config).values():
                module.eval()  # BatchNorm with its running statistics
        losses.append({name: float(value.detach()) for name, value in stepper.losses(batch).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(value > 0 for value in losses[0].values())


@pytest.mark.slow
@pytest.mark.parametrize("fpn_norm", [False, True], ids=["into plain", "into BatchNorm"])
@pytest.mark.parametrize("file", ["both", "normed"])
def test_the_frozen_maps_stay_those_of_the_pre_training(
    batch: DetectionBatch, files: dict[str, Path], file: str, fpn_norm: bool
) -> None:
    weights = read_weights(files[file])
    config = resolve(tiny(freeze="backbone+fpn", fpn_norm=fpn_norm), weights)
    stepper = make_detector_stepper(built(config, weights), SGD, ONE, precision="float32")
    network = Encoder(weights.config).eval()
    network.load_state_dict(weights.tensors)
    pictures = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    maps = []
    for step in range(2):
        with torch.no_grad():
            maps.append(stepper.model.train().backbone(pictures))
        if step == 0:
            stepper(batch)
    with torch.no_grad():
        _, expected = network(pictures)
    before, after = maps
    for level, index in (("P3", "1"), ("P4", "2")):
        assert torch.equal(before[index], after[index])
        assert (after[index] - expected[level]).norm() <= 1e-4 * expected[level].norm()
    for index in ("0", "3", "pool"):  # P2, P5 and P6 are new and trained
        assert not torch.equal(before[index], after[index])


@pytest.mark.slow
def test_a_frozen_run_keeps_the_backbone_and_fpn_of_its_file(
    files: dict[str, Path], data: DetectionData, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny(freeze="backbone+fpn"), steps=1, precise_bn=1)
    out = tmp_path / "run"
    train_detector(recipe, tiny_run(out), data, None, init=files["both"], show=False)
    given, kept = read_weights(files["both"]).tensors, read_weights(out).tensors
    checked = [name for name in given if name.startswith("backbone.") and not name.endswith("num_batches_tracked")]
    assert len(checked) == 100  # 20 convolutions, and as many norms of four entries
    assert all(torch.equal(kept[name], given[name]) for name in checked)
    for name in ("fpn.lateral3", "fpn.lateral4", "fpn.lateral5", "fpn.output3", "fpn.output4"):
        assert torch.equal(kept[f"{name}.0.weight"], given[f"{name}.weight"])


# -- which parts of an FPN


@pytest.mark.slow
def test_parts_of_an_fpn_are_those_of_the_weights(files: dict[str, Path]) -> None:
    opened = tiny(freeze="backbone+fpn")
    assert resolve(opened, read_weights(files["both"])).frozen_fpn == RESIM_FPN
    assert resolve(opened, read_weights(files["p4"])).frozen_fpn == ("lateral4", "lateral5", "output4")
    assert resolve(opened, read_weights(files["none"])).frozen_fpn == RESIM_FPN  # as the weights it is compared with
    assert resolve(opened, None).frozen_fpn == RESIM_FPN
    named = dataclasses.replace(opened, frozen_fpn=("lateral5",))
    assert resolve(named, read_weights(files["both"])) == named
    for other in (tiny(), BACKBONE):
        assert resolve(other, read_weights(files["both"])).frozen_fpn == ()


def test_an_output_is_fixed_only_with_all_that_it_reads() -> None:
    assert fixed_among(["output4", "lateral5", "output5"]) == ("lateral5", "output5")
    assert fixed_among(FPN_PARTS) == FPN_PARTS


def test_a_detector_is_not_frozen_by_parts_that_are_open() -> None:
    model = build_detector(tiny(), tiny_images(), num_classes=2)
    with pytest.raises(ValueError, match="frozen-fpn is open: resolve the config first"):
        freeze_parts(model, tiny(freeze="backbone+fpn"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": "fpn"}, r"freeze 'fpn': must be one of none, backbone, backbone\+fpn"),
        ({"freeze": "backbone+fpn", "neck": "c4"}, "--neck c4 has no FPN: use --freeze backbone"),
        ({"freeze": "backbone+fpn", "fold_biases": False}, "keeps the FPN's biases: leave --no-fold-biases out"),
        ({"frozen_fpn": ("lateral5",)}, r"frozen-fpn lateral5: goes with --freeze backbone\+fpn: empty it"),
        ({"freeze": "backbone", "frozen_fpn": ("lateral5",)}, r"goes with --freeze backbone\+fpn: empty it"),
        ({"freeze": "backbone+fpn", "frozen_fpn": ("P4",)}, "frozen-fpn P4: must be one of lateral2, "),
        ({"freeze": "backbone+fpn", "frozen_fpn": ("lateral5", "lateral5")}, "frozen-fpn lateral5: is there twice"),
        ({"freeze": "backbone+fpn", "frozen_fpn": ("output4", "lateral4")}, "frozen-fpn output4: reads lateral5: name"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**fields)
