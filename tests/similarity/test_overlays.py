"""Principal components and colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resim.draw.colour_map import colour_map
from resim.similarity.components import principal_components
from resim.similarity.feature_maps import FeatureMap, Photograph
from resim.similarity.overlays import component_pictures, heat_picture, oklab_to_srgb
from similarity.maps import photograph, random_map


@pytest.mark.parametrize("channels", [6, 400])
def test_components_equal_those_of_a_singular_value_decomposition(channels: int) -> None:
    maps = [random_map("P4", 160, 96, channels=channels, seed=s) for s in (1, 2)]
    components, fractions = principal_components(maps)
    cells = np.concatenate([(f.cells / f.cells.norm(dim=0)).flatten(1).T.double().numpy() for f in maps])
    left, values, _ = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    projected = np.concatenate([part.flatten(1).T.numpy() for part in components])
    expected = (left * values)[:, :3]
    signs = np.sign((projected * expected).sum(0))
    np.testing.assert_allclose(projected, expected * signs, atol=1e-5)
    np.testing.assert_allclose(fractions.numpy(), values[:3] ** 2 / (values**2).sum(), rtol=1e-5)
    assert [part.shape for part in components] == [(3, 6, 10)] * 2


def test_a_collapsed_map_has_no_components() -> None:
    features = FeatureMap("P4", torch.ones(8, 3, 4), 16)
    (component,), fractions = principal_components([features])
    assert not component.any()
    assert not fractions.any()
    (picture,) = component_pictures([component], 16, [photograph(64, 48)])
    assert (picture == picture[0, 0]).all()


def test_oklab_and_viridis_have_known_colours() -> None:
    # OKLab of sRGB's red, white and black, from the table in its definition
    places = np.array([[0.62796, 0.22486, 0.12585], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    colours = oklab_to_srgb(*places.T)
    np.testing.assert_allclose(colours, [[255, 0, 0], [255, 255, 255], [0, 0, 0]], atol=1)
    assert colour_map(np.array([-5.0, 0.2, 0.4, 9.0]), 0.2, 0.4).tolist() == [
        [68, 1, 84], [68, 1, 84], [253, 231, 37], [253, 231, 37],
    ]  # fmt: skip


def test_a_heat_map_is_blended_with_the_gray_image() -> None:
    image = Photograph("a.png", np.full((16, 32, 3), 100, np.uint8), (32, 16))
    heat = heat_picture(image, torch.tensor([[0.0, 1.0]]), 16, (0.0, 1.0))
    assert heat.shape == (16, 32, 3)
    np.testing.assert_allclose(heat[0, -1], 0.7 * np.array([253, 231, 37]) + 0.3 * 100, atol=1)
    assert (heat[0, 0] != heat[0, -1]).any()
