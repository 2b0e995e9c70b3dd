"""A ResNet is recognised below any prefix and under its usual names, with its FPN; another head is left over."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from exchange_files import small, trained
from resim.errors import UserError
from resim.exchange.features import features_of
from resim.exchange.networks.recognise import words_of
from resim.exchange.weights import Weights, read_weights
from resim.regions.level import Level

State = dict[str, Tensor]
TOP = 128  # channels of C5
pytestmark = pytest.mark.usefixtures("thin_resnets")


def backbone(seed: int = 0) -> State:
    """A ResNet-18 with statistics of its own, under torchvision's names."""
    state = trained(small(levels=()), seed).query.state_dict()
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def read(tmp_path: Path, content: object) -> Weights:
    torch.save(content, tmp_path / "w.pth")
    return read_weights(tmp_path / "w.pth")


def assert_is(weights: Weights, state: State) -> None:
    own = {name.removeprefix("backbone."): v for name, v in weights.tensors.items() if name.startswith("backbone.")}
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own)


# -- where it is


def nested(keys: str, state: State) -> dict[str, Any]:
    """{"a": {"b": state}} of "a/b"."""
    content: Any = state
    for key in reversed(keys.split("/")):
        content = {key: content}
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        ("model_ema", "module."),
        ("net", "module."),
        ("backbone", ""),
        ("checkpoint", "module.backbone."),
        ("model/state_dict", ""),
        ("classy_state_dict/base_model/model/trunk", "_feature_blocks."),
        ("online_network_state_dict", "encoder."),
        ("state_dict", "model.student.module.net."),
        ("state_dict", "module._orig_mod.encoder."),
        ("state_dict", "encoder.module._orig_mod."),
        ("a/b/c/d", "e.f.g."),
    ],
)
def test_below_any_keys_and_any_prefix(tmp_path: Path, keys: str, prefix: str) -> None:
    others = {"epoch": 3, "optimizer": {"state": {0: {"momentum": torch.zeros(2)}}}}
    weights = read(tmp_path, others | nested(keys, below(prefix, backbone())))
    assert_is(weights, backbone())
    assert weights.left_over == ()
    assert weights.warnings == ()


def test_a_dictionary_for_each_module(tmp_path: Path) -> None:
    tree: dict[str, Any] = {}
    for name, value in backbone().items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    assert_is(read(tmp_path, {"params": {"encoder": tree}}), backbone())


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0, 2], ids=["maxpool left out", "all children"])
def test_numbered_parts(tmp_path: Path, gap: int) -> None:
    """`nn.Sequential(*resnet.children())` of lightly has 0, 1, 4 to 7; without ReLU and pooling 0 to 5."""
    network = torchvision.models.resnet18()
    network.load_state_dict(backbone(), strict=False)
    children = list(network.children())[:-2]
    parts = nn.Sequential(*(children if gap else children[:2] + children[4:]))
    state = below("backbone.", dict(parts.state_dict())) | {"projection_head.layers.0.weight": torch.zeros(2, 2)}
    weights = read(tmp_path, {"state_dict": state})
    assert_is(weights, backbone())
    assert weights.left_over == ("projection_head.layers.0.weight",)
    assert "numbered parts" in weights.kind


@pytest.mark.slow
def test_the_names_of_transformers(tmp_path: Path) -> None:
    state: State = {}
    for name, value in backbone().items():
        at, _, leaf = name.rpartition(".")
        stem = re.fullmatch(r"(conv|bn)1", at)
        kinds = {"conv": "convolution", "bn": "normalization"}
        if stem:
            theirs = f"embedder.embedder.{kinds[stem[1]]}"
        else:
            stage, block, part = re.fullmatch(r"layer(\d)\.(\d)\.(.+)", at).groups()  # type: ignore[union-attr]
            if part.startswith("downsample"):
                inner = f"shortcut.{'convolution' if part[-1] == '0' else 'normalization'}"
            else:
                inner = f"layer.{int(part[-1]) - 1}.{kinds[part[:-1]]}"
            theirs = f"encoder.stages.{int(stage) - 1}.layers.{block}.{inner}"
        state[f"resnet.{theirs}.{leaf}"] = value
    weights = read(tmp_path, state | {"classifier.1.weight": torch.zeros(2, 512)})
    assert_is(weights, backbone())
    assert weights.left_over == ("classifier.1.weight",)


@pytest.mark.slow
def test_counters_of_a_profiler_are_no_part_of_a_network(tmp_path: Path) -> None:
    extra = {name: torch.zeros(1) for name in ("total_ops", "layer1.0.conv1.total_ops", "bn1.total_params")}
    assert_is(read(tmp_path, backbone() | extra), backbone())


# -- which of several


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("encoderQ.", "encoderK."),
        ("module.encoder.", "module.encoder_k."),
        ("base_encoder.", "momentum_encoder."),
        ("online_network.net.", "target_network.net."),
        ("modelStudent.", "modelTeacher."),
        ("backbone.", "backbone_momentum."),
        ("model.", "model_ema."),
        ("long.name.of.a.student.", "k."),
        ("rgb.", "depth."),
    ],
)
@pytest.mark.parametrize("copy_first", [False, True])
def test_the_trained_network_comes_before_its_copy(tmp_path: Path, taken: str, other: str, copy_first: bool) -> None:
    parts = [below(taken, backbone(1)), below(other, backbone(2))]
    first, last = reversed(parts) if copy_first and taken != "rgb." else parts
    weights = read(tmp_path, {"state_dict": first | last})
    assert_is(weights, backbone(1))
    assert weights.warnings == (
        f"the network below {taken!r} is read; there are others below {other!r}: resim import {weights.path} --prefix "
        f"{other} --out w-{other.strip('.').replace('.', '-').replace('_', '-')}.pt writes one of them to a file that "
        "every verb reads in place of this one",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("ema", "net")]
)
def test_copies_in_other_dictionaries(tmp_path: Path, first: str, second: str) -> None:
    copy_first = first == "ema"
    weights = read(tmp_path, {first: backbone(1 + copy_first), second: backbone(2 - copy_first)})
    assert_is(weights, backbone(1))
    assert f"others below '{first if copy_first else second}.'" in weights.warnings[0]


def test_words_of_a_prefix() -> None:
    assert words_of("module.encoderQ.net_2.") == {"module", "encoder", "q", "net", "2"}


# -- heads


@pytest.mark.slow
def test_another_head_is_left_over(tmp_path: Path) -> None:
    linear, norm = nn.Linear, nn.BatchNorm1d
    heads = {
        "module.encoder.fc.": nn.Sequential(linear(TOP, TOP, bias=False), norm(TOP), nn.ReLU(), linear(TOP, 64)),
        "module.base_encoder.fc.": nn.Sequential(
            linear(TOP, 96, bias=False), norm(96), nn.ReLU(), linear(96, 8, bias=False)
        ),
        "module.encoder_q.fc.": nn.Sequential(linear(TOP, 96), nn.ReLU(), linear(96, 8)),  # another width
        "encoder_q.fc.": nn.Sequential(linear(TOP, TOP, bias=False), nn.ReLU(), linear(TOP, 8, bias=False)),
        "backbone.fc.": linear(TOP, 10),
    }
    for prefix, head in heads.items():
        fc = below(prefix, dict(head.state_dict()))
        weights = read(tmp_path, {"arch": "resnet18", "state_dict": below(prefix.removesuffix("fc."), backbone()) | fc})
        assert_is(weights, backbone())
        assert set(weights.left_over) == set(fc)
        assert not any(name.startswith("head.") for name in weights.tensors)
    head = below(
        "head.", dict(nn.Sequential(linear(TOP, 32), nn.ReLU(), linear(32, 8)).state_dict())
    )  # as others name it
    assert set(read(tmp_path, below("backbone.", backbone()) | head).left_over) == set(head)


# -- feature pyramids


def feature_maps(network: BackboneWithFPN, levels: dict[str, str], images: Tensor) -> State:
    with torch.no_grad():
        return {levels[name]: value for name, value in network.eval()(images).items() if name in levels}


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["Faster R-CNN", "RetinaNet", "FCOS"])
def test_the_levels_of_torchvisions_detectors(tmp_path: Path, detector: str) -> None:
    """Faster R-CNN's FPN begins at C2, those of RetinaNet and FCOS at C3."""
    first = 2 if detector == "Faster R-CNN" else 3
    extra = {"Faster R-CNN": None, "RetinaNet": LastLevelP6P7(256, 256), "FCOS": LastLevelP6P7(256, 256)}[detector]
    body = torchvision.models.resnet18()
    body.load_state_dict(backbone(), strict=False)
    stages = {f"layer{level - 1}": str(level) for level in range(first, 6)}
    widths = [16 * 2 ** (level - 2) for level in range(first, 6)]
    network = BackboneWithFPN(body, stages, widths, 256, extra_blocks=extra)
    weights = read(tmp_path, {"model": below("backbone.", dict(network.state_dict()))})
    assert [level.name for level in weights.config.levels] == ["P5", "P4", "P3"]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = feature_maps(network, {str(level): f"P{level}" for level in (3, 4, 5)}, images)
    ours = features_of(weights, images)
    for name, value in expected.items():
        assert torch.allclose(ours[name], value, atol=1e-5), name
    assert all(re.search(r"fpn\.(extra_blocks|(inner|layer)_blocks\.0\.)", name) for name in weights.left_over)


def of_backbone(state: State) -> State:
    return {name: value for name, value in state.items() if name.startswith("backbone.")}


def pyramid_of(weights_model: Any, form: str, first: int, *, norm: bool) -> State:
    """Our FPN under MMDetection's names, or Detectron2's RetinaNet's."""
    state: State = {}
    for name, value in weights_model.state_dict().items():
        match = re.fullmatch(r"fpn\.(lateral|output)(\d)\.(?:([01])\.)?(\w+)", name)
        if match is None:
            continue
        part, level, place, leaf = match.groups()
        if form == "mmdet":
            kind = {"lateral": "lateral_convs", "output": "fpn_convs"}[part]
            state[f"neck.{kind}.{int(level) - first}.{'bn' if place == '1' else 'conv'}.{leaf}"] = value
        else:
            state[f"backbone.fpn_{part}{level}.{'norm.' if norm and place == '1' else ''}{leaf}"] = value
    return state


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("first", [2, 3])
def test_mmdetections_pyramid(tmp_path: Path, first: int, norm: bool) -> None:
    levels = (Level(name="P5"), Level(name="P4"), Level(name="P3"))
    model = trained(small(norm=norm, levels=levels)).query
    state = of_backbone(model.state_dict())
    state |= pyramid_of(model, "mmdet", first, norm=norm)
    more = {f"neck.fpn_convs.{6 - first}.conv.weight": torch.zeros(256, 256, 3, 3)}
    more |= {"bbox_head.conv.weight": torch.zeros(1)}
    if first == 2:
        more |= {"neck.lateral_convs.0.conv.weight": torch.zeros(256, 16, 1, 1)}
    weights = read(tmp_path, {"state_dict": state | more, "meta": {}})
    expected = {name: value for name, value in model.state_dict().items() if name.startswith(("backbone.", "fpn."))}
    assert weights.tensors.keys() == expected.keys()
    assert all(torch.equal(weights.tensors[name], value) for name, value in expected.items())
    assert set(weights.left_over) == set(more)
    assert weights.kind.startswith("MMDetection's detector (resnet18 with an FPN")


@pytest.mark.slow
def test_a_pyramid_that_computes_something_else_is_left_over(tmp_path: Path) -> None:
    model = trained(small()).query
    state = of_backbone(model.state_dict())
    pyramid = pyramid_of(model, "mmdet", 3, norm=False)
    for more, note in (
        ({"neck.downsample_convs.0.conv.weight": torch.zeros(1)}, "its FPN is not a plain one and is left over"),
        ({"neck.fpn_convs.0.gn.weight": torch.zeros(256)}, "its FPN has norms other than BatchNorm and is left over"),
    ):
        weights = read(tmp_path, {"state_dict": state | pyramid | more})
        assert weights.warnings == (note,)
        assert all(name.startswith("backbone.") for name in weights.tensors)


@pytest.mark.slow
def test_the_pyramid_of_another_network_is_not_taken(tmp_path: Path) -> None:
    model = trained(small()).query
    pyramid = below("teacher.", pyramid_of(model, "mmdet", 3, norm=False))
    state = below("student.backbone.", backbone(1)) | below("teacher.backbone.", backbone(2)) | pyramid
    weights = read(tmp_path, {"state_dict": state})
    assert_is(weights, backbone(1))
    assert weights.config.levels == ()


# -- files without a ResNet


OTHERS: dict[str, tuple[Any, str]] = {
    "transformer": ({"state_dict": {"blocks.0.attn.qkv.weight": torch.zeros(3)}}, "resembles a vision transformer"),
    "keys": ({"net": {"a.weight": torch.zeros(1)}, "epoch": 3}, "keys at its top: 'net', 'epoch'"),
    "place": ({"net": {"a.weight": torch.zeros(1)}}, "1 entry below net."),
    "no tensors": ({"epoch": 3, "lr": 0.1}, "no tensors at all (its keys are 'epoch', 'lr')"),
    "cut": (
        lambda: OrderedDict((name, value) for name, value in backbone().items() if name[:6] != "layer4"),
        "without its last stage (layer4)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(OTHERS))
def test_a_file_without_a_resnet_is_described(tmp_path: Path, what: str) -> None:
    content, message = OTHERS[what]
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path, content() if callable(content) else content)
