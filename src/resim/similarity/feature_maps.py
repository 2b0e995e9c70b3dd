"""Feature maps of an image at its native size, and the positions of their cells in it.

Pixel p covers the coordinates from p to p + 1. Cell (i, j) of a map of stride s is a sample at x = j * s, y = i * s and
represents the s x s px around it: as in the region loss, windows are divided by the stride without a half-pixel shift,
and maps are interpolated bilinearly between these samples. The centre of the first cell is therefore the corner of the
image; a heat map merely stretched over the image would be off by half a cell.

Shapes: N images, C channels, H x W cells, h x w pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resim.draw.primitives import printable
from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.views.decode import BadImageError, Photo
from resim.views.photometric import MEAN, STD

MAX_SIDE = 1024


@dataclass(frozen=True)
class Photograph:
    """An image at the size at which it is encoded and drawn."""

    name: str
    pixels: np.ndarray
    """(h, w, 3) uint8, upright."""
    original: tuple[int, int]
    """Width and height of the file, upright, px."""

    @property
    def width(self) -> int:
        """W, px."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """H, px."""
        return self.pixels.shape[0]

    @property
    def scale(self) -> tuple[float, float]:
        """Encoded px per px of the file, horizontally and vertically; 1 unless the image was downscaled."""
        return self.width / self.original[0], self.height / self.original[1]


@dataclass(frozen=True)
class FeatureMap:
    """The feature map of one level of one image."""

    level: str
    cells: Tensor
    """(C, H, W) float32."""
    stride: int
    """Px of the encoded image per cell."""


def load_photograph(path: str | Path, max_side: int = MAX_SIDE) -> Photograph:
    """Read an image at its native size; if its longer side exceeds `max_side` px, it is downscaled to that.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        photo = Photo(os.fspath(path))
        width, height = photo.width, photo.height
        image = photo.decode(max(width, height) / max_side)
    except BadImageError as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None
    factor = min(1.0, max_side / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return Photograph(printable(Path(path).name), np.asarray(image), (width, height))


@torch.no_grad()
def feature_maps(encoder: Encoder, photograph: Photograph) -> dict[str, FeatureMap]:
    """The maps of all levels of an encoder in evaluation mode, at the size of the image: no crop, no padding.

    Returns:
        C3, C4, C5: the backbone's stages; P3 to P5: the FPN's outputs, if there is an FPN; C4+conv and the like: a
        stage after the convolution of a C level.

    Raises:
        UserError: the backbone accepts images of one size only, or a map is not finite.
    """
    pixels = torch.from_numpy(np.array(photograph.pixels)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    device = next(encoder.parameters()).device
    try:
        maps = level_maps(encoder, ((pixels - mean) / std).to(device))
    except (AssertionError, RuntimeError) as error:  # timm's transformers of a fixed size
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        size = f"{photograph.width} x {photograph.height}"
        raise UserError(f"{photograph.name}: the network cannot encode an image of {size} px ({reason})") from None
    not_finite = [name for name, cells in maps.items() if not cells.isfinite().all()]
    if not_finite:
        raise UserError(f"{photograph.name}: the network's features are not finite ({', '.join(not_finite)})")
    return {name: FeatureMap(name, cells[0].float().cpu(), stride_of(name)) for name, cells in maps.items()}


def level_maps(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """The maps of all levels, (N, C, H, W) with H = ceil(h / stride), of normalised images (N, 3, h, w)."""
    stages = encoder.backbone(images)
    maps = {} if encoder.fpn is None else encoder.fpn(stages)
    maps |= {f"{name}+conv": conv(stages[name]) for name, conv in encoder.convs.items()}
    return maps | stages


def levels_of(encoder: Encoder) -> list[str]:
    """Names of the levels that `level_maps` returns."""
    pyramid = [] if encoder.fpn is None else list(encoder.fpn.levels)
    return [*pyramid, *(f"{name}+conv" for name in encoder.convs), "C3", "C4", "C5"]


def region_levels(config: ModelConfig) -> tuple[str, ...]:
    """The levels of the region losses, by their names in `level_maps`; none for MoCo v2."""
    return tuple(level.name if level.from_fpn else f"{level.name}+conv" for level in config.levels)


def stride_of(level: str) -> int:
    """Stride of a level in px: the digit of its name is log2 of it."""
    return 2 ** int(level[1])


def at_pixels(values: Tensor, stride: int, width: int, height: int) -> Tensor:
    """Interpolate a map bilinearly at the centre of every pixel; beyond the last cell its value is repeated.

    Args:
        values: (H, W), or (C, H, W).
        stride: of the map, px.
        width: of the image, px.
        height: of the image, px.

    Returns:
        (height, width), or (C, height, width).
    """
    rows, columns = values.shape[-2:]
    return _interpolation(height, rows, stride) @ values.float() @ _interpolation(width, columns, stride).T


def _interpolation(pixels: int, cells: int, stride: int) -> Tensor:
    """Bilinear weights of the cells at the centre of each pixel: (pixels, cells)."""
    centres = ((torch.arange(pixels, dtype=torch.float64) + 0.5) / stride).clamp(max=cells - 1)
    distance = (centres[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float()
