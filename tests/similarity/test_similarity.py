"""Similarity of regions: where a cell lies in its image, and numbers against ones worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resim import recipes
from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.similarity.feature_maps import (
    FeatureMap,
    Photograph,
    at_pixels,
    feature_maps,
    level_maps,
    load_photograph,
    stride_of,
)
from resim.similarity.heat import colour_map, component_pictures, heat_picture, oklab_to_srgb
from resim.similarity.similarity import (
    encoded_region,
    mutual_nearest,
    peak,
    principal_components,
    region_grid,
    region_vector,
    similarity_map,
)
from resim.views.photometric import MEAN, STD

SIZES = ((333, 500), (500, 349), (128, 128), (70, 33))
LEVELS = ("P3", "P4", "P5", "C4+conv")


def photograph(width: int, height: int) -> Photograph:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photograph("image.png", pixels, (width, height))


def random_map(level: str, width: int, height: int, *, channels: int = 8, seed: int = 0) -> FeatureMap:
    stride = stride_of(level)
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, -(-height // stride), -(-width // stride))
    return FeatureMap(level, torch.randn(shape, generator=generator), stride)


# -- where a cell lies


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_peak_of_a_map_is_drawn_at_its_cell_times_the_stride(level: str, size: tuple[int, int]) -> None:
    width, height = size
    stride = stride_of(level)
    rows, columns = -(-height // stride), -(-width // stride)
    for row in range(rows):
        for column in range(columns):
            cells = torch.zeros(rows, columns)
            cells[row, column] = 1.0
            assert peak(cells, stride) == (column * stride, row * stride)
            drawn = at_pixels(cells, stride, width, height)
            y, x = divmod(int(drawn.argmax()), width)
            # half a cell is what must hold; it is half a pixel, where a map stretched over the image is half a cell off
            assert abs(x + 0.5 - column * stride) <= 0.5
            assert abs(y + 0.5 - row * stride) <= 0.5


def test_pixels_are_read_between_cells_by_hand() -> None:
    cells = torch.tensor([[0.0, 1.0, 3.0]])
    # at stride 4 pixel centres lie at cells 0.125, 0.375, 0.625, 0.875, 1.125, ...; past the last cell its value counts
    expected = [0.125, 0.375, 0.625, 0.875, 1.25, 1.75, 2.25, 2.75, 3.0, 3.0, 3.0]
    torch.testing.assert_close(at_pixels(cells, 4, 11, 2), torch.tensor([expected, expected]))


@pytest.mark.parametrize("stage", ["C3", "C4", "C5"])
def test_a_bright_pixel_lights_up_the_cell_whose_centre_it_is(stage: str) -> None:
    """A network whose weights are all alike blurs symmetrically: its answer is centred where its cells lie."""
    encoder = Encoder(ModelConfig(backbone="resnet18", levels=(), dim=8)).eval()
    with torch.no_grad():
        for name, parameter in encoder.backbone.named_parameters():
            if parameter.dim() == 4:
                parameter.fill_(1 / parameter[0].numel())
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    stride = stride_of(stage)
    for x, y in ((96, 64), (160, 96), (64, 160)):
        images = torch.zeros(1, 3, 224, 288)
        images[..., y, x] = 1.0
        with torch.no_grad():
            answer = level_maps(encoder, images)[stage][0, 0].double()
        rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in answer.shape), indexing="ij")
        centre_x = float((answer * columns).sum() / answer.sum()) * stride
        centre_y = float((answer * rows).sum() / answer.sum()) * stride
        assert abs(centre_x - (x + 0.5)) < stride / 2
        assert abs(centre_y - (y + 0.5)) < stride / 2


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_maps_are_of_the_image_at_its_own_size(size: tuple[int, int]) -> None:
    levels = (Level(name="P4"), Level(name="P3"), Level(name="C4"))
    encoder = Encoder(ModelConfig(backbone="resnet18", levels=levels, fpn_width=8, conv_width=4, dim=8)).eval()
    image = photograph(*size)
    maps = feature_maps(encoder, image)
    assert list(maps) == ["P4", "P3", "C4+conv", "C3", "C4", "C5"]
    for name, features in maps.items():
        stride = 2 ** int(name[1])
        assert features.stride == stride
        assert features.cells.shape[1:] == (-(-size[1] // stride), -(-size[0] // stride))
    normalised = (image.pixels / 255 - MEAN) / STD
    expected = encoder(torch.from_numpy(normalised).permute(2, 0, 1)[None].float())[1]
    torch.testing.assert_close(maps["P3"].cells, expected["P3"][0].detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps["C4+conv"].cells, expected["C4"][0].detach(), rtol=1e-3, atol=1e-3)


# -- what a region is


def test_a_point_reads_the_bilinear_surface() -> None:
    features = FeatureMap("P4", torch.eye(6).reshape(6, 2, 3), 16)
    vector = region_vector(features, (16.0, 0.0))
    torch.testing.assert_close(vector, torch.eye(6)[1])
    # a quarter of the way from cell 1 to cell 2 and half the way down
    vector = region_vector(features, (20.0, 8.0))
    weights = torch.tensor([0.0, 0.75, 0.25, 0.0, 0.75, 0.25])
    torch.testing.assert_close(vector, weights / weights.norm())
    # beyond the last cell: its value
    torch.testing.assert_close(region_vector(features, (47.0, 31.0)), torch.eye(6)[5])


def test_a_point_of_a_map_of_one_cell_is_that_cell() -> None:
    features = FeatureMap("C5", torch.tensor([3.0, 4.0]).reshape(2, 1, 1), 32)
    torch.testing.assert_close(region_vector(features, (20.0, 5.0)), torch.tensor([0.6, 0.8]))


def test_a_box_is_pooled_as_the_loss_pools_its_windows() -> None:
    features = FeatureMap("P4", torch.eye(9).reshape(9, 3, 3), 16)
    # over one cell's step in both directions from the first cell: half of each of the triangles, 1/2 and 1/2
    vector = region_vector(features, (0.0, 0.0, 16.0, 16.0))
    expected = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(vector, expected / expected.norm())


def test_a_region_is_most_like_itself() -> None:
    features = random_map("P3", 333, 500)
    vector = region_vector(features, (20 * 8.0, 30 * 8.0))
    similarity = similarity_map(vector, features)
    assert peak(similarity, 8) == (160.0, 240.0)
    assert float(similarity.max()) == pytest.approx(1.0, abs=1e-6)
    cells = features.cells / features.cells.norm(dim=0)
    assert float(similarity[7, 11]) == pytest.approx(float(vector @ cells[:, 7, 11]), abs=1e-6)


def test_regions_are_given_in_px_of_the_file() -> None:
    image = Photograph("a.jpg", np.zeros((50, 100, 3), np.uint8), (400, 200))
    assert encoded_region(image, (400.0, 100.0)) == (100.0, 25.0)
    assert encoded_region(image, (0.0, 40.0, 200.0, 200.0)) == (0.0, 10.0, 50.0, 50.0)
    for region in ((401.0, 3.0), (-1.0, 3.0), (0.0, 0.0, 0.0, 5.0), (10.0, 10.0, 5.0, 20.0), (0.0, 0.0, 10.0, 201.0)):
        with pytest.raises(UserError, match=r"a\.jpg is 400 x 200 px"):
            encoded_region(image, region)


# -- regions of two images


def test_mutual_nearest_regions_equal_those_found_one_by_one() -> None:
    a, b = random_map("P4", 160, 96, seed=1), random_map("P4", 112, 128, seed=2)
    found = mutual_nearest(a, b, (160, 96), (112, 128), count=1000)
    windows_a, windows_b = region_grid(160, 96, window=48, step=16), region_grid(112, 128, window=48, step=16)
    vectors_a = [region_vector(a, tuple(window.tolist())) for window in windows_a]
    vectors_b = [region_vector(b, tuple(window.tolist())) for window in windows_b]
    pairs = set()
    for i, one in enumerate(vectors_a):
        nearest = max(range(len(vectors_b)), key=lambda j: float(one @ vectors_b[j]))
        if i == max(range(len(vectors_a)), key=lambda k: float(vectors_a[k] @ vectors_b[nearest])):
            pairs.add((tuple(windows_a[i].tolist()), tuple(windows_b[nearest].tolist())))
    assert found.mutual == len(pairs) > 3
    assert found.regions == (len(windows_a), len(windows_b)) == (8 * 4, 5 * 6)
    drawn = zip(found.boxes_a.tolist(), found.boxes_b.tolist(), strict=True)
    assert {(tuple(one), tuple(other)) for one, other in drawn} <= pairs
    assert (found.similarity.diff() <= 0).all()
    for boxes in (found.boxes_a, found.boxes_b):
        apart = (boxes[:, None, :2] - boxes[None, :, :2]).abs().amax(dim=-1) + 1e9 * torch.eye(len(boxes))
        assert float(apart.min()) >= 48


def test_a_shifted_map_is_matched_with_its_shift() -> None:
    whole = torch.randn(16, 20, 24, generator=torch.Generator().manual_seed(0))
    a, b = FeatureMap("P3", whole[:, :14, :18].contiguous(), 8), FeatureMap("P3", whole[:, 3:17, 5:23].contiguous(), 8)
    found = mutual_nearest(a, b, (144, 112), (144, 112), count=8)
    # precise pooling weighs the cells beyond a window's edge by zero only where the window ends on a cell
    shift = found.boxes_a - found.boxes_b
    assert torch.equal(shift, torch.tensor([40.0, 24.0, 40.0, 24.0], dtype=torch.float64).expand(len(shift), 4))
    assert float(found.similarity.min()) > 0.999


def test_an_image_smaller_than_a_window_is_one_region() -> None:
    assert region_grid(30, 20, window=48, step=16).tolist() == [[0.0, 0.0, 30.0, 20.0]]


# -- principal components


@pytest.mark.parametrize("channels", [6, 400])
def test_components_equal_those_of_a_singular_value_decomposition(channels: int) -> None:
    maps = [random_map("P4", 160, 96, channels=channels, seed=s) for s in (1, 2)]
    found, shares = principal_components(maps)
    cells = np.concatenate([(f.cells / f.cells.norm(dim=0)).flatten(1).T.double().numpy() for f in maps])
    left, values, _ = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    together = np.concatenate([part.flatten(1).T.numpy() for part in found])
    expected = (left * values)[:, :3]
    signs = np.sign((together * expected).sum(0))
    np.testing.assert_allclose(together, expected * signs, atol=1e-5)
    np.testing.assert_allclose(shares.numpy(), values[:3] ** 2 / (values**2).sum(), rtol=1e-5)
    assert [part.shape for part in found] == [(3, 6, 10)] * 2


def test_a_collapsed_map_has_no_components() -> None:
    features = FeatureMap("P4", torch.ones(8, 3, 4), 16)
    (component,), shares = principal_components([features])
    assert not component.any()
    assert not shares.any()
    (picture,) = component_pictures([component], 16, [photograph(64, 48)])
    assert (picture == picture[0, 0]).all()


# -- colours


def test_known_colours() -> None:
    # OKLab of sRGB's red, white and black, from the definition's own table
    places = np.array([[0.62796, 0.22486, 0.12585], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    colours = oklab_to_srgb(*places.T)
    np.testing.assert_allclose(colours, [[255, 0, 0], [255, 255, 255], [0, 0, 0]], atol=1)
    assert colour_map(np.array([-5.0, 0.2, 0.4, 9.0]), 0.2, 0.4).tolist() == [
        [68, 1, 84], [68, 1, 84], [253, 231, 37], [253, 231, 37],
    ]  # fmt: skip


def test_a_heat_map_is_its_colour_over_the_gray_image() -> None:
    image = Photograph("a.png", np.full((16, 32, 3), 100, np.uint8), (32, 16))
    heat = heat_picture(image, torch.tensor([[0.0, 1.0]]), 16, (0.0, 1.0))
    assert heat.shape == (16, 32, 3)
    np.testing.assert_allclose(heat[0, -1], 0.7 * np.array([253, 231, 37]) + 0.3 * 100, atol=1)
    assert (heat[0, 0] != heat[0, -1]).any()


# -- files


def test_large_images_are_made_smaller_and_say_so(tmp_path: Path) -> None:
    Image.new("RGB", (300, 120), (10, 20, 30)).save(tmp_path / "a.png")
    small = load_photograph(tmp_path / "a.png", 100)
    assert small.pixels.shape == (40, 100, 3)
    assert small.original == (300, 120)
    assert small.scale == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    own = load_photograph(tmp_path / "a.png")
    assert (own.width, own.height, own.scale) == (300, 120, (1.0, 1.0))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png: cannot be read as an image"):
        load_photograph(tmp_path / "b.png")


def test_evaluation_leaves_the_network_as_it_is() -> None:
    model = ReSim(recipes.quick().model)
    encoder = model.query.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    feature_maps(encoder, photograph(64, 96))
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
