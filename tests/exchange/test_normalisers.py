"""Networks that normalise their input themselves: the mean and the deviation in their buffers are folded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exchange_files import small, trained
from resim.exchange.features import features_of
from resim.exchange.weights import Weights, read_weights
from resim.views.photometric import MEAN, STD

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("thin_resnets")]


def read(tmp_path: Path, names: tuple[str, str], mean: tuple[float, ...], std: tuple[float, ...]) -> Weights:
    """A ResNet-18 below `model.`, next to a normaliser."""
    state = trained(small(levels=())).query.state_dict()
    file = {name.replace("backbone.", "model."): v for name, v in state.items() if name.startswith("backbone.")}
    torch.save(
        file | {n: torch.tensor(v).view(1, 3, 1, 1) for n, v in zip(names, (mean, std), strict=True)}, tmp_path / "w"
    )
    return read_weights(tmp_path / "w")


NORMALISER = ("normalize.mean", "normalize.std")


@torch.no_grad()
def first_map(images: Tensor) -> Tensor:
    backbone = trained(small(levels=())).query.eval().backbone
    return backbone.get_submodule("bn1")(backbone.get_submodule("conv1")(images))


@pytest.mark.parametrize(
    "names", [NORMALISER, ("0.mean", "0.std"), ("pixel_mean", "pixel_std"), ("new_mean", "new_std")]
)
@pytest.mark.parametrize("order", [1, -1], ids=["RGB", "BGR"])
@pytest.mark.parametrize("largest", [1.0, 255.0])
def test_the_normaliser_of_a_network_is_folded(
    tmp_path: Path, names: tuple[str, str], order: int, largest: float
) -> None:
    """The first norm's output for our input is theirs for their input, away from the border."""
    mean, std = (0.5, 0.45, 0.4)[::order], (0.3, 0.25, 0.2)[::order]
    weights = read(tmp_path, names, tuple(largest * v for v in mean), tuple(largest * v for v in std))
    assert weights.warnings[0].startswith(f"its input is {'RGB' if order == 1 else 'BGR'} with mean ")
    assert weights.warnings[0].endswith(f"({names[0]} and {names[1]} in the file)")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = pixels if order == 1 else pixels.flip(1)
    expected = first_map((theirs - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    ours = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    tensors = {name.removeprefix("backbone."): value for name, value in weights.tensors.items()}
    x = torch.nn.functional.conv2d(ours, tensors["conv1.weight"], stride=2, padding=3)
    mean_of_norm, variance, scale, shift = (
        tensors[f"bn1.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    actual = torch.nn.functional.batch_norm(x, mean_of_norm, variance, scale, shift)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(actual[inside], expected[inside], rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("names", "mean", "std"),
    [
        (NORMALISER, MEAN, STD),
        (NORMALISER, tuple(255 * value for value in MEAN), tuple(255 * value for value in STD)),
        (NORMALISER, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # normalises nothing: perhaps another part does
        (("x.running_mean", "x.running_std"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (("normalize.mean", "other.std"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (("bbox_coder.mean", "bbox_coder.std"), (0.0, 0.0, 0.0), (0.1, 0.1, 0.2)),
        (("target_mean", "target_std"), (0.0, 0.0, 0.0), (0.1, 0.1, 0.2)),
    ],
)
def test_our_own_normalisation_changes_nothing(
    tmp_path: Path, names: tuple[str, str], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    weights = read(tmp_path, names, mean, std)
    assert weights.warnings == ()
    state = trained(small(levels=())).query.state_dict()
    assert torch.equal(weights.tensors["backbone.conv1.weight"], state["backbone.conv1.weight"])


def test_a_folded_network_has_the_maps_of_its_own(tmp_path: Path) -> None:
    """With ImageNet's mean folding is exact, borders included."""
    weights = read(tmp_path, NORMALISER, MEAN, tuple(2 * value for value in STD))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.save({f"m.{name.removeprefix('backbone.')}": v for name, v in plain().items()}, tmp_path / "plain.pth")
    expected = features_of(read_weights(tmp_path / "plain.pth"), images / 2)
    actual = features_of(weights, images)
    assert all(torch.allclose(actual[name], expected[name], rtol=0, atol=1e-4) for name in expected)


def test_transformers_wrapper_of_timm_states_its_mean(tmp_path: Path) -> None:
    config = {"model_type": "timm_wrapper", "architecture": "resnet18"}
    settings = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    torch.save({name.replace("backbone.", "timm_model."): v for name, v in plain().items()}, tmp_path / "w.pth")
    (warning,) = read_weights(tmp_path / "w.pth").warnings
    assert warning.startswith(
        "its input is RGB with mean 127.5, 127.5, 127.5 and deviation 127.5, 127.5, 127.5: folded"
    )


def plain() -> dict[str, Tensor]:
    state = trained(small(levels=())).query.state_dict()
    return {name: value for name, value in state.items() if name.startswith("backbone.")}
