"""Values of a feature map as colours over its image, and marks for points and boxes.

Shapes: H x W cells, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from resim.draw.colour_map import colour_map
from resim.draw.primitives import DARK, LIGHT, drawn_box, outline
from resim.similarity.feature_maps import Photograph, at_pixels
from resim.similarity.regions import Region

COLOUR_OPACITY = 0.7  # of the colours over the gray image
_PERCENTILE = 99.0


def heat_picture(photograph: Photograph, similarity: Tensor, stride: int, scale: tuple[float, float]) -> np.ndarray:
    """A heat map over the gray image: (h, w, 3) uint8.

    Args:
        photograph: the image.
        similarity: (H, W), a value for each cell of its map.
        stride: of the map, px.
        scale: values of the first and the last colour.
    """
    values = at_pixels(similarity, stride, photograph.width, photograph.height).numpy()
    gray = np.asarray(Image.fromarray(photograph.pixels).convert("L"))[..., None]
    blend = COLOUR_OPACITY * colour_map(values, *scale) + (1 - COLOUR_OPACITY) * gray
    return np.rint(blend).astype(np.uint8)


def component_pictures(
    components: Sequence[Tensor], stride: int, photographs: Sequence[Photograph]
) -> list[np.ndarray]:
    """Three principal components of each image's map as colours: a list of (h, w, 3) uint8.

    The first is lightness, the second runs from blue to yellow, the third from green to red: in this order colour-blind
    readers lose the least. Each component is scaled by its 99th percentile over all images.
    """
    magnitudes = torch.cat([cells.flatten(1) for cells in components], dim=1).abs().numpy()
    maxima = np.maximum(np.percentile(magnitudes, _PERCENTILE, axis=1), 1e-9)[:, None, None]
    pictures = []
    for cells, photograph in zip(components, photographs, strict=True):
        values = np.clip(at_pixels(cells, stride, photograph.width, photograph.height).numpy() / maxima, -1, 1)
        pictures.append(oklab_to_srgb(0.62 + 0.28 * values[0], 0.11 * values[2], 0.13 * values[1]))
    return pictures


def oklab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Convert OKLab, (h, w) each, to sRGB, (h, w, 3) uint8, clipped.

    Args:
        lightness: 0 to 1.
        a: green to red.
        b: blue to yellow.

    Source: Björn Ottosson, "A perceptual color space for image processing", 2020.
    """
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    matrix = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cones**3 @ matrix.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def mark_region(picture: Image.Image, region: Region, factor: float) -> None:
    """Outline a box, or circle a point, in a picture of the image enlarged by `factor`."""
    if len(region) == 4:
        outline(ImageDraw.Draw(picture), drawn_box(np.array(region), factor), LIGHT, dashed=False)
    else:
        mark_point(picture, (region[0] * factor, region[1] * factor), cross=True)


def mark_point(picture: Image.Image, point: tuple[float, float], *, cross: bool = False) -> None:
    """Circle a point (x, y) of a picture, px, in white with a dark rim; the query region also has a cross."""
    draw, (x, y), radius = ImageDraw.Draw(picture), point, 9
    for width, ink in ((5, DARK), (2, LIGHT)):
        grown = radius + width / 2 - 1
        draw.ellipse((x - grown, y - grown, x + grown, y + grown), outline=ink, width=width)
        if cross:
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                draw.line((x + 3 * dx, y + 3 * dy, x + 16 * dx, y + 16 * dy), fill=ink, width=width - 1)
