"""Norms that are added to an FPN or folded into its convolutions compute the same features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exchange_files import has_equal_maps, own_checkpoint, small
from resim.exchange.export import export
from resim.exchange.features import features_of
from resim.exchange.fpn_norms import with_norms, without_norms
from resim.exchange.weights import read_weights

IMAGES = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_adding_and_folding_norms_keeps_the_features(tmp_path: Path, norm: bool) -> None:
    own_checkpoint(tmp_path / "last.pt", small(norm=norm))
    done = export(
        tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors", fpn_norm="plain" if norm else "batchnorm"
    )
    assert len(done.notes) == 1
    assert ("folded into its convolutions" if norm else "biases were folded into BatchNorm's shift") in done.notes[0]
    weights = read_weights(tmp_path / "w.safetensors")
    assert weights.config.fpn_norm is not norm
    assert weights.recipe is not None
    assert weights.recipe.model.fpn_norm is not norm
    assert has_equal_maps(features_of(read_weights(tmp_path / "last.pt"), IMAGES), features_of(weights, IMAGES))


def test_a_bias_is_the_shift_of_a_norm_that_divides_by_one() -> None:
    plain = {"fpn.lateral5.weight": torch.ones(2, 3, 1, 1), "fpn.lateral5.bias": torch.tensor([3.0, -4.0])}
    normed = with_norms(plain)
    assert normed["fpn.lateral5.1.bias"].tolist() == [3, -4]
    assert normed["fpn.lateral5.1.weight"].tolist() == [1, 1]
    assert normed["fpn.lateral5.1.running_mean"].tolist() == [0, 0]
    assert torch.allclose(normed["fpn.lateral5.1.running_var"], torch.tensor(1 - 1e-5), atol=1e-9)
    back = without_norms(normed)
    assert back.keys() == plain.keys()
    assert all(torch.allclose(back[name], plain[name], rtol=1e-6) for name in plain)


def test_a_norm_folded_by_hand() -> None:
    """y = 2 (x - 1) / sqrt(4) + 5 = x + 4, of a convolution that multiplies by 3."""
    normed = {"fpn.output4.0.weight": torch.full((1, 1, 1, 1), 3.0)}
    leaves = {"weight": 2.0, "bias": 5.0, "running_mean": 1.0, "running_var": 4.0 - 1e-5}
    normed |= {f"fpn.output4.1.{leaf}": torch.tensor([value]) for leaf, value in leaves.items()}
    folded = without_norms(normed)
    assert folded["fpn.output4.weight"].item() == pytest.approx(3)
    assert folded["fpn.output4.bias"].item() == pytest.approx(4)
