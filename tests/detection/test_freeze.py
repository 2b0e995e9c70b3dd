"""Frozen detectors: what is fixed never changes and has no gradient graph; all else is trained; both are listed."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resim.datasets.records import DetectionData
from resim.detection.checkpoint import load_detector
from resim.detection.compare import Start, compare
from resim.detection.comparison_table import print_comparison
from resim.detection.config import DetectorConfig, DetectRecipe, TuneConfig
from resim.detection.detector import build_detector
from resim.detection.fpn_parts import FPN_PARTS, RESIM_FPN, fixed_among, fpn_place
from resim.detection.freeze import freeze_lines, freeze_parts, freeze_words
from resim.detection.init import load_init, resolve
from resim.detection.norms import recompute_statistics
from resim.detection.recipes import DETECT_RECIPES
from resim.detection.samples import DetectionBatch, TrainingSet
from resim.detection.step import make_detector_stepper
from resim.detection.train import train_detector
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.exchange.weights import Weights, read_weights
from resim.model.encoder import Encoder, ModelConfig
from resim.regions.level import Level
from resim.report.detection_section import detection
from resim.report.page import Table
from resim.report.run_files import read_runs
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import Recipe
from tiny_detectors import SIZES, randomise_norms, things, tiny, tiny_images, tiny_recipe, tiny_run

ONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
P4 = Level(name="P4", window=24, step=16)
P3 = Level(name="P3", window=16, step=12)
WIDTH = 16

BACKBONE = tiny(freeze="backbone")
WITH_FPN = tiny(freeze="backbone+fpn", frozen_fpn=RESIM_FPN)
C4 = tiny(freeze="backbone", neck="c4", box_regions=4)
C4_AND_RES5 = dataclasses.replace(C4, frozen_stages=5)
NO_NORM = tiny(freeze="backbone+fpn", frozen_fpn=RESIM_FPN, fpn_norm=False, norm="batch")
MODES = {"backbone": BACKBONE, "backbone+fpn": WITH_FPN, "c4": C4, "c4, res5": C4_AND_RES5, "no FPN norm": NO_NORM}
SGD = TuneConfig(lr=0.01, weight_decay=0.1, norm_weight_decay=0.1)
ADAMW = TuneConfig(lr=0.001, weight_decay=0.1, norm_weight_decay=0.1, optimizer="adamw")
modes = pytest.mark.parametrize("config", list(MODES.values()), ids=list(MODES))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("things"))


@pytest.fixture(scope="module")
def batch(data: DetectionData) -> DetectionBatch:
    dataset = TrainingSet(data, tiny_images(), 0)
    samples = [dataset[(0, index)] for index in range(2)]
    return DetectionBatch([dataclasses.replace(s, size=SIZES[0]) for s in samples])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pre-trainings of a ResNet-18, their statistics and norms random numbers."""
    folder = tmp_path_factory.mktemp("pretrained")
    kinds: dict[str, tuple[tuple[Level, ...], bool]] = {
        "both": ((P4, P3), False), "normed": ((P4, P3), True), "p4": ((P4,), False), "none": ((), False),
    }  # fmt: skip
    for name, (levels, fpn_norm) in kinds.items():
        model = ModelConfig(
            backbone="resnet18", levels=levels, fpn_width=WIDTH, dim=8, queue_size=16, group_size=4, fpn_norm=fpn_norm
        )
        network = Encoder(model)
        randomise_norms(network)
        state = {f"query.{key}": value for key, value in network.state_dict().items()}
        recipe = dataclasses.replace(Recipe(), model=model)
        content = {"resim": "test", "recipe": recipe.to_json(), "step": 7, "model": state}
        save_checkpoint(folder / f"{name}.pt", content)
    return {name: folder / f"{name}.pt" for name in kinds}


def built(config: DetectorConfig, weights: Weights | None = None) -> Any:
    """A detector with random norms, or with the weights, and what is frozen."""
    model = build_detector(config, tiny_images(), num_classes=2, seed=1)
    if weights is None:
        randomise_norms(model)
    else:
        load_init(model, config, weights)
    freeze_parts(model, config)
    return model


def frozen_modules(model: Any, config: DetectorConfig) -> dict[str, nn.Module]:
    """The largest submodules of which nothing is trained, by name."""
    modules = {"backbone.body": model.backbone.body}
    modules |= {fpn_place(part): model.get_submodule(fpn_place(part)) for part in config.frozen_fpn}
    if config.neck == "c4" and config.frozen_stages == 5:
        modules["roi_heads.box_head.layer4"] = model.roi_heads.box_head.layer4
    return modules


def is_frozen(name: str, config: DetectorConfig) -> bool:
    parts = ["backbone.body", *map(fpn_place, config.frozen_fpn)]
    parts += ["roi_heads.box_head.layer4"] * (config.frozen_stages == 5)
    return name.startswith(tuple(f"{part}." for part in parts))


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


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, tensors and plain data alike."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


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
