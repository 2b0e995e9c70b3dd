# pyright: reportArgumentType=false

"""Shapes and dtypes of the public functions of regions, model and probes, as their docstrings state them.

Within one test a letter is one size: jaxtyping binds it at its first use.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, jaxtyped
from torch import Tensor

from resim.model.config import ModelConfig
from resim.model.encoder import Encoder
from resim.model.infonce import info_nce
from resim.model.keys import map_to_keys
from resim.model.losses import pool_regions
from resim.model.resim import ReSim
from resim.probes.dense import cell_shares, upsample
from resim.probes.knn import knn_votes
from resim.regions.cells import key_cells
from resim.regions.level import Level
from resim.regions.pooling import pooling_weights, precise_roi_pool
from resim.regions.windows import inside_view, map_windows, mirror_boxes, window_grid
from resim.views.views import Views


@pytest.fixture(autouse=True)
def sizes() -> Iterator[None]:
    """One binding of the letters for each test."""
    with jaxtyped("context"):
        yield


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def crops(num_images: int) -> Tensor:
    return torch.tensor([[10.0, 20.0, 90.0, 80.0]]).expand(num_images, 4)


def test_windows_and_their_maps() -> None:
    windows, crops_q, crops_k = window_grid(96, window=32, step=16), crops(3), crops(3) + 5
    assert isinstance(crops_q, Float[Tensor, "N 4"])
    assert isinstance(windows, Float64[Tensor, "R 4"])
    boxes = map_windows(windows, crops_q, crops_k, 96)
    assert isinstance(boxes, Float64[Tensor, "N R 4"])
    assert isinstance(inside_view(boxes, 96), Bool[Tensor, "N R"])
    assert isinstance(mirror_boxes(boxes, 96, torch.tensor([True, False, True])), Float64[Tensor, "N R 4"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling(dtype: torch.dtype) -> None:
    features, boxes = random(2, 5, 6, 7).to(dtype), 16 * random(2, 3, 4).double()
    assert isinstance(features, Float[Tensor, "N C H W"])
    assert isinstance(boxes, Float64[Tensor, "N R 4"])
    pooled = precise_roi_pool(features, boxes, stride=8)
    assert isinstance(pooled, Float[Tensor, "N R C"])
    assert pooled.dtype is dtype
    assert isinstance(pool_regions(features, boxes, 8), Float[Tensor, "N R C"])
    assert isinstance(pooling_weights(boxes, 8, 6, 7), Float64[Tensor, "N R H*W"])
    assert isinstance(key_cells(features), Float[Tensor, "N (H-2)*(W-2) C"])


def test_info_nce() -> None:
    queries, positives, negatives = random(4, 6, 8), random(4, 6, 8), random(4, 9, 8)
    assert isinstance(queries, Float[Tensor, "B n C"])
    assert isinstance(negatives, Float[Tensor, "B M C"])
    contrast = info_nce(queries, positives, negatives)
    assert isinstance(contrast.loss, Float32[Tensor, "B n"])
    assert isinstance(contrast.correct, Bool[Tensor, "B n"])


LEVELS = (Level(name="P4", window=32, step=16, negatives="all"), Level(name="P3", window=32, negatives="group"))
CONFIG = ModelConfig(backbone="resnet18", levels=LEVELS, fpn_width=8, dim=16, queue_size=32, group_size=2)


def test_an_encoder_has_a_vector_and_a_map_for_each_level() -> None:
    images = random(2, 3, 64, 64)
    assert isinstance(images, Float32[Tensor, "N 3 S S"])
    vectors, maps = Encoder(CONFIG)(images)
    assert isinstance(vectors, Float32[Tensor, "N 16"])
    assert isinstance(maps["P4"], Float32[Tensor, "N 8 S//16 S//16"])
    assert isinstance(maps["P3"], Float32[Tensor, "N 8 S//8 S//8"])


def test_the_keys_of_a_step() -> None:
    model = ReSim(CONFIG)
    views_q, views_k = (Views(random(4, 3, 64, 64), crops(4)) for _ in range(2))
    assert isinstance(views_q.images, Float32[Tensor, "N 3 S S"])
    mapped = map_to_keys(LEVELS[0], views_q, views_k)
    assert isinstance(mapped.boxes, Float64[Tensor, "N R 4"])
    assert isinstance(mapped.valid, Bool[Tensor, "N R"])
    keys = model.encode_keys(views_q, views_k)
    assert isinstance(keys.all_vectors.wait(), Float32[Tensor, "N 16"])
    assert isinstance(keys.levels["P4"].positives.wait(), Float32[Tensor, "N R 8"])
    assert isinstance(keys.levels["P4"].cells.wait(), Float32[Tensor, "N*(S//16-2)**2 8"])  # of all processes
    assert isinstance(keys.levels["P3"].cells.wait(), Float32[Tensor, "N (S//8-2)**2 8"])  # of each image
    assert isinstance(model.queue, Float32[Tensor, "32 16"])
    losses = model.query_losses(views_q.images, keys)
    assert all(isinstance(loss, Float32[Tensor, ""]) for loss in losses.values())


def test_probes() -> None:
    bank, queries, labels = random(12, 5), random(7, 5), torch.arange(12) % 3
    assert isinstance(bank, Float[Tensor, "N C"])
    assert isinstance(queries, Float[Tensor, "M C"])
    assert isinstance(labels, Int64[Tensor, "N"])
    assert isinstance(knn_votes(bank, labels, queries, num_classes=3, k=4), Float32[Tensor, "M 3"])


def test_label_maps_and_cells() -> None:
    labels = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    assert isinstance(labels, Int64[Tensor, "N S S"])
    assert isinstance(cell_shares(labels, 3, 4, 5), Float32[Tensor, "N 4*5 3"])
    assert isinstance(upsample(random(2, 3, 4, 4), 32), Float32[Tensor, "N 3 S S"])


def test_a_letter_is_one_size_throughout_a_test() -> None:
    assert isinstance(random(2, 3), Float[Tensor, "N C"])
    assert not isinstance(random(4, 3), Float[Tensor, "N C"])
