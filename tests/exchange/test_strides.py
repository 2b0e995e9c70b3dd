"""Networks with a ResNet's names and shapes that compute something else: refused, converted or warned of."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exchange_files import small, trained
from resim.errors import UserError
from resim.exchange.weights import read_weights
from resim.views.photometric import MEAN, STD

State = dict[str, Tensor]


def backbone(seed: int = 0, name: str = "resnet18") -> State:
    """A ResNet with statistics of its own, under torchvision's names."""
    state = trained(small(backbone=name, levels=()), seed).query.state_dict()
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


def saved(folder: Path, content: object, **texts: Any) -> Path:
    """A file of torch.save, and JSON files in its folder."""
    for name, value in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def to_transformers(name: str) -> str:
    """The name of torchvision's in Hugging Face's ResNetModel, written out."""
    leaf = {"conv": "convolution", "bn": "normalization"}
    stem = re.fullmatch(r"(conv|bn)1\.(\w+)", name)
    if stem:
        return f"resnet.embedder.embedder.{leaf[stem[1]]}.{stem[2]}"
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)
    assert block is not None
    part = re.sub(r"^(conv|bn)(\d)\.", lambda m: f"layer.{int(m[2]) - 1}.{leaf[m[1]]}.", block[3])
    part = part.replace("downsample.0.", "shortcut.convolution.").replace("downsample.1.", "shortcut.normalization.")
    return f"resnet.encoder.stages.{int(block[1]) - 1}.layers.{block[2]}.{part}"


# -- strides and blurs that a config states


@pytest.mark.parametrize(
    ("content", "config"),
    [
        ({}, {"architecture": "resnet18", "model_args": {"aa_layer": "blurpool"}}),
        ({"args": argparse.Namespace(model="resnet18", model_kwargs={"aa_layer": "avg"})}, {}),
        ({"hyper_parameters": {"model_args": {"aa_layer": "blur"}}}, {}),
    ],
)
def test_a_blur_among_the_arguments_is_refused(tmp_path: Path, content: dict[str, Any], config: dict[str, Any]) -> None:
    path = saved(tmp_path, {"state_dict": backbone(), **content}, config=config)
    with pytest.raises(UserError, match="blurs or averages where it strides"):
        read_weights(path)


def test_no_blur_is_no_fault(tmp_path: Path) -> None:
    content = {"state_dict": backbone(), "args": argparse.Namespace(model_kwargs={"aa_layer": None})}
    assert read_weights(saved(tmp_path, content)).warnings == ()


@pytest.mark.slow
def test_transformers_strides_are_its_config(tmp_path: Path) -> None:
    state = {to_transformers(name): value for name, value in backbone(name="resnet50").items()}
    config = {"model_type": "resnet", "layer_type": "bottleneck"}
    plain = read_weights(saved(tmp_path, state, config=config))
    assert (plain.config.backbone, plain.warnings) == ("resnet50", ())
    caffe = read_weights(saved(tmp_path, state, config=config | {"downsample_in_bottleneck": True}))
    assert caffe.config.backbone == "resnet50_caffe"
    assert "strides are in the 1 x 1 convolutions" in caffe.warnings[0]
    assert all(torch.equal(value, caffe.tensors[name]) for name, value in plain.tensors.items())
    with pytest.raises(UserError, match="strides in its first stage"):
        read_weights(saved(tmp_path, state, config=config | {"downsample_in_first_stage": True}))


def test_transformers_mean_and_deviation_are_its_preprocessor_s(tmp_path: Path) -> None:
    state = {to_transformers(name): value for name, value in backbone().items()}
    images = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.125]}
    weights = read_weights(saved(tmp_path, state, config={"model_type": "resnet"}, preprocessor_config=images))
    assert "deviation 127.5, 63.75, 31.875" in weights.warnings[0]
    scale = torch.tensor(STD) / torch.tensor([0.5, 0.25, 0.125])
    expected = backbone()["conv1.weight"] * scale.view(1, 3, 1, 1)
    assert torch.allclose(weights.tensors["backbone.conv1.weight"], expected, rtol=1e-6, atol=0)


def test_timm_s_training_arguments_state_mean_and_deviation(tmp_path: Path) -> None:
    args = argparse.Namespace(model="resnet18", mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    weights = read_weights(saved(tmp_path, {"state_dict": backbone(), "args": args}))
    assert "RGB with mean 127.5, 127.5, 127.5" in weights.warnings[0]
    usual = argparse.Namespace(model="resnet18", mean=list(MEAN), std=list(STD))
    assert read_weights(saved(tmp_path, {"state_dict": backbone(), "args": usual})).warnings == ()


MMDET = "backbone=dict(type='ResNet', strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)), mean=[123.675, 116.28, 103.53], "
DILATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DETR of transformers": ({}, {"model_type": "detr", "dilation": True}),
    "timm": ({}, {"architecture": "resnet18", "model_args": {"output_stride": 8}}),
    "MMDetection": ({"meta": {"cfg": MMDET + "std=[58.395, 57.12, 57.375], to_rgb=True"}}, {}),
    "torchvision's FCN": ({"classifier.0.weight": torch.zeros(512, 2048, 3, 3)}, {}),
}


@pytest.mark.parametrize("what", list(DILATED))
def test_dilated_networks_are_warned_of(tmp_path: Path, what: str) -> None:
    more, config = DILATED[what]
    tensors = {name: value for name, value in more.items() if isinstance(value, Tensor)}
    content = {"state_dict": backbone() | tensors, **{k: v for k, v in more.items() if k not in tensors}}
    (warning,) = read_weights(saved(tmp_path, content, config=config)).warnings
    assert "dilated" in warning


MMSEG = "strides=[8, 16, 32], backbone=dict(strides=(1, 2, 1, 1)), mean=[123.675, 116.28, 103.53], "
OTHER_STRIDES: dict[str, tuple[dict[str, Any], str]] = {
    "torchvision": (
        {"hyper_parameters": {"backbone_kwargs": {"replace_stride_with_dilation": [False, False, True]}}},
        "it has dilated stages in place of strides (by backbone_kwargs in hyper_parameters); it is read with strides",
    ),
    "none of the stages": ({"args": {"replace_stride_with_dilation": [False, False, False]}}, ""),
    "person search": ({"cfg": {"last_stride": 1}}, "its last stage has no stride (by cfg); it is read with strides"),
    "config": (
        {"meta": {"config": MMSEG + "std=[58.395, 57.12, 57.375], to_rgb=True"}},
        "its stages have the strides 1, 2, 1, 1 (by its config); it is read with strides",
    ),
    "usual config": ({"meta": {"config": MMSEG.replace("2, 1, 1", "2, 2, 2") + "std=[58.395, 57.12, 57.375]"}}, ""),
    "DeepLab": ({"model": {"decoder.0.convs.0.0.weight": torch.zeros(1)}}, "it is a segmentation network, whose last"),
}


@pytest.mark.parametrize("what", list(OTHER_STRIDES))
def test_strides_that_settings_state_are_warned_of(tmp_path: Path, what: str) -> None:
    content, message = OTHER_STRIDES[what]
    network = {f"encoder.{name}": value for name, value in backbone().items()}
    content = {**content, "model": network | content.get("model", {})}
    warnings = read_weights(saved(tmp_path, content)).warnings
    assert [warning.startswith(message) for warning in warnings] == [True] * bool(message)


def test_detectron2_s_dilation_is_in_its_config_yaml(tmp_path: Path) -> None:
    renamed = {}
    for name, value in backbone().items():
        name = re.sub(r"^(conv|bn)1\.", lambda m: f"stem.conv1.{'norm.' if m[1] == 'bn' else ''}", name)
        name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        renamed[name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")] = value
    path = saved(tmp_path, {"model": renamed, "__author__": "torchvision"})
    assert read_weights(path).warnings == ()
    (tmp_path / "config.yaml").write_text("MODEL:\n  RESNETS:\n    RES5_DILATION: 2\n")
    assert "dilated stages in place of strides (by its config)" in read_weights(path).warnings[0]


def test_modules_between_the_stages_are_warned_of(tmp_path: Path) -> None:
    state = backbone() | {"bam1.gate.weight": torch.zeros(3), "bam2.gate.weight": torch.zeros(3)}
    weights = read_weights(saved(tmp_path, state | {"fc.weight": torch.zeros(3, 512)}))
    message = "it has bam1, bam2 too, unlike a plain ResNet: if they are between its stages, its features differ"
    assert weights.warnings == (message,)


# -- what is no ResNet with BatchNorm, or no file of weights


def renamed(state: State, pattern: str, by: str) -> State:
    return {re.sub(pattern, by, name): value for name, value in state.items()}


REFUSED: dict[str, tuple[Any, str]] = {
    "GroupNorm": (
        {name: value for name, value in backbone().items() if not re.search("running|tracked", name)},
        "is no resnet18 with BatchNorm: its norms have no running statistics",
    ),
    "pruned": (renamed(backbone(), r"(conv\d\.weight)$", r"\1_orig"), "a network with parametrised weights"),
    "optimizer": ({"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}, "state of an optimizer"),
    "FSDP": ({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, "save a full state_dict"),
    "video": ({"layer1.0.conv1.0.weight": torch.zeros(1)}, "a ResNet for video"),
    "MobileNet of torchvision": ({"features.1.block.0.0.weight": torch.zeros(1)}, "resembles a MobileNet"),
    "MobileNet of timm": ({"blocks.1.0.conv_dw.weight": torch.zeros(1)}, "resembles an EfficientNet or MobileNet"),
    "Swin": ({"layers.0.blocks.0.attn.qkv.weight": torch.zeros(1)}, "resembles a Swin transformer"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_the_message_names_the_other_network(tmp_path: Path, what: str) -> None:
    content, message = REFUSED[what]
    with pytest.raises(UserError, match=re.escape(message)):
        read_weights(saved(tmp_path, content))


TEXTS: dict[str, tuple[bytes, str]] = {
    "a web page after blank lines": (b"\n\n<!doctype html><html>", "is a web page"),
    "an error of a server": (b'{"message": "Not Found"}', "is a text file, not a file of weights"),
    "ONNX under another name": (b"\x08\x08\x12\x07pytorch\x1a\x01", "is an ONNX file"),
    "an object of NumPy's": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", "is a file of NumPy's (.npy)"),
}


@pytest.mark.parametrize("what", list(TEXTS))
def test_the_message_names_other_kinds_of_files(tmp_path: Path, what: str) -> None:
    content, message = TEXTS[what]
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_weights(tmp_path / "model.pth")


def test_a_truncated_archive_is_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"2000 bytes; a truncated zip archive: download"):
        read_weights(path)


@pytest.mark.slow
def test_names_as_bytes_are_read(tmp_path: Path) -> None:
    state = backbone()
    content = {b"model": {name.encode(): value.numpy() for name, value in state.items()}, b"epoch": np.int64(3)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=2))
    weights = read_weights(tmp_path / "model.pkl")
    assert all(torch.equal(weights.tensors[f"backbone.{name}"], value) for name, value in state.items())


@pytest.mark.slow
def test_one_network_under_two_names_is_no_other_network(tmp_path: Path) -> None:
    state, key = backbone(1), backbone(2)
    both = {f"{place}.{name}": value for place in ("encoder_q.0", "backbone") for name, value in state.items()}
    content = both | {f"encoder_k.0.{name}": value for name, value in key.items()}
    (warning,) = read_weights(saved(tmp_path, {"state_dict": content})).warnings
    assert warning.startswith(
        "the network below 'encoder_q.0.' is read; there are others below 'encoder_k.0.': resim import"
    )
