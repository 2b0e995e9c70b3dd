"""Mutual nearest regions of two images."""

from __future__ import annotations

import torch

from resim.similarity.feature_maps import FeatureMap
from resim.similarity.matches import mutual_nearest
from resim.similarity.regions import region_grid, region_vector
from similarity.maps import random_map


def test_mutual_nearest_regions_equal_an_exhaustive_search() -> None:
    a, b = random_map("P4", 160, 96, seed=1), random_map("P4", 112, 128, seed=2)
    matches = mutual_nearest(a, b, (160, 96), (112, 128), count=1000)
    windows_a, windows_b = region_grid(160, 96, window=48, step=16), region_grid(112, 128, window=48, step=16)
    vectors_a = [region_vector(a, tuple(window.tolist())) for window in windows_a]
    vectors_b = [region_vector(b, tuple(window.tolist())) for window in windows_b]
    pairs = set()
    for i, one in enumerate(vectors_a):
        nearest = max(range(len(vectors_b)), key=lambda j: float(one @ vectors_b[j]))
        if i == max(range(len(vectors_a)), key=lambda k: float(vectors_a[k] @ vectors_b[nearest])):
            pairs.add((tuple(windows_a[i].tolist()), tuple(windows_b[nearest].tolist())))
    assert matches.num_mutual == len(pairs) > 3
    assert matches.num_regions == (len(windows_a), len(windows_b)) == (8 * 4, 5 * 6)
    boxes = zip(matches.boxes_a.tolist(), matches.boxes_b.tolist(), strict=True)
    assert {(tuple(one), tuple(other)) for one, other in boxes} <= pairs
    assert (matches.similarity.diff() <= 0).all()
    for boxes in (matches.boxes_a, matches.boxes_b):
        distance = (boxes[:, None, :2] - boxes[None, :, :2]).abs().amax(dim=-1) + 1e9 * torch.eye(len(boxes))
        assert float(distance.min()) >= 48


def test_a_shifted_map_is_matched_with_its_shift() -> None:
    whole = torch.randn(16, 20, 24, generator=torch.Generator().manual_seed(0))
    a, b = FeatureMap("P3", whole[:, :14, :18].contiguous(), 8), FeatureMap("P3", whole[:, 3:17, 5:23].contiguous(), 8)
    matches = mutual_nearest(a, b, (144, 112), (144, 112), count=8)
    # windows end on cells, so cells beyond their edges have weight 0
    shift = matches.boxes_a - matches.boxes_b
    assert torch.equal(shift, torch.tensor([40.0, 24.0, 40.0, 24.0], dtype=torch.float64).expand(len(shift), 4))
    assert float(matches.similarity.min()) > 0.999
