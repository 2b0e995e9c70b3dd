"""Colour jitter and blur of a whole batch on its device, with separate parameters for each image.

Shapes: N views of S x S px, (N, 3, S, S), floating point, in [0, 1]. Each operation computes the same as its namesake
in torchvision.transforms.v2.functional, for a float image and the same factor.
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
    """One factor for each image, (N, 1, 1, 1), on the device and in the dtype of `like`."""
    return to_device(torch.as_tensor(factors, dtype=like.dtype), like.device).view(-1, 1, 1, 1)


def to_gray(images: Tensor) -> Tensor:
    """(N, 1, S, S): luma."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def adjust_brightness(images: Tensor, factors: Sequence[float] | Tensor) -> Tensor:
    """Multiply the pixels of each image by its factor, and clamp to [0, 1]."""
    return (images * _each(factors, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Sequence[float] | Tensor) -> Tensor:
    """Move the pixels of each image away from (factor above 1) or towards its mean luma."""
    mean = to_gray(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _each(factors, images)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factors: Sequence[float] | Tensor) -> Tensor:
    """Move each pixel away from (factor above 1) or towards its luma."""
    return torch.lerp(to_gray(images), images, _each(factors, images)).clamp_(0, 1)


def adjust_hue(images: Tensor, shifts: Sequence[float] | Tensor) -> Tensor:
    """Shift the hue by `shifts`, in turns, without changing saturation and value."""
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
    # from a channel the chroma is subtracted, times the distance of the hue from that channel's sector
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(images: Tensor, sigmas: Sequence[float] | Tensor, radius: int) -> Tensor:
    """Blur each image with a Gaussian of its sigma (px), truncated at `radius` px, with reflected edges.

    Computed as two products with a banded S x S matrix for each image, which is fast on every device.

    Raises:
        ValueError: the radius is not smaller than the image.
    """
    size = images.shape[-1]
    if not 0 <= radius < size:
        raise ValueError(f"a blur of radius {radius} px does not fit an image of {size} px")
    sigma = _each(sigmas, images)[:, 0]
    distance = torch.arange(radius + 1, device=images.device, dtype=images.dtype)
    half = torch.exp(-0.5 * (distance / sigma[..., 0]).square())  # (N, radius + 1)
    half = half / (2 * half.sum(1, keepdim=True) - half[:, :1])
    weights = torch.cat([half, half.new_zeros(len(half), 1)], dim=1)  # the last is for distances above the radius
    i = torch.arange(size, device=images.device)
    reach = [(i[:, None] - i).abs(), i[:, None] + i, 2 * (size - 1) - i[:, None] - i]
    band = weights[:, reach[0].clamp(max=radius + 1)]
    # the edge pixel itself is not repeated
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
    """Apply each view's jitter, gray and blur, then normalise by ImageNet's mean and standard deviation.

    Args:
        pixels: (N, S, S, 3) uint8.
        draws: the parameters of the N views.
        order: whether to blur before or after the colours change.
        blur_radius: radius at which the Gaussians are truncated, px.

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
    """Normalise images (N, 3, S, S) in [0, 1] by ImageNet's mean and standard deviation of each channel."""
    mean, std = (to_device(torch.tensor(v, dtype=images.dtype), images.device) for v in (MEAN, STD))
    return images.sub(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def blur_reach(sigma: float) -> int:
    """The radius at which a Gaussian is truncated, px: four sigmas, beyond which its integral is below 1e-4."""
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
