"""Features of regions and their similarity, compared with numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resim.errors import UserError
from resim.similarity.feature_maps import FeatureMap, Photograph
from resim.similarity.regions import encoded_region, peak, region_grid, region_vector, similarity_map
from similarity.maps import random_map


def test_at_a_point_the_map_is_interpolated_bilinearly() -> None:
    features = FeatureMap("P4", torch.eye(6).reshape(6, 2, 3), 16)
    vector = region_vector(features, (16.0, 0.0))
    torch.testing.assert_close(vector, torch.eye(6)[1])
    # a quarter of the way from cell 1 to cell 2 and half the way down
    vector = region_vector(features, (20.0, 8.0))
    weights = torch.tensor([0.0, 0.75, 0.25, 0.0, 0.75, 0.25])
    torch.testing.assert_close(vector, weights / weights.norm())
    # beyond the last cell it is repeated
    torch.testing.assert_close(region_vector(features, (47.0, 31.0)), torch.eye(6)[5])


def test_every_point_of_a_map_of_one_cell_has_its_feature() -> None:
    features = FeatureMap("C5", torch.tensor([3.0, 4.0]).reshape(2, 1, 1), 32)
    torch.testing.assert_close(region_vector(features, (20.0, 5.0)), torch.tensor([0.6, 0.8]))


def test_a_box_is_pooled_precisely() -> None:
    features = FeatureMap("P4", torch.eye(9).reshape(9, 3, 3), 16)
    # from the first cell to the next in both directions: the integral of each hat function is 1/2
    vector = region_vector(features, (0.0, 0.0, 16.0, 16.0))
    expected = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(vector, expected / expected.norm())


def test_a_region_is_most_similar_to_itself() -> None:
    features = random_map("P3", 333, 500)
    vector = region_vector(features, (20 * 8.0, 30 * 8.0))
    similarity = similarity_map(vector, features)
    assert peak(similarity, 8) == (160.0, 240.0)
    assert float(similarity.max()) == pytest.approx(1.0, abs=1e-6)
    cells = features.cells / features.cells.norm(dim=0)
    assert float(similarity[7, 11]) == pytest.approx(float(vector @ cells[:, 7, 11]), abs=1e-6)


def test_regions_are_in_px_of_the_file() -> None:
    image = Photograph("a.jpg", np.zeros((50, 100, 3), np.uint8), (400, 200))
    assert encoded_region(image, (400.0, 100.0)) == (100.0, 25.0)
    assert encoded_region(image, (0.0, 40.0, 200.0, 200.0)) == (0.0, 10.0, 50.0, 50.0)
    for region in ((401.0, 3.0), (-1.0, 3.0), (0.0, 0.0, 0.0, 5.0), (10.0, 10.0, 5.0, 20.0), (0.0, 0.0, 10.0, 201.0)):
        with pytest.raises(UserError, match=r"a\.jpg is 400 x 200 px"):
            encoded_region(image, region)


def test_an_image_smaller_than_a_window_is_one_region() -> None:
    assert region_grid(30, 20, window=48, step=16).tolist() == [[0.0, 0.0, 30.0, 20.0]]
