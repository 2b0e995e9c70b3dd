"""Feature maps: the positions of their cells, and images at their native size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from resim import recipes
from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.similarity.feature_maps import at_pixels, feature_maps, level_maps, load_photograph, stride_of
from resim.similarity.regions import peak
from resim.views.photometric import MEAN, STD
from similarity.maps import photograph

SIZES = ((333, 500), (500, 349), (128, 128), (70, 33))
LEVELS = ("P3", "P4", "P5", "C4+conv")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_peak_of_a_map_lies_at_its_cell_times_the_stride(level: str, size: tuple[int, int]) -> None:
    width, height = size
    stride = stride_of(level)
    rows, columns = -(-height // stride), -(-width // stride)
    for row in range(rows):
        for column in range(columns):
            cells = torch.zeros(rows, columns)
            cells[row, column] = 1.0
            assert peak(cells, stride) == (column * stride, row * stride)
            pixels = at_pixels(cells, stride, width, height)
            y, x = divmod(int(pixels.argmax()), width)
            # within half a pixel; a map stretched over the image would be off by half a cell
            assert abs(x + 0.5 - column * stride) <= 0.5
            assert abs(y + 0.5 - row * stride) <= 0.5


def test_values_at_pixels_are_interpolated_between_cells() -> None:
    cells = torch.tensor([[0.0, 1.0, 3.0]])
    # at stride 4 pixel centres lie at cells 0.125, 0.375, 0.625, 0.875, 1.125, ...; the last cell is repeated
    expected = [0.125, 0.375, 0.625, 0.875, 1.25, 1.75, 2.25, 2.75, 3.0, 3.0, 3.0]
    torch.testing.assert_close(at_pixels(cells, 4, 11, 2), torch.tensor([expected, expected]))


@pytest.mark.parametrize("stage", ["C3", "C4", "C5"])
def test_a_bright_pixel_activates_the_cell_at_its_position(stage: str) -> None:
    """A network of constant weights blurs symmetrically, so its response is centred on the pixel."""
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
            response = level_maps(encoder, images)[stage][0, 0].double()
        rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in response.shape), indexing="ij")
        centre_x = float((response * columns).sum() / response.sum()) * stride
        centre_y = float((response * rows).sum() / response.sum()) * stride
        assert abs(centre_x - (x + 0.5)) < stride / 2
        assert abs(centre_y - (y + 0.5)) < stride / 2


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_maps_have_the_size_of_the_image_over_the_stride(size: tuple[int, int]) -> None:
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


def test_large_images_are_downscaled_and_record_the_scale(tmp_path: Path) -> None:
    Image.new("RGB", (300, 120), (10, 20, 30)).save(tmp_path / "a.png")
    small = load_photograph(tmp_path / "a.png", 100)
    assert small.pixels.shape == (40, 100, 3)
    assert small.original == (300, 120)
    assert small.scale == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    native = load_photograph(tmp_path / "a.png")
    assert (native.width, native.height, native.scale) == (300, 120, (1.0, 1.0))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png: cannot be read as an image"):
        load_photograph(tmp_path / "b.png")


def test_evaluation_does_not_change_the_network() -> None:
    model = ReSim(recipes.quick().model)
    encoder = model.query.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    feature_maps(encoder, photograph(64, 96))
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
