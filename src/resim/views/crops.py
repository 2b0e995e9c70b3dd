"""The random parameters of each view, and its crop.

All random numbers of a sample come from a separate generator (`sample_generator`). They depend on the seed, the epoch
and the sample only: not on the loader's workers, the processes of the training, or the step at which a run was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from resim.views.config import ViewsConfig
from resim.views.decode import Photo

NO_JITTER = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Draw:
    """The random parameters of one view."""

    crop: tuple[int, int, int, int]
    """top, left, height, width, px of the image, after the shared flip."""
    flipped: bool
    """Whether this view alone is mirrored, after cropping."""
    jitter: tuple[float, float, float, float]
    """Factors of brightness, contrast and saturation, and shift of hue (turns); `NO_JITTER`: no jitter."""
    jitter_order: tuple[int, int, int, int]
    """The order in which the four are applied."""
    gray: bool
    sigma: float
    """Standard deviation of the blur, px; 0: no blur."""


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of all random numbers of one sample in one epoch."""
    return np.random.default_rng([1, seed, epoch, index])


def draw_views(
    config: ViewsConfig, width: int, height: int, generator: np.random.Generator
) -> tuple[bool, tuple[Draw, Draw]]:
    """Draw the shared flip of an image of `width` x `height` px, and the parameters of its query and key view."""
    flip = bool(generator.random() < 0.5)
    views = [_draw_view(config, width, height, generator) for _ in range(2)]
    return flip and config.flip == "shared", (views[0], views[1])


def _draw_view(config: ViewsConfig, width: int, height: int, generator: np.random.Generator) -> Draw:
    crop = _draw_crop(config, width, height, generator)
    flipped = bool(generator.random() < 0.5) and config.flip == "independent"
    jittered = generator.random() < config.jitter_probability
    strengths = (config.brightness, config.contrast, config.saturation)
    factors = [float(generator.uniform(1 - s, 1 + s)) for s in strengths] + [
        float(generator.uniform(-config.hue, config.hue))
    ]
    order = tuple(int(i) for i in generator.permutation(4))
    gray = bool(generator.random() < config.gray_probability)
    blurred = generator.random() < config.blur_probability
    sigma = float(generator.uniform(*config.blur_sigma))
    return Draw(
        crop=crop,
        flipped=flipped,
        jitter=(factors[0], factors[1], factors[2], factors[3]) if jittered else NO_JITTER,
        jitter_order=(order[0], order[1], order[2], order[3]),
        gray=gray,
        sigma=sigma if blurred else 0.0,
    )


def _draw_crop(
    config: ViewsConfig, width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Random resized crop: ten attempts, then the largest centre crop of an allowed aspect (as in torchvision)."""
    least, largest = math.log(config.crop_aspect[0]), math.log(config.crop_aspect[1])
    for _ in range(10):
        area = width * height * generator.uniform(*config.crop_area)
        aspect = math.exp(generator.uniform(least, largest))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
            return int(top), int(left), h, w
    w, h = width, height
    if width / height < config.crop_aspect[0]:
        h = max(1, round(width / config.crop_aspect[0]))
    elif width / height > config.crop_aspect[1]:
        w = max(1, round(height * config.crop_aspect[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def cut_views(photo: Photo, flip: bool, draws: Sequence[Draw], size: int) -> np.ndarray:
    """Decode an image once, and crop and resize all its views.

    Args:
        photo: the image.
        flip: the shared flip; crops are boxes of the mirrored image.
        draws: the parameters of V views.
        size: side of a view, px.

    Returns:
        (V, size, size, 3) uint8: bilinear with antialiasing, mirrored if exactly one of `flip` and `draw.flipped` is
        true.

    Raises:
        BadImageError: the pixels cannot be decoded.
    """
    pixels = photo.pixels(min(min(draw.crop[2:]) for draw in draws) / size)
    is_full_size = pixels.shape[:2] == (photo.height, photo.width)
    views = np.empty((len(draws), size, size, 3), dtype=np.uint8)
    for i, draw in enumerate(draws):
        top, left, height, width = draw.crop
        if flip:  # a crop of the mirrored image is a mirrored crop of the image
            left = photo.width - left - width
        view = (
            _resize(pixels[top : top + height, left : left + width], size)
            if is_full_size
            else _resize_part(pixels, (left, top, left + width, top + height), photo, size)
        )
        views[i] = view[:, ::-1] if flip != draw.flipped else view
    return views


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (size, size, 3) by PyTorch, within one gray level of Pillow's result."""
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _resize_part(pixels: np.ndarray, box: tuple[int, int, int, int], photo: Photo, size: int) -> np.ndarray:
    """Resize a crop of an image that was decoded at a smaller scale, with edges between two pixels, by Pillow.

    Only pixels that are wholly inside the crop are used; the outermost are repeated for the pixels on the edges.
    """
    # a JPEG decoder scales by exactly 1 / n and rounds sizes up: the quotient of the sizes is not n
    reduction = round(max(photo.width, photo.height) / max(pixels.shape[:2]))
    x0, y0, x1, y1 = (edge / reduction for edge in box)
    left, top = math.ceil(x0), math.ceil(y0)
    right, bottom = (
        end if edge == limit else int(end)
        for end, edge, limit in ((x1, box[2], photo.width), (y1, box[3], photo.height))
    )
    inside = pixels[top : math.ceil(bottom), left : math.ceil(right)]
    padded = Image.fromarray(np.pad(inside, ((1, 1), (1, 1), (0, 0)), mode="edge"))
    part = (x0 - left + 1, y0 - top + 1, x1 - left + 1, y1 - top + 1)
    return np.asarray(padded.resize((size, size), Image.Resampling.BILINEAR, box=part))
