"""Colour and blur of a whole batch at once, on whatever device it is, with factors of each image's own.

Shapes: N views of S x S px, (N, 3, S, S), floating, in [0, 1]. Each operation computes what torchvision.transforms.v2's
functional form of the same name computes on a float image with the same factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from resim.transfers import to_device
from resim.views.crops import NO_JITTER, Draw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMA = (0.2989, 0.587, 0.114)


def _each(factors: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """One factor an image, shaped to be multiplied with (N, C, S, S)."""
    return to_device(torch.as_tensor(factors, dtype=like.dtype), like.device).view(-1, 1, 1, 1)


def to_gray(images: Tensor) -> Tensor:
    """(N, 1, S, S): luma."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def adjust_brightness(images: Tensor, factors: Sequence[float] | Tensor) -> Tensor:
    """Every pixel times its image's factor, clamped to [0, 1]."""
    return (images * _each(factors, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Sequence[float] | Tensor) -> Tensor:
    """Away from (factor above 1) or towards the image's mean luma."""
    mean = to_gray(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _each(factors, images)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factors: Sequence[float] | Tensor) -> Tensor:
    """Away from (factor above 1) or towards each pixel's luma."""
    return torch.lerp(to_gray(images), images, _each(factors, images)).clamp_(0, 1)


def adjust_hue(images: Tensor, shifts: Sequence[float] | Tensor) -> Tensor:
    """Hue turned by `shifts`, in turns, saturation and value kept."""
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    red, green, blue = images.unbind(1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * _each(shifts, images).squeeze(1)
    # a channel is lowered by the chroma, times how far the hue lies from its own part of the colour circle
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(images: Tensor, sigmas: Sequence[float] | Tensor, radius: int) -> Tensor:
    """Blur with a Gaussian of each image's own sigma (px), cut off at `radius` px, edges reflected.

    Written as two products with a banded S x S matrix an image: quick on every device, with no kernel of its own.

    Raises:
        ValueError: a radius that is not smaller than the image.
    """
    size = images.shape[-1]
    if not 0 <= radius < size:
        raise ValueError(f"a blur of radius {radius} px does not fit an image of {size} px")
    sigma = _each(sigmas, images)[:, 0]
    distance = torch.arange(radius + 1, device=images.device, dtype=images.dtype)
    half = torch.exp(-0.5 * (distance / sigma[..., 0]).square())  # (N, radius + 1)
    half = half / (2 * half.sum(1, keepdim=True) - half[:, :1])
    weights = torch.cat([half, half.new_zeros(len(half), 1)], dim=1)  # the last: too far away
    i = torch.arange(size, device=images.device)
    reach = [(i[:, None] - i).abs(), i[:, None] + i, 2 * (size - 1) - i[:, None] - i]
    band = weights[:, reach[0].clamp(max=radius + 1)]
    # an edge pixel is the mirror itself and is not reflected again
    band = band + weights[:, reach[1].clamp(max=radius + 1)] * (i > 0)
    band = band + weights[:, reach[2].clamp(max=radius + 1)] * (i < size - 1)
    band = band[:, None]
    return band @ images @ band.transpose(-1, -2)


def augment(
    pixels: Tensor,
    draws: Sequence[Draw],
    *,
    order: Literal["blur-jitter-gray", "jitter-gray-blur"],
    blur_radius: int,
) -> Tensor:
    """Jitter, gray and blur each view as drawn, then normalise by ImageNet's mean and standard deviation.

    Args:
        pixels: (N, S, S, 3) uint8.
        draws: N of them.
        order: blur before the colours change, or after.
        blur_radius: px at which a Gaussian is cut off.

    Returns:
        (N, 3, S, S) float32 on the device of `pixels`, channels_last in memory.
    """
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if order == "blur-jitter-gray":
        images = _blur(images, draws, blur_radius)
    images = _jitter(images, draws)
    gray = [i for i, draw in enumerate(draws) if draw.gray]
    if gray:
        chosen = to_device(torch.tensor(gray), images.device)
        images[chosen] = to_gray(images[chosen]).expand(-1, 3, -1, -1)
    if order == "jitter-gray-blur":
        images = _blur(images, draws, blur_radius)
    return normalize(images)


def normalize(images: Tensor) -> Tensor:
    """(N, 3, S, S) in [0, 1] -> ImageNet's mean 0 and standard deviation 1, a channel."""
    mean, std = (to_device(torch.tensor(v, dtype=images.dtype), images.device) for v in (MEAN, STD))
    return images.sub(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def blur_reach(sigma: float) -> int:
    """The radius at which a Gaussian of this sigma is cut off, px: beyond four sigmas lies less than 1e-4 of it."""
    return math.ceil(4 * sigma)


def _blur(images: Tensor, draws: Sequence[Draw], radius: int) -> Tensor:
    blurred = [i for i, draw in enumerate(draws) if draw.sigma > 0]
    if blurred:
        chosen = to_device(torch.tensor(blurred), images.device)
        sigmas = [draws[i].sigma for i in blurred]
        images[chosen] = gaussian_blur(images[chosen], sigmas, min(radius, images.shape[-1] - 1))
    return images


_OPERATIONS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _jitter(images: Tensor, draws: Sequence[Draw]) -> Tensor:
    factors = np.array([draw.jitter for draw in draws])
    order = np.array([draw.jitter_order for draw in draws])
    jittered = (factors != NO_JITTER).any(axis=1)
    for turn in range(4):
        for operation, adjust in enumerate(_OPERATIONS):
            now = np.flatnonzero(jittered & (order[:, turn] == operation))
            if len(now):
                chosen = to_device(torch.from_numpy(now), images.device)
                images[chosen] = adjust(images[chosen], torch.from_numpy(factors[now, operation]))
    return images
