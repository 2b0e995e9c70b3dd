"""Colours and blur of a batch, with separate factors, equal torchvision's operations on each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from resim.views.crops import NO_JITTER, Draw, ViewsConfig, draw_views, sample_generator
from resim.views.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
    blur_reach,
    gaussian_blur,
    normalize,
    to_gray,
)

PLAIN = Draw(crop=(0, 0, 40, 40), flipped=False, jitter=NO_JITTER, jitter_order=(0, 1, 2, 3), gray=False, sigma=0.0)
Order = Literal["blur-jitter-gray", "jitter-gray-blur"]


@pytest.fixture
def images() -> Tensor:
    """Six random images (6, 3, 20, 20), with runs of gray, black, white and pure colours among their pixels."""
    images = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1, :5], images[:, :, 1, 5:10] = 0, 1
    images[:, 0, 2], images[:, 1:, 2] = 1, 0
    images[:, 1, 3], images[:, 2, 3] = images[:, 0, 3], 0  # two channels share the largest value
    return images


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# -- each operation


@pytest.mark.parametrize(
    ("batched", "single", "factors"),
    [
        (adjust_brightness, TF.adjust_brightness, [0.0, 0.6, 1.0, 1.2, 1.4, 3.0]),
        (adjust_contrast, TF.adjust_contrast, [0.0, 0.6, 1.0, 1.2, 1.4, 3.0]),
        (adjust_saturation, TF.adjust_saturation, [0.0, 0.6, 1.0, 1.2, 1.4, 3.0]),
        (adjust_hue, TF.adjust_hue, [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5]),
    ],
)
@pytest.mark.parametrize("given_as", [list, torch.tensor])
def test_each_image_is_adjusted_by_its_own_factor(
    images: Tensor,
    batched: Callable[[Tensor, list[float]], Tensor],
    single: Callable[[Tensor, float], Tensor],
    factors: list[float],
    given_as: Callable[[list[float]], list[float]],
) -> None:
    before = images.clone()
    expected = torch.stack([single(image, factor) for image, factor in zip(images, factors, strict=True)])
    close(batched(images, given_as(factors)), expected)
    assert torch.equal(images, before)


def test_luma_is_torchvisions_grayscale(images: Tensor) -> None:
    close(to_gray(images), TF.rgb_to_grayscale(images))
    # 0.2989 red, 0.587 green, 0.114 blue
    pixel = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    assert to_gray(pixel).item() == pytest.approx(0.2989 + 0.2935 + 0.0285)


def test_a_hue_shift_does_not_change_gray_pixels() -> None:
    gray = torch.linspace(0, 1, 11).view(1, 1, 1, 11).expand(1, 3, 11, 11)
    close(adjust_hue(gray, [0.3]), gray)


def test_a_third_of_a_turn_makes_red_green() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert adjust_hue(red, [1 / 3]).flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert adjust_hue(red, [-1 / 3]).flatten().tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_contrast_and_saturation_by_hand() -> None:
    # luma of the two pixels: 0.2989 and 0; mean 0.14945; halfway there
    pixels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).view(1, 3, 1, 2)
    assert adjust_contrast(pixels, [0.5])[0, :, 0, 0].tolist() == pytest.approx([0.574725, 0.074725, 0.074725])
    assert adjust_contrast(pixels, [0.5])[0, :, 0, 1].tolist() == pytest.approx([0.074725] * 3)
    assert adjust_saturation(pixels, [0.5])[0, :, 0, 0].tolist() == pytest.approx([0.64945, 0.14945, 0.14945])
    assert adjust_brightness(pixels, [1.5])[0, :, 0, 0].tolist() == [1, 0, 0]


# -- blur


@pytest.mark.parametrize("radius", [0, 1, 3, 8, 19])
def test_blur_equals_torchvisions_with_a_kernel_of_twice_the_radius_and_one(images: Tensor, radius: int) -> None:
    sigmas = [0.1, 0.3, 0.7, 1.0, 1.5, 2.0]
    expected = torch.stack(
        [
            TF.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2)
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )
    close(gaussian_blur(images, sigmas, radius), expected)


def test_blur_keeps_a_flat_image_and_spreads_a_dot_as_a_gaussian() -> None:
    close(gaussian_blur(torch.full((1, 3, 16, 16), 0.3), [2.0], 8), torch.full((1, 3, 16, 16), 0.3))
    dot = torch.zeros(1, 1, 21, 21)
    dot[0, 0, 10, 10] = 1
    row = gaussian_blur(dot, [1.0], 4)[0, 0].sum(dim=0)
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    assert row[6:15].tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=1e-6)
    assert row[:6].abs().sum() + row[15:].abs().sum() == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 2.0])
def test_blur_is_pillows_to_three_gray_levels(sigma: float) -> None:
    """Pillow, which the published program blurs with, computes a Gaussian as three box filters of 8-bit pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
    pillow = np.asarray(image.filter(ImageFilter.GaussianBlur(radius=sigma))).astype(float)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    ours = gaussian_blur(pixels, [sigma], blur_reach(sigma))[0].permute(1, 2, 0).numpy() * 255
    # edges differ: Pillow repeats the last pixel, torchvision and we reflect
    inside = (slice(8, -8), slice(8, -8))
    assert np.abs(ours - pillow)[inside].max() < 3
    assert np.abs(ours - pillow)[inside].mean() < 0.7
    assert np.abs(ours - np.asarray(image))[inside].max() > 3  # it is no identity that agrees


def test_a_gaussian_is_truncated_at_four_sigmas() -> None:
    assert [blur_reach(sigma) for sigma in (0.1, 1.0, 1.01, 2.0)] == [1, 4, 5, 8]


@pytest.mark.parametrize("radius", [20, 21, -1])
def test_a_blur_that_does_not_fit_the_image_is_refused(images: Tensor, radius: int) -> None:
    with pytest.raises(ValueError, match=f"a blur of radius {radius} px does not fit an image of 20 px"):
        gaussian_blur(images, [1.0] * 6, radius)


# -- all operations


def one_by_one(pixels: Tensor, draws: list[Draw], order: Order, radius: int) -> Tensor:
    """What `augment` says it does, as a loop over images of torchvision's operations."""

    def blur(image: Tensor, draw: Draw) -> Tensor:
        return TF.gaussian_blur(image, [2 * radius + 1] * 2, [draw.sigma] * 2) if draw.sigma > 0 else image

    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    done = []
    for pixel, draw in zip(pixels, draws, strict=True):
        image = pixel.permute(2, 0, 1).float() / 255
        if order == "blur-jitter-gray":
            image = blur(image, draw)
        if draw.jitter != NO_JITTER:
            for operation in draw.jitter_order:
                image = adjust[operation](image, draw.jitter[operation])
        if draw.gray:
            image = TF.rgb_to_grayscale(image, num_output_channels=3)
        if order == "jitter-gray-blur":
            image = blur(image, draw)
        done.append(TF.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return torch.stack(done)


def some_pixels(count: int, size: int = 40) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("order", ["blur-jitter-gray", "jitter-gray-blur"])
def test_a_batch_equals_a_loop_over_its_images(order: Order) -> None:
    config = ViewsConfig(photometric_order=order)
    draws = [draw for i in range(16) for draw in draw_views(config, 320, 240, sample_generator(0, 0, i))[1]]
    assert len({draw.jitter_order for draw in draws}) > 10
    assert {draw.gray for draw in draws} == {True, False}
    pixels = some_pixels(len(draws))
    before = pixels.clone()
    images = augment(pixels, draws, order=order, blur_radius=8)
    assert (images.shape, images.dtype) == ((32, 3, 40, 40), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, before)
    close(images, one_by_one(pixels, draws, order, 8), atol=1e-4)


def test_each_image_has_its_own_order_of_jitter() -> None:
    jitter = (1.4, 0.6, 1.4, 0.1)
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)]
    draws = [dataclasses.replace(PLAIN, jitter=jitter, jitter_order=order) for order in orders]
    pixels = some_pixels(1).expand(3, -1, -1, -1)
    images = augment(pixels, draws, order="blur-jitter-gray", blur_radius=8)
    close(images, one_by_one(pixels, draws, "blur-jitter-gray", 8), atol=1e-4)
    assert (images[0] - images[1]).abs().max() > 0.1
    assert (images[0] - images[2]).abs().max() > 0.1


def test_blur_before_and_after_the_colours_are_not_the_same() -> None:
    draw = dataclasses.replace(PLAIN, jitter=(1.4, 1.4, 1.4, 0.1), sigma=2.0)
    first, last = (
        augment(some_pixels(1), [draw], order=order, blur_radius=8)
        for order in ("blur-jitter-gray", "jitter-gray-blur")
    )
    assert (first - last).abs().max() > 0.1


def test_a_view_without_augmentation_is_only_normalised() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 40, 40, 3)
    images = augment(pixels, [PLAIN], order="blur-jitter-gray", blur_radius=8)
    # (0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225
    assert images[0, :, 0, 0].tolist() == pytest.approx([-2.117904, 2.428571, -0.915556], abs=1e-5)
    close(images, images[:, :, :1, :1].expand_as(images))


def test_the_parameters_of_an_image_do_not_change_the_others() -> None:
    pixels = some_pixels(3)
    wild = dataclasses.replace(PLAIN, jitter=(0.6, 1.4, 0.6, 0.1), gray=True, sigma=1.5)
    images = augment(pixels, [PLAIN, wild, PLAIN], order="jitter-gray-blur", blur_radius=8)
    plain = normalize(pixels.permute(0, 3, 1, 2).float() / 255)
    close(images[[0, 2]], plain[[0, 2]])
    assert (images[1] - plain[1]).abs().max() > 0.1


def test_the_radius_of_a_blur_is_limited_by_the_view() -> None:
    draws = [dataclasses.replace(PLAIN, sigma=2.0)]
    pixels = some_pixels(1, size=6)
    close(
        augment(pixels, draws, order="blur-jitter-gray", blur_radius=8),
        one_by_one(pixels, draws, "blur-jitter-gray", 5),
        atol=1e-4,
    )
