"""Textures as functions of coordinates, so that they rotate and move with their object.

Shapes: H, W the height and width of the painted patch. A pattern takes a generator, coordinates x, y (H, W) in units of
its period, and `pixel`, the width of one pixel in the same unit. It returns a tone (H, W) from 0 to 1. A palette maps
tones to colours. Everything is float32.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np

Pattern = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], np.ndarray]

TABLE = 64  # random values per side; a power of two, so that an index wraps with a bit mask


def rise(distance: np.ndarray, pixel: float) -> np.ndarray:
    """An antialiased step from 0 to 1 at `distance` (H, W) = 0, one `pixel` wide."""
    return np.clip(distance / pixel + 0.5, 0, 1)


def fold(x: np.ndarray) -> np.ndarray:
    """The distance of x (H, W) to the nearest whole number, 0 to 0.5."""
    return np.abs(x - np.rint(x))


def random_table(rng: np.random.Generator) -> np.ndarray:
    """Random values (64, 64) from 0 to 1, one for each cell of the plane, repeated every 64 cells."""
    return rng.random((TABLE, TABLE), dtype=np.float32)


def cell_values(table: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The values (H, W) of the cells at integer `column` and `row` (H, W)."""
    return table.take((row.astype(np.intp) & (TABLE - 1)) * TABLE + (column.astype(np.intp) & (TABLE - 1)))


def value_noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise (H, W) from 0 to 1 at x, y (H, W): random values at integer coordinates, interpolated smoothly."""
    table = random_table(rng)
    column, row = np.floor(x), np.floor(y)
    a, b = x - column, y - row
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    left, top = column.astype(np.intp), row.astype(np.intp)
    left, right = left & (TABLE - 1), (left + 1) & (TABLE - 1)
    top, bottom = (top & (TABLE - 1)) * TABLE, ((top + 1) & (TABLE - 1)) * TABLE
    upper, lower = table.take(top + left), table.take(bottom + left)
    upper += a * (table.take(top + right) - upper)
    lower += a * (table.take(bottom + right) - lower)
    return upper + b * (lower - upper)


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    return rise(fold(x) - rng.uniform(0.12, 0.38), pixel)


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    a, b = rise(fold(x / 2) - 0.25, pixel / 2), rise(fold(y / 2) - 0.25, pixel / 2)
    return a + b - 2 * a * b


def _plaid(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    a, b = rng.uniform(0.1, 0.4, 2).tolist()
    return 0.6 * rise(fold(x) - a, pixel) + 0.4 * rise(fold(y) - b, pixel)


def _zigzag(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    steep = rng.uniform(0.8, 1.8)
    return rise(fold(x + steep * fold(y / 1.5)) - rng.uniform(0.15, 0.35), pixel * math.hypot(1, steep / 1.5))


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    row = np.rint(y)
    x = x + 0.5 * (row % 2)
    column = np.rint(x)
    size = cell_values(random_table(rng), column, row)
    inside = rise(0.2 + 0.25 * size - np.hypot(x - column, y - row), pixel)
    return inside * (0.5 + 0.5 * cell_values(random_table(rng), column, row))


def _bricks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    long, shift = rng.uniform(1, 2.5), rng.uniform(0, 0.5)
    row = np.floor(y)
    along = x / long + shift * row
    joint = np.minimum(fold(along) * long, fold(y)) - 0.07
    return rise(joint, pixel) * (0.4 + 0.6 * cell_values(random_table(rng), np.floor(along), row))


def _pebbles(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    # one seed near each integer point; the nearest seed is among the four around a point
    shift_x, shift_y, tone = random_table(rng), random_table(rng), random_table(rng)
    nearest, second = np.full_like(x, 9), np.full_like(x, 9)
    colour = np.zeros_like(x)
    left, top = np.floor(x), np.floor(y)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        seed_x = column + 0.6 * (cell_values(shift_x, column, row) - 0.5)
        seed_y = row + 0.6 * (cell_values(shift_y, column, row) - 0.5)
        distance = np.hypot(x - seed_x, y - seed_y)
        colour = np.where(distance < nearest, cell_values(tone, column, row), colour)
        second = np.minimum(second, np.maximum(distance, nearest))
        nearest = np.minimum(nearest, distance)
    return rise(second - nearest - 0.1, 2 * pixel) * (0.35 + 0.65 * colour)


def _cloud(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    tone = 0.6 * value_noise(rng, x, y) + 0.4 * value_noise(rng, 2.3 * x, 2.3 * y)
    return np.clip(1.6 * tone - 0.3, 0, 1)


def _marble(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    swirl = value_noise(rng, x, y) * rng.uniform(1, 2.5)
    return 0.5 + 0.5 * np.sin(2 * math.pi * (x / 2 + swirl))


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(x)


PATTERNS: tuple[Pattern, ...] = (
    *(_stripes, _checks, _plaid, _zigzag, _dots),
    *(_bricks, _pebbles, _cloud, _marble, _gradient),
)


def random_palette(rng: np.random.Generator, *, contrast: float) -> np.ndarray:
    """A ramp of colours (256, 3) from 0 to 1 through two or three random colours, `contrast` apart in brightness.

    Colours of low contrast are also less saturated, for backgrounds.
    """
    num_colours = int(rng.integers(2, 4))
    middle = rng.uniform(0.15 + contrast / 2, 1 - contrast / 2)
    brightness = rng.permutation(np.linspace(middle - contrast / 2, middle + contrast / 2, num_colours))
    strength = 0.3 + 0.75 * contrast
    colours = [colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, strength), value) for value in brightness.tolist()]
    place = np.linspace(0, num_colours - 1, 256)
    ramp = [np.interp(place, np.arange(num_colours), channel) for channel in zip(*colours, strict=True)]
    return np.stack(ramp, axis=1).astype(np.float32)


def paint(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, *, size: float, contrast: float) -> np.ndarray:
    """Paint a random texture at coordinates x, y.

    Args:
        rng: generator of the pattern, its direction, period and palette.
        x: (H, W) float32, coordinates in pixels in the frame of the painted object.
        y: (H, W) float32, likewise.
        size: size of that object, px; a period is 1/8 to 1/2 of it and at least 4 px.
        contrast: difference in brightness between the colours, 0 to 0.85.

    Returns:
        (H, W, 3) float32 colours from 0 to 1.
    """
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    period = max(4.0, size * math.exp(rng.uniform(math.log(1 / 8), math.log(1 / 2))))
    turn = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(turn) / period, math.sin(turn) / period
    shift_x, shift_y = rng.uniform(0, TABLE, 2).tolist()
    tone = pattern(rng, cos * x - sin * y + shift_x, sin * x + cos * y + shift_y, 1 / period)
    # a slow drift of the tone, so that a periodic pattern does not repeat exactly
    drift = value_noise(rng, x / (0.4 * size) + shift_x, y / (0.4 * size) + shift_y)
    tone = 0.75 * tone + 0.25 * drift
    return random_palette(rng, contrast=contrast).take((255 * tone).astype(np.uint8), axis=0)
