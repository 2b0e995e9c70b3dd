"""Feature maps of an image at its own size, and where their cells lie in it.

A pixel p covers the coordinates from p to p + 1. Cell (i, j) of a map of stride s is a sample at x = j * s, y = i * s
and stands for the s x s px around it: windows are divided by the stride without a half-pixel shift, and the maps are
read as the bilinear surface through these samples, as the region loss reads them. The first cell's centre is therefore
the image's corner; a heat map that is merely stretched over the image would lie half a cell off.

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
    """An image as it is encoded and drawn."""

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
        """Px here for a px of the file, across and down; 1 unless it was made smaller."""
        return self.width / self.original[0], self.height / self.original[1]


@dataclass(frozen=True)
class FeatureMap:
    """One level's map of one image."""

    level: str
    cells: Tensor
    """(C, H, W) float32."""
    stride: int
    """Px of the encoded image a cell."""


def load_photograph(path: str | Path, max_side: int = MAX_SIDE) -> Photograph:
    """Read an image at its own size; one whose longer side is above `max_side` px is made smaller.

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
    """Every level of an encoder in evaluation mode, at the image's own size: no crop, no padding.

    Returns:
        C3, C4, C5: the backbone's stages; P3 to P5: the FPN's outputs, where it has them; C4+conv and the like: a stage
        seen through the convolution of a C level.

    Raises:
        UserError: a backbone that takes images of one size only, or maps that are not finite.
    """
    pixels = torch.from_numpy(np.array(photograph.pixels)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    device = next(encoder.parameters()).device
    try:
        maps = level_maps(encoder, ((pixels - mean) / std).to(device))
    except (AssertionError, RuntimeError) as error:  # timm's transformers of a fixed size
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        size = f"{photograph.width} x {photograph.height}"
        raise UserError(f"{photograph.name}: the network cannot see an image of {size} px ({reason})") from None
    wild = [name for name, cells in maps.items() if not cells.isfinite().all()]
    if wild:
        raise UserError(f"{photograph.name}: the network gives features that are not finite ({', '.join(wild)})")
    return {name: FeatureMap(name, cells[0].float().cpu(), stride_of(name)) for name, cells in maps.items()}


def level_maps(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """(N, 3, h, w) normalised -> the map (N, C, H, W) of every level, H = ceil(h / stride)."""
    stages = encoder.backbone(images)
    maps = {} if encoder.fpn is None else encoder.fpn(stages)
    maps |= {f"{name}+conv": conv(stages[name]) for name, conv in encoder.convs.items()}
    return maps | stages


def levels_of(encoder: Encoder) -> list[str]:
    """The names of all levels that `level_maps` gives."""
    pyramid = [] if encoder.fpn is None else list(encoder.fpn.levels)
    return [*pyramid, *(f"{name}+conv" for name in encoder.convs), "C3", "C4", "C5"]


def region_levels(config: ModelConfig) -> tuple[str, ...]:
    """The levels that the region loss looks at, by their names in `level_maps`; none for MoCo v2."""
    return tuple(level.name if level.from_fpn else f"{level.name}+conv" for level in config.levels)


def stride_of(level: str) -> int:
    """Px a cell: the digit of a level's name is log2 of it."""
    return 2 ** int(level[1])


def at_pixels(values: Tensor, stride: int, width: int, height: int) -> Tensor:
    """The bilinear surface through a map's cells, read at every pixel's centre; beyond the last cell its value.

    Args:
        values: (H, W), or (C, H, W).
        stride: px a cell.
        width: of the image, px.
        height: of the image, px.

    Returns:
        (height, width), or (C, height, width).
    """
    rows, columns = values.shape[-2:]
    return _interpolation(height, rows, stride) @ values.float() @ _interpolation(width, columns, stride).T


def _interpolation(pixels: int, cells: int, stride: int) -> Tensor:
    """(pixels, cells): how much each cell counts at each pixel's centre."""
    place = ((torch.arange(pixels, dtype=torch.float64) + 0.5) / stride).clamp(max=cells - 1)
    distance = (place[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float()
