"""Crops have the published distribution, depend on seed, epoch and image only, and both views show their crops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from resim.views.crops import NO_JITTER, Draw, ViewsConfig, cut_views, draw_views, sample_generator
from resim.views.decode import Photo

CONFIG = ViewsConfig()
BILINEAR = Image.Resampling.BILINEAR


def draw_many(config: ViewsConfig, width: int, height: int, count: int) -> tuple[np.ndarray, list[tuple[Draw, Draw]]]:
    """Shared flips (count,) and draws of `count` images."""
    drawn = [draw_views(config, width, height, sample_generator(0, 0, i)) for i in range(count)]
    return np.array([flip for flip, _ in drawn]), [pair for _, pair in drawn]


def assert_share(values: Any, probability: float) -> None:
    """The share of true values is within four standard deviations of a binomial's."""
    values = np.asarray(values)
    assert abs(values.mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / len(values))


def crop_only(crop: tuple[int, int, int, int], *, flipped: bool = False) -> Draw:
    return Draw(crop=crop, flipped=flipped, jitter=NO_JITTER, jitter_order=(0, 1, 2, 3), gray=False, sigma=0.0)


# -- crops


def test_crops_are_inside_the_image_with_area_and_aspect_in_range() -> None:
    width, height = 500, 375
    _, pairs = draw_many(CONFIG, width, height, 1000)
    top, left, h, w = np.array([draw.crop for pair in pairs for draw in pair]).T
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width
    share, aspect = w * h / (width * height), w / h
    # sides are rounded to pixels, the least of them are about 144 px
    assert 0.2 * 0.99 < share.min() < 0.21
    assert 0.9 < share.max() <= 1
    assert 3 / 4 * 0.99 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 4 / 3 * 1.01


def test_area_is_uniform_aspect_log_uniform_and_position_uniform() -> None:
    # up to half of the area, every aspect fits into a square image, so that the first attempt always succeeds
    config = dataclasses.replace(CONFIG, crop_area=(0.2, 0.5))
    _, pairs = draw_many(config, 1000, 1000, 2000)
    top, left, h, w = np.array([draw.crop for pair in pairs for draw in pair]).T
    n = len(w)
    half = math.log(4 / 3)
    for values, low, high in (
        (w * h / 1e6, 0.2, 0.5),
        (np.log(w / h), -half, half),
        (left / (1000 - w), 0, 1),
        (top / (1000 - h), 0, 1),
    ):
        spread = (high - low) / math.sqrt(12)
        assert abs(values.mean() - (low + high) / 2) < 4 * spread / math.sqrt(n)
        # each quarter has a quarter of the values
        quarters = np.histogram(values, bins=4, range=(low, high))[0] / n
        assert np.abs(quarters - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / n) + 0.002  # 0.002: rounding to pixels
    assert abs(np.corrcoef(w * h, np.log(w / h))[0, 1]) < 4 / math.sqrt(n)


def test_the_two_views_of_an_image_are_drawn_independently() -> None:
    _, pairs = draw_many(dataclasses.replace(CONFIG, crop_area=(0.2, 0.5)), 1000, 1000, 2000)
    areas = np.array([[draw.crop[2] * draw.crop[3] for draw in pair] for pair in pairs], dtype=float)
    assert abs(np.corrcoef(areas.T)[0, 1]) < 4 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("width", "height", "crop"),
    [
        (10, 1000, (493, 0, 13, 10)),  # aspect 3/4: 10 / 0.75 = 13.3; (1000 - 13) // 2 = 493
        (1000, 10, (0, 493, 10, 13)),  # aspect 4/3: 10 * 1.333 = 13.3
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_if_no_crop_fits_the_largest_centre_crop_is_used(
    width: int, height: int, crop: tuple[int, int, int, int]
) -> None:
    _, pairs = draw_many(CONFIG, width, height, 50)
    assert {draw.crop for pair in pairs for draw in pair} == {crop}


def test_an_area_of_1_gives_the_whole_image() -> None:
    _, pairs = draw_many(dataclasses.replace(CONFIG, crop_area=(1, 1), crop_aspect=(1, 1)), 300, 300, 20)
    assert {draw.crop for pair in pairs for draw in pair} == {(0, 0, 300, 300)}


# -- random numbers depend on the seed, the epoch and the image only


def test_a_sample_does_not_depend_on_the_samples_before_it() -> None:
    np.random.seed(1)  # noqa: NPY002 - a global state that must not matter
    before = draw_views(CONFIG, 320, 240, sample_generator(3, 5, 7))
    np.random.seed(2)  # noqa: NPY002
    draw_many(CONFIG, 320, 240, 5)
    assert draw_views(CONFIG, 320, 240, sample_generator(3, 5, 7)) == before


def test_another_seed_epoch_or_image_draws_other_views() -> None:
    keys = [(3, 5, 7), (4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (3, 7, 5)]
    crops = [draw_views(CONFIG, 1000, 800, sample_generator(*key))[1][0].crop for key in keys]
    assert len(set(crops)) == len(keys)


# -- probabilities


def test_flips_jitter_gray_and_blur_come_with_the_published_probabilities() -> None:
    flips, pairs = draw_many(CONFIG, 320, 240, 2000)
    assert_share(flips, 0.5)
    for side in (0, 1):
        draws = [pair[side] for pair in pairs]
        assert not any(draw.flipped for draw in draws)
        assert_share([draw.jitter != NO_JITTER for draw in draws], 0.8)
        assert_share([draw.gray for draw in draws], 0.2)
        assert_share([draw.sigma > 0 for draw in draws], 0.5)
    # one view's draws say nothing of the other's
    assert_share([a.gray and b.gray for a, b in pairs], 0.04)
    assert_share([(a.sigma > 0) == (b.sigma > 0) for a, b in pairs], 0.5)


def test_factors_and_sigmas_fill_the_published_ranges() -> None:
    draws = [draw for pair in draw_many(CONFIG, 320, 240, 1500)[1] for draw in pair]
    factors = np.array([draw.jitter for draw in draws if draw.jitter != NO_JITTER])
    sigmas = np.array([draw.sigma for draw in draws if draw.sigma > 0])
    columns = [*factors.T, sigmas]
    ranges = [(0.6, 1.4)] * 3 + [(-0.1, 0.1), (0.1, 2.0)]
    for values, (low, high) in zip(columns, ranges, strict=True):
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * len(values))


def test_all_orders_of_the_four_jitters_are_equally_likely() -> None:
    orders = [draw.jitter_order for pair in draw_many(CONFIG, 320, 240, 2000)[1] for draw in pair]
    assert len(set(orders)) == 24
    for place in range(4):
        for operation in range(4):
            assert_share([order[place] == operation for order in orders], 0.25)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_of_0_and_1(probability: float) -> None:
    config = dataclasses.replace(
        CONFIG, jitter_probability=probability, gray_probability=probability, blur_probability=probability
    )
    for pair in draw_many(config, 320, 240, 50)[1]:
        for draw in pair:
            assert (draw.jitter != NO_JITTER, draw.gray, draw.sigma > 0) == (probability == 1,) * 3


def test_independent_flips_are_one_for_each_view() -> None:
    flips, pairs = draw_many(dataclasses.replace(CONFIG, flip="independent"), 320, 240, 2000)
    assert not flips.any()
    for query in (False, True):
        for key in (False, True):
            assert_share([(a.flipped, b.flipped) == (query, key) for a, b in pairs], 0.25)


def test_no_flips() -> None:
    flips, pairs = draw_many(dataclasses.replace(CONFIG, flip="none"), 320, 240, 50)
    assert not flips.any()
    assert not any(draw.flipped for pair in pairs for draw in pair)


def test_the_kind_of_flip_changes_nothing_else() -> None:
    drawn = [draw_many(dataclasses.replace(CONFIG, flip=flip), 320, 240, 20)[1] for flip in ("shared", "none")]
    assert drawn[0] == drawn[1]


# -- cropping


WIDTH, HEIGHT, SIZE = 200, 150, 64
DRAWS = (crop_only((10, 20, 90, 120)), crop_only((37, 101, 113, 99)))


@pytest.fixture
def coordinates(tmp_path: Path) -> str:
    """An image whose pixels say where they are: red is x, green is y."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    path = tmp_path / "coordinates.png"
    Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture
def scene(tmp_path: Path) -> str:
    """A smooth picture with colour, 400 x 300."""
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    path = tmp_path / "scene.png"
    Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(path)
    return str(path)


@pytest.mark.parametrize("flip", [False, True])
def test_a_view_shows_its_crop(coordinates: str, flip: bool) -> None:
    views = cut_views(Photo(coordinates), flip, DRAWS, SIZE)
    assert (views.shape, views.dtype) == ((2, SIZE, SIZE, 3), np.uint8)
    for view, draw in zip(views.astype(float), DRAWS, strict=True):
        top, left, height, width = draw.crop
        centres = np.arange(SIZE) + 0.5
        x = left + centres * width / SIZE - 0.5  # in the frame of the crops, which is mirrored with the image
        y = top + centres * height / SIZE - 0.5
        assert np.abs(view[..., 0] - (WIDTH - 1 - x if flip else x)).max() <= 1
        assert np.abs(view[..., 1] - y[:, None]).max() <= 1


def test_a_shared_flip_is_a_flip_of_the_image_before_cropping(coordinates: str, tmp_path: Path) -> None:
    with Image.open(coordinates) as image:
        ImageOps.mirror(image).save(tmp_path / "mirrored.png")
    flipped = cut_views(Photo(coordinates), True, DRAWS, SIZE)
    mirrored = cut_views(Photo(str(tmp_path / "mirrored.png")), False, DRAWS, SIZE)
    assert np.abs(flipped.astype(int) - mirrored).max() <= 1


def test_a_flip_of_one_view_mirrors_that_view_alone(coordinates: str) -> None:
    plain = cut_views(Photo(coordinates), False, DRAWS, SIZE)
    draws = (DRAWS[0], dataclasses.replace(DRAWS[1], flipped=True))
    views = cut_views(Photo(coordinates), False, draws, SIZE)
    assert np.array_equal(views[0], plain[0])
    assert np.array_equal(views[1], plain[1, :, ::-1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [32, 96, 224])
def test_views_equal_torchvisions_resized_crop_of_the_flipped_image(scene: str, flip: bool, size: int) -> None:
    _, pairs = draw_many(CONFIG, 400, 300, 3)
    with Image.open(scene) as image:
        source = ImageOps.mirror(image) if flip else image.copy()
    tensor = torch.from_numpy(np.array(source)).permute(2, 0, 1).float()
    for draws in pairs:
        views = cut_views(Photo(scene), flip, draws, size)
        for view, draw in zip(views.astype(float), draws, strict=True):
            reference = TF.resized_crop(
                tensor, *draw.crop, size=[size, size], interpolation=InterpolationMode.BILINEAR, antialias=True
            )
            assert np.abs(view - reference.permute(1, 2, 0).numpy()).max() < 1.01
            top, left, height, width = draw.crop
            pillow = source.crop((left, top, left + width, top + height)).resize((size, size), BILINEAR)
            assert np.abs(view - np.asarray(pillow)).max() <= 1


@pytest.mark.parametrize("flip", [False, True])
def test_views_of_a_jpeg_at_a_smaller_scale_show_the_same_places(scene: str, tmp_path: Path, flip: bool) -> None:
    with Image.open(scene) as image:
        large = image.resize((801, 602), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    source = ImageOps.mirror(large) if flip else large
    for crop in ((0, 0, 602, 801), (101, 203, 330, 290), (272, 511, 330, 290)):  # the last ends in the far corner
        view = cut_views(Photo(str(tmp_path / "large.jpg")), flip, (crop_only(crop), crop_only(crop)), 64)[0].astype(
            float
        )
        top, left, height, width = crop

        def unlike(shift: int, box: tuple[int, int, int, int] = (left, top, left + width, top + height)) -> float:
            """Mean difference from the view of a crop that is shifted by `shift` px."""
            shifted = source.transform(source.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, 0))
            return float(np.abs(np.asarray(shifted.resize((64, 64), BILINEAR, box=box)) - view).mean())  # noqa: B023

        assert unlike(0) < 1.5
        assert min(unlike(-2), unlike(2)) > 1.1 * unlike(0)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("crop", [(64, 128, 512, 576), (128, 64, 640, 512), (0, 0, 512, 512), (256, 448, 512, 512)])
def test_a_view_depends_on_the_pixels_of_its_crop_only_to_one_gray_level(
    tmp_path: Path, reduction: int, crop: tuple[int, int, int, int]
) -> None:
    top, left, height, width = crop
    y, x = np.mgrid[:768, :960]
    pixels = np.stack([x * 255 / 960, y * 255 / 768, 128 + 0 * x], axis=-1).round().astype(np.uint8)
    outside = np.ones((768, 960), dtype=bool)
    outside[top : top + height, left : left + width] = False
    pixels[outside] = np.random.default_rng(0).integers(0, 2, (int(outside.sum()), 3)) * 255
    # blocks of a JPEG without chroma subsampling begin at multiples of 8, as these crops do
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    size = 512 // reduction - (reduction > 1)
    photo = Photo(str(tmp_path / "a.jpg"))
    view = cut_views(photo, False, (crop_only(crop), crop_only(crop)), size)[0]
    alone = Image.fromarray(pixels[top : top + height, left : left + width])
    expected = np.asarray(alone.resize((size, size), BILINEAR)).astype(int)
    assert np.abs(view - expected).max() <= 2  # one for the JPEG's colours, one for the resizing
    assert np.abs(view - expected).mean() < 0.5


@pytest.mark.parametrize("crop", [(67, 131, 515, 573), (131, 66, 637, 511)])
def test_pixels_on_the_edge_of_a_crop_at_a_smaller_scale_are_not_used(
    tmp_path: Path, crop: tuple[int, int, int, int]
) -> None:
    top, left, height, width = crop
    pixels = np.zeros((96, 120, 3), dtype=np.uint8)  # of the image at an eighth
    pixels[math.ceil(top / 8) : (top + height) // 8, math.ceil(left / 8) : (left + width) // 8] = 200
    Image.fromarray(pixels).resize((960, 768), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=100)
    view = cut_views(Photo(str(tmp_path / "a.jpg")), False, (crop_only(crop), crop_only(crop)), 63)[0]
    assert view.min() >= 199


# -- invalid settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 31}, "image-size 31: must be at least 32 px"),
        ({"crop_area": (0.0, 1.0)}, "crop-area 0.0 1.0: each must be above 0"),
        ({"crop_area": (0.8, 0.2)}, "crop-area 0.8 0.2: the smaller number must be the first"),
        ({"crop_area": (0.2, 1.1)}, "crop-area 0.2 1.1: each must be at most 1"),
        ({"crop_aspect": (2.0, 1.0)}, "crop-aspect 2.0 1.0: the smaller number must be the first"),
        ({"blur_sigma": (0.0, 1.0)}, "blur-sigma 0.0 1.0: each must be above 0"),
        ({"blur_sigma": (math.nan, 1.0)}, r"blur-sigma \(nan, 1.0\): must be 2 finite numbers"),
        ({"jitter_probability": 1.5}, "jitter-probability 1.5: must be at most 1"),
        ({"gray_probability": -0.1}, "gray-probability -0.1: must be at least 0"),
        ({"blur_probability": math.nan}, "blur-probability nan: must be a finite number"),
        ({"saturation": 2.0}, "saturation 2.0: must be at most 1"),
        ({"hue": 0.6}, "hue 0.6: must be at most 0.5 turns"),
    ],
)
def test_invalid_settings_are_reported_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewsConfig(**settings)
