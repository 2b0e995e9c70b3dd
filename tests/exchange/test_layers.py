"""A module saved as a whole states its strides, epsilons and layers without weights: read, converted or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from resim.errors import UserError
from resim.exchange.features import differences, features_of
from resim.exchange.networks.layers import fold_epsilons
from resim.exchange.weights import Weights, read_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("thin_resnets"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning"),
]


def resnet(name: str = "resnet18", **settings: Any) -> Any:
    """A ResNet of torchvision's in which no statistic has its initial value."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, **settings).eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.copy_((0.001 if key == "bn1.running_var" else 0.5) + torch.rand(value.shape))
        elif value.dim() == 1:
            value.add_(0.1 * torch.randn(value.shape))
    return network


def read(tmp_path: Path, module: object) -> Weights:
    torch.save(module, tmp_path / "w.pth")
    return read_weights(tmp_path / "w.pth")


@torch.no_grad()
def maps_of(network: Any, images: Tensor) -> dict[str, Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    maps = {}
    for stage in (1, 2, 3, 4):
        x = network.get_submodule(f"layer{stage}")(x)
        maps[f"C{stage + 1}"] = x
    return maps


def assert_same_maps(weights: Weights, network: Any) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    largest = differences(features_of(weights, images), maps_of(network, images))
    assert set(largest) == {"C2", "C3", "C4", "C5"}
    assert max(largest.values()) < 1e-5


def test_a_plain_network_has_no_warning(tmp_path: Path) -> None:
    network = resnet()
    weights = read(tmp_path, {"model": nn.DataParallel(network)})
    assert weights.warnings == ()
    assert_same_maps(weights, network)


def test_strides_in_the_1x1_are_read_as_such(tmp_path: Path) -> None:
    network = resnet("resnet50")
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    weights = read(tmp_path, network)
    assert weights.config.backbone == "resnet50_caffe"
    assert weights.warnings == ("its strides are in the 1 x 1 convolutions, by its layers: read as resnet50_caffe",)
    assert_same_maps(weights, network)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d], ids=["BatchNorm", "frozen"])
@pytest.mark.parametrize("epsilon", [1e-3, 0.0])
def test_another_epsilon_is_folded_into_the_scales(tmp_path: Path, norm: Callable[..., Any], epsilon: float) -> None:
    network = resnet(norm_layer=partial(norm, eps=epsilon))
    weights = read(tmp_path, network)
    assert weights.warnings == (
        f"its norms have an epsilon of {epsilon:g}: folded into their scales, features are the same",
    )
    assert_same_maps(weights, network)


def test_an_epsilon_by_hand() -> None:
    """w' = w sqrt((v + 1e-5) / (v + e)): 2 sqrt(3e-5 / 12e-5) = 1."""
    tensors = {"backbone.bn1.weight": torch.tensor([2.0]), "backbone.bn1.running_var": torch.tensor([2e-5])}
    assert fold_epsilons(tensors, {"bn1": 1e-4})["backbone.bn1.weight"].item() == pytest.approx(1, rel=1e-6)
    assert fold_epsilons(tensors, {}) == tensors


def dilated() -> Any:
    return resnet("resnet50", replace_stride_with_dilation=[False, False, True])


def for_small_images() -> Any:
    network = resnet()
    network.maxpool = nn.Identity()
    return network


def without_stride() -> Any:
    network = resnet()
    network.conv1.stride = (1, 1)
    return network


def with_caffes_pooling() -> Any:
    network = resnet()
    network.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    return network


GEOMETRY: dict[str, tuple[Callable[[], Any], str]] = {
    "dilated": (dilated, "layer4.0.conv2 has stride (1, 1) for (2, 2), layer4.0.downsample.0 has stride (1, 1)"),
    "no pooling": (for_small_images, "maxpool is Identity"),
    "pooling that rounds up": (with_caffes_pooling, "maxpool has ceil mode True for False"),
    "no stride": (without_stride, "conv1 has stride (1, 1) for (2, 2)"),
}


@pytest.mark.parametrize("what", list(GEOMETRY))
def test_maps_of_other_sizes_are_warned_of(tmp_path: Path, what: str) -> None:
    make, message = GEOMETRY[what]
    network = make()
    weights = read(tmp_path, network)
    (warning,) = weights.warnings
    assert warning.startswith(f"it is read as a plain {weights.config.backbone}, and its maps will differ: {message}")
    own = network.state_dict()
    assert all(torch.equal(value, own[name.removeprefix("backbone.")]) for name, value in weights.tensors.items())


class Blur(nn.Module):
    """A layer without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1)


def gelu() -> Any:
    network = resnet()
    network.relu = nn.GELU()
    return network


def reflecting() -> Any:
    network = resnet()
    network.layer1[0].conv1.padding_mode = "reflect"
    return network


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "activation": (gelu, "is no plain resnet18, by its layers: relu is GELU"),
    "padding": (reflecting, "by its layers: layer1.0.conv1 has padding mode reflect for zeros"),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_layers_that_a_plain_network_does_not_have_are_refused(tmp_path: Path, what: str) -> None:
    make, message = OTHERS[what]
    with pytest.raises(UserError) as caught:
        read(tmp_path, make())
    assert message in str(caught.value)


@pytest.mark.parametrize("way", ["saved", "scripted", "traced"])
def test_a_layer_without_weights_between_the_convolutions_is_refused(tmp_path: Path, way: str) -> None:
    network = resnet()
    network.layer3[0].downsample.add_module("aa", Blur())
    if way == "saved":
        torch.save(network, tmp_path / "w.pth")
    else:
        images = torch.zeros(1, 3, 64, 64)
        script = torch.jit.script(network) if way == "scripted" else torch.jit.trace(network, images, check_trace=False)
        torch.jit.save(script, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"is no plain resnet18, by its layers: layer3.0.downsample.aa is Blur;"):
        read_weights(tmp_path / "w.pth")


def test_numbered_parts_are_compared_too(tmp_path: Path) -> None:
    network = resnet()
    parts = nn.Sequential(*list(network.children())[:-1])
    weights = read(tmp_path, parts)
    assert weights.warnings == ()
    assert_same_maps(weights, network)
    parts[3] = nn.AvgPool2d(2)
    with pytest.raises(UserError, match="by its layers: 3 is AvgPool2d"):
        read(tmp_path, parts)


HARMLESS: dict[str, Callable[[Any], None]] = {
    "dropout": lambda network: network.layer1[0].add_module("drop", nn.Dropout2d(0.1)),
    "a head": lambda network: network.add_module(
        "fc", nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 2))
    ),
    "pooling as pairs": lambda network: network.add_module("maxpool", nn.MaxPool2d((3, 3), (2, 2), (1, 1))),
    "an activation after it": lambda network: network.add_module("last", nn.Sigmoid()),
}


@pytest.mark.parametrize("what", list(HARMLESS))
def test_layers_without_effect_on_the_maps_are_no_difference(tmp_path: Path, what: str) -> None:
    network = resnet()
    HARMLESS[what](network)
    weights = read(tmp_path, network)
    assert weights.warnings == ()
    assert_same_maps(weights, network)


def test_frozen_torchscript_says_so(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(resnet())), tmp_path / "w.pth")
    with pytest.raises(UserError, match="is frozen TorchScript, with its weights as constants: save a state_dict"):
        read_weights(tmp_path / "w.pth")


def test_a_module_says_more_than_its_state_dict_next_to_it(tmp_path: Path) -> None:
    network = gelu()
    with pytest.raises(UserError, match="by its layers: relu is GELU"):
        read(tmp_path, {"state_dict": network.state_dict(), "model": network})
    other = {name: value + 1 for name, value in network.state_dict().items()}
    weights = read(tmp_path, {"state_dict": other, "model": network})
    assert torch.equal(weights.tensors["backbone.conv1.weight"], other["conv1.weight"])


# -- modules within other objects


class Average:
    """A moving average as many programs write one: an object with a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.decay, self.owner = module, 0.999, self


class Learner:
    def __init__(self, model: nn.Module, shadow: dict[str, Tensor]) -> None:
        self.model, self.shadow, self.callbacks = model, shadow, [self]


@pytest.mark.parametrize("form", ["object", "in a dictionary", "compiled", "compiled part"])
def test_a_module_within_an_object_is_read(tmp_path: Path, form: str) -> None:
    network = resnet()
    content: Any = {
        "object": lambda: Learner(network, {}),
        "in a dictionary": lambda: {"ema": Average(network), "epoch": 3},
        "compiled": lambda: torch.compile(network),
        "compiled part": lambda: nn.ModuleDict({"encoder": torch.compile(network)}),  # type: ignore[dict-item]
    }[form]()
    weights = read(tmp_path, content)
    assert_same_maps(weights, network)
    assert weights.config.backbone == "resnet18"


def test_a_trained_module_comes_before_its_average_in_an_object(tmp_path: Path) -> None:
    network, average = resnet(), resnet()
    average.conv1.weight.data.zero_()
    weights = read(tmp_path, {"ema": Average(average), "learner": Learner(network, dict(average.state_dict()))})
    assert_same_maps(weights, network)
    assert "others below 'ema.module.', 'learner.shadow.'" in weights.warnings[0]
