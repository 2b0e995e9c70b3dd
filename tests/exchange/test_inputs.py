"""Networks with another input than ours are converted by what the file states, and compute the same features."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from exchange_files import small, trained
from needs import need
from resim.cli.main import main
from resim.detection.detector import build_detector
from resim.detection.recipes import quick as quick_detector
from resim.errors import UserError
from resim.exchange.export import export
from resim.exchange.features import features_of
from resim.exchange.names import to_detectron2
from resim.exchange.networks.input_forms import InputForm, fold_input, seems_unnormalised
from resim.exchange.weights import read_weights
from resim.model.backbone import build_backbone
from resim.views.photometric import MEAN, STD

State = dict[str, Tensor]
BGR_MEAN = torch.tensor([103.53, 116.28, 123.675])
pytestmark = pytest.mark.usefixtures("thin_resnets_without_detectron2")


def pixels(size: int = 64) -> Tensor:
    """Images of uint8's values, RGB, (2, 3, size, size)."""
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(3)).float()


def normalised(images: Tensor) -> Tensor:
    """As ours takes them."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return (images / 255 - mean) / std


def norm(x: Tensor, state: State, name: str) -> Tensor:
    """Detectron2's FrozenBatchNorm2d."""
    scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
    shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def detectron2_maps(state: State, images: Tensor, *, stride_in_1x1: bool) -> dict[str, Tensor]:
    """Detectron2's ResNet written out: images are what its preprocessing gives; res2 to res5 as C2 to C5."""
    x = F.relu(norm(F.conv2d(images, state["stem.conv1.weight"], stride=2, padding=3), state, "stem.conv1.norm"))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = {}
    for stage in range(2, 6):
        block = 0
        while f"res{stage}.{block}.conv1.weight" in state:
            at = f"res{stage}.{block}"
            stride = 2 if stage > 2 and block == 0 else 1
            first, middle = (stride, 1) if stride_in_1x1 or f"{at}.conv3.weight" not in state else (1, stride)
            edge = state[f"{at}.conv1.weight"].shape[-1] // 2
            y = F.relu(
                norm(F.conv2d(x, state[f"{at}.conv1.weight"], stride=first, padding=edge), state, f"{at}.conv1.norm")
            )
            y = norm(F.conv2d(y, state[f"{at}.conv2.weight"], stride=middle, padding=1), state, f"{at}.conv2.norm")
            if f"{at}.conv3.weight" in state:
                y = norm(F.conv2d(F.relu(y), state[f"{at}.conv3.weight"]), state, f"{at}.conv3.norm")
            if f"{at}.shortcut.weight" in state:
                x = norm(F.conv2d(x, state[f"{at}.shortcut.weight"], stride=stride), state, f"{at}.shortcut.norm")
            x, block = F.relu(x + y), block + 1
        maps[f"C{stage}"] = x
    return maps


def detectron2_state(name: str) -> State:
    model = trained(small(levels=(), backbone=name)).query.state_dict()
    return {
        theirs: value
        for ours, value in model.items()
        if (theirs := to_detectron2(ours)) and not theirs.endswith("tracked")
    }


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Feature maps agree to float32's rounding, borders included."""
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=0, atol=2e-5 * value.abs().max().item()), name


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "kind"), [("resnet18", "resnet18"), ("resnet50", "resnet50_caffe")])
def test_a_detector_of_detectron2s_zoo(tmp_path: Path, backbone: str, kind: str) -> None:
    state = detectron2_state(backbone)
    file: dict[str, Any] = {f"backbone.bottom_up.{name}": value.numpy() for name, value in state.items()}
    file |= {"pixel_mean": BGR_MEAN.view(3, 1, 1).numpy(), "pixel_std": np.ones((3, 1, 1), np.float32)}
    path = tmp_path / "model_final_f10217.pkl"
    path.write_bytes(pickle.dumps({"model": file, "__author__": "Detectron2 Model Zoo"}))
    weights = read_weights(path)
    assert weights.config.backbone == kind
    expected = detectron2_maps(state, pixels().flip(1) - BGR_MEAN.view(3, 1, 1), stride_in_1x1=True)
    assert_equal(features_of(weights, normalised(pixels())), expected)
    assert weights.warnings[0].startswith(
        "its input is BGR with mean 103.53, 116.28, 123.675 and deviation 1, 1, 1: folded"
    )
    assert ("strides are in the 1 x 1" in weights.warnings[0]) == (backbone == "resnet50")
    if backbone == "resnet50":  # whose strides torchvision and timm have elsewhere: nothing is written wrongly
        for target in ("torchvision", "torchvision-detection", "timm"):
            with pytest.raises(UserError, match=r"resnet50_caffe has its strides in the 1 x 1 convolutions"):
                export(path, target, tmp_path / "out.pth")  # type: ignore[arg-type]
        assert "MODEL.RESNETS.STRIDE_IN_1X1 True" in export(path, "detectron2", tmp_path / "d2.pth").written.load


def test_a_caffe_resnet_has_its_strides_in_the_1x1() -> None:
    with torch.device("meta"):
        network: Any = build_backbone("resnet50_caffe")
    recipe = quick_detector()
    config = dataclasses.replace(recipe.detector, backbone="resnet50_caffe", fpn_width=16)
    detector: Any = build_detector(config, recipe.images, num_classes=2)
    for part in (network, detector.backbone.body):
        for stage in ("layer2", "layer3", "layer4"):
            block = part.get_submodule(stage)[0]
            assert [block.conv1.stride, block.conv2.stride, block.downsample[0].stride] == [(2, 2), (1, 1), (2, 2)]
        assert part.layer1[0].conv1.stride == (1, 1)
    for name in ("resnet18_caffe", "resnet34_caffe", "resnet51_caffe"):
        with pytest.raises(UserError, match=f"no backbone '{name}'"):
            build_backbone(name)


CONFIG = """
INPUT:
  FORMAT: {order}
MODEL:
  PIXEL_MEAN:
  - {mean[0]}
  - {mean[1]}
  - {mean[2]}
  PIXEL_STD: [{std[0]}, {std[1]}, {std[2]}]
  RESNETS:
    STRIDE_IN_1X1: {stride}
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_the_config_of_a_detectron2_run_in_its_folder(tmp_path: Path, order: str) -> None:
    state = detectron2_state("resnet18")
    mean = BGR_MEAN if order == "BGR" else BGR_MEAN.flip(0)
    std = torch.tensor([57.375, 57.12, 58.395]) if order == "BGR" else torch.ones(3)
    torch.save({"model": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / "model_final.pth")
    unstated = read_weights(tmp_path / "model_final.pth")
    assert unstated.warnings[0].startswith("the file does not state whether its input is RGB or BGR")
    text = CONFIG.format(order=order, mean=mean.tolist(), std=std.tolist(), stride="false")
    (tmp_path / "config.yaml").write_text(text)
    weights = read_weights(tmp_path / "model_final.pth")
    images = pixels().flip(1) if order == "BGR" else pixels()
    expected = detectron2_maps(state, (images - mean.view(3, 1, 1)) / std.view(3, 1, 1), stride_in_1x1=False)
    assert_equal(features_of(weights, normalised(pixels())), expected)
    assert "(config.yaml in its folder)" in weights.warnings[0]


META: dict[str, str] = {
    "mmdet 2": "img_norm_cfg = dict(\n    mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
    "model = dict(backbone=dict(type='ResNet', style='caffe'), neck=dict(init_cfg=dict(std=0.01)))",
    "mmdet 3": "model = dict(backbone=dict(style='caffe'), data_preprocessor=dict(bgr_to_rgb=False, mean=[\n"
    "    103.53,\n    116.28,\n    123.675,\n], std=[\n    1.0,\n    1.0,\n    1.0,\n]))",
    "pytorch": "img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)\n"
    "model = dict(backbone=dict(style='pytorch'))",
}


@pytest.mark.slow
@pytest.mark.parametrize("config", list(META))
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_mmdetections_config_within_a_file(tmp_path: Path, config: str, backbone: str) -> None:
    state = detectron2_state(backbone)
    theirs = torchvision.models.get_model(backbone).state_dict().keys()
    model = trained(small(levels=(), backbone=backbone)).query.state_dict()
    file = {f"backbone.{name}": model[f"backbone.{name}"] for name in theirs if not name.startswith("fc.")}
    file["neck.convs.0.weight"] = torch.zeros(1)
    key = "cfg" if config == "mmdet 3" else "config"
    torch.save({"state_dict": file, "meta": {key: META[config], "epoch": 12}}, tmp_path / "epoch_12.pth")
    weights = read_weights(tmp_path / "epoch_12.pth")
    if config == "pytorch":
        assert weights.warnings == ()
        assert weights.config.backbone == backbone
        assert torch.equal(weights.tensors["backbone.conv1.weight"], model["backbone.conv1.weight"])
        return
    expected = detectron2_maps(state, pixels().flip(1) - BGR_MEAN.view(3, 1, 1), stride_in_1x1=True)
    assert_equal(features_of(weights, normalised(pixels())), expected)
    assert "its config, in the file's meta" in weights.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("leaves", ["s b", "gamma beta"], ids=["Detectron 1", "Detectron2"])
def test_caffe2s_blobs(tmp_path: Path, leaves: str) -> None:
    state = detectron2_state("resnet50")
    scale, shift = leaves.split()
    blobs: dict[str, np.ndarray] = {"conv1_b": np.zeros(16, np.float32), "fc1000_w": np.zeros((1000, 2048), np.float32)}
    names = {"weight": scale, "bias": shift, "running_mean": "running_mean", "running_var": "running_var"}
    for name, value in state.items():
        *at, leaf = name.replace(".norm.", ".bn.").split(".")
        kind = f"bn_{names[leaf]}" if at[-1] == "bn" else "w"
        if at[0] == "stem":
            blobs[f"{'res_' if kind != 'w' else ''}conv1_{kind}"] = value.numpy()
        else:
            branch = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}[at[2]]
            blobs[f"{at[0]}_{at[1]}_branch{branch}_{kind}"] = value.numpy()
        if scale == "s" and leaf.startswith("running"):  # which Detectron 1 has not: a scale and a shift
            state[name] = torch.zeros_like(value) if leaf == "running_mean" else torch.full_like(value, 1 - 1e-5)
    if scale == "s":
        blobs = {name: value for name, value in blobs.items() if "running" not in name}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs if scale != "s" else {"blobs": blobs}, protocol=2))
    weights = read_weights(tmp_path / "R-50.pkl")
    assert weights.kind == "Caffe2 backbone (resnet50_caffe)"
    expected = detectron2_maps(state, pixels().flip(1) - BGR_MEAN.view(3, 1, 1), stride_in_1x1=True)
    assert_equal(features_of(weights, normalised(pixels())), expected)


@pytest.mark.slow
def test_another_mean_folds_into_the_first_norm_except_at_the_border(tmp_path: Path) -> None:
    """Pixel values from -1 to 1, as TensorFlow's: mean and deviation 127.5."""
    state = detectron2_state("resnet18")
    model = trained(small(levels=())).query.state_dict()
    save_file(
        {n.removeprefix("backbone."): v for n, v in model.items() if n[:4] == "back"}, tmp_path / "model.safetensors"
    )
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_weights(tmp_path)
    assert "except at the border, where padded zeros are another colour (config.json" in weights.warnings[0]
    expected = detectron2_maps(state, pixels(128) / 127.5 - 1, stride_in_1x1=False)["C2"]
    ours = features_of(weights, normalised(pixels(128)))["C2"]
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # whose fields do not reach the border
    assert_equal({"C2": ours[inner]}, {"C2": expected[inner]})


def photograph_like(count: int = 4, size: int = 64) -> Tensor:
    """Noise that is smooth as photographs are, of pixel values, (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 1, 8, 8, generator=generator) + 0.3 * torch.randn(count, 3, 8, 8, generator=generator)
    return (F.interpolate(noise, size=size, mode="bicubic") * 55 + 115).clamp(0, 255).round()


@pytest.mark.parametrize("frozen", [False, True], ids=["statistics", "affine"])
@pytest.mark.parametrize("form", ["pixels", "normalised"])
def test_the_magnitude_of_the_first_convolution_shows_pixel_values(form: str, frozen: bool) -> None:
    images = photograph_like() - 115 if form == "pixels" else normalised(photograph_like())
    weight = torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(2)) * 0.05
    weight[:32] -= weight[:32].mean(dim=(1, 2, 3), keepdim=True)  # half of them see edges alone
    out = F.conv2d(images, weight, stride=2, padding=3)
    mean, variance = out.mean(dim=(0, 2, 3)), out.var(dim=(0, 2, 3))
    scale = torch.full((64,), 0.3)
    if frozen:  # the statistics are in the scale
        scale, mean, variance = scale / variance.sqrt(), torch.zeros(64), torch.full((64,), 1 - 1e-5)
    tensors = {"backbone.conv1.weight": weight, "backbone.bn1.running_mean": mean}
    tensors |= {"backbone.bn1.running_var": variance, "backbone.bn1.weight": scale}
    assert seems_unnormalised(tensors) == (form == "pixels")


def of_pixel_values(state: State, stem: str, stem_norm: str) -> State:
    """The same network for pixel values with deviation 1, in the same order of channels."""
    state = {name: value.clone() for name, value in state.items()}
    state[stem] /= 57
    state[f"{stem_norm}.running_var"] *= 0.1  # to what photographs give: about 1 for these weights
    return state


@pytest.mark.slow
def test_magnitude_converts_detectron2s_files_and_warns_of_others(tmp_path: Path) -> None:
    state = of_pixel_values(detectron2_state("resnet18"), "stem.conv1.weight", "stem.conv1.norm")
    torch.save({"model": {f"backbone.bottom_up.{name}": value for name, value in state.items()}}, tmp_path / "d2.pth")
    weights = read_weights(tmp_path / "d2.pth")
    expected = detectron2_maps(state, pixels().flip(1) - BGR_MEAN.view(3, 1, 1), stride_in_1x1=True)
    assert_equal(features_of(weights, normalised(pixels())), expected)
    assert "by the magnitude of the first convolution" in weights.warnings[0]
    plain = trained(small(levels=())).query.state_dict()
    plain = {n.removeprefix("backbone."): v for n, v in plain.items() if n.startswith("backbone.")}
    torch.save(of_pixel_values(plain, "conv1.weight", "bn1"), tmp_path / "other.pth")
    assert "its features will be wrong" in read_weights(tmp_path / "other.pth").warnings[0]
    torch.save(plain, tmp_path / "usual.pth")
    assert read_weights(tmp_path / "usual.pth").warnings == ()
    torch.save(plain, tmp_path / "resnet18_caffe-788b5fa3.pth")
    assert "its name contains Caffe" in read_weights(tmp_path / "resnet18_caffe-788b5fa3.pth").warnings[0]


@pytest.mark.slow
def test_every_program_that_reads_weights_reports_conversions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    state = detectron2_state("resnet18")
    file = {f"backbone.{name}": value for name, value in state.items()}
    file |= {"pixel_mean": BGR_MEAN.view(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    torch.save({"model": file}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        read_weights(tmp_path / "w.pth")
    assert re.search(r"w\.pth: its input is BGR with mean 103\.53", caplog.text)
    capsys.readouterr()
    assert main(["import", str(tmp_path / "w.pth")]) == 0
    assert capsys.readouterr().out.startswith("warning: its input is BGR with mean 103.53")


def test_folding_by_hand() -> None:
    """One channel out, one pixel: W' = W[b, g, r] * 255 std; a mean of 0 moves the norm's by -(W . mean)."""
    tensors = {
        "backbone.conv1.weight": torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1),
        "backbone.bn1.running_mean": torch.tensor([5.0]),
    }
    form = InputForm(order="BGR", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
    folded = fold_input(tensors, form)
    expected = torch.tensor([3 * 255 * 0.229, 2 * 255 * 0.224, 1 * 255 * 0.225]).view(1, 3, 1, 1)
    assert torch.allclose(folded["backbone.conv1.weight"], expected)
    assert folded["backbone.bn1.running_mean"].item() == 5
    form = InputForm(order="RGB", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))  # values from 0 to 1
    folded = fold_input(tensors, form)
    assert folded["backbone.bn1.running_mean"].item() == pytest.approx(5 - (0.485 + 2 * 0.456 + 3 * 0.406))


# -- same names and shapes, another computation


def plain_state() -> State:
    return torchvision.models.resnet18().state_dict()


SAYS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda path: (path.parent / "config.json").write_text('{"architecture": "resnetblur18"}'),
    "arch": lambda path: torch.save({"arch": "resnetblur18", "state_dict": plain_state()}, path),
    "arguments": lambda path: torch.save({"args": {"model": "resnetaa34d"}, "state_dict": plain_state()}, path),
    "arguments in arguments": lambda path: torch.save(
        {"hyper_parameters": {"backbone": {"name": "resnetaa34d"}}, "state_dict": plain_state()}, path
    ),
    "name": lambda path: path.rename(path.with_name("resnetblur50-84f4748f.pth")),
}


@pytest.mark.parametrize("where", list(SAYS))
def test_blurred_strides_are_refused_on_any_evidence(tmp_path: Path, where: str) -> None:
    torch.save({"state_dict": plain_state()}, tmp_path / "w.pth")
    SAYS[where](tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"is a resnet(blur18|aa34d|blur50) .*which blurs or averages where it strides"):
        read_weights(next(tmp_path.glob("*.pth")))


@pytest.mark.parametrize("name", ["args", "classifier"])
def test_dilated_stages_are_warned_of(tmp_path: Path, name: str) -> None:
    content: dict[str, Any] = {"model": {f"backbone.0.body.{n}": v for n, v in plain_state().items()}}
    if name == "args":
        content["args"] = {"dilation": True, "lr": 0.1}
    else:
        content["model"]["classifier.0.convs.0.0.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "detr.pth")
    assert "dilated" in read_weights(tmp_path / "detr.pth").warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("resnet18", True), ("resnet18d", False), ("resnet26", False), ("resnet10t", False), ("seresnet18", False),
        ("legacy_seresnet18", False), ("resnetrs50", False), ("resnetv2_18", False), ("resnet50_gn", False),
    ],
)  # fmt: skip
def test_timms_networks_of_similar_names(full_resnets: None, tmp_path: Path, name: str, right: bool) -> None:
    timm: Any = need("timm", "timm's variants of ResNet are read rightly or refused", "timm")
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    if not right:
        with pytest.raises(UserError, match=r"contains|is no"):
            read_weights(tmp_path / "w.pth")
        return
    with torch.no_grad():
        expected = model.forward_features(normalised(pixels()))
    assert_equal(features_of(read_weights(tmp_path / "w.pth"), normalised(pixels())), {"C5": expected})
