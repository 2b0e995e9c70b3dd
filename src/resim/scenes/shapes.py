"""The eight classes of objects in synthetic scenes, which differ in their outline only.

A class is a signed distance function: it takes coordinates u, v (H, W) in units of the object's radius and returns
(H, W) in the same unit, negative inside of the object. Every class fits into the unit disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def _disk(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 1


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - math.sqrt(0.5)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(math.sqrt(0.75) * np.abs(u) - 0.5 * v, v) - 0.5


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # ten mirror images of the edge from the tip (1, 0) to a notch at 36 degrees
    angle, radius = np.arctan2(v, u), np.hypot(u, v)
    angle = angle - 0.4 * math.pi * np.rint(angle / (0.4 * math.pi))
    notch_u, notch_v = 0.45 * math.cos(0.2 * math.pi), 0.45 * math.sin(0.2 * math.pi)
    length = math.hypot(1 - notch_u, notch_v)
    across, along = notch_v / length, (1 - notch_u) / length
    return across * (radius * np.cos(angle) - 1) + along * radius * np.abs(np.sin(angle))


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.3)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.78) - 0.22


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # a square with a disk on each of two neighbouring sides, moved by 0.08 to the middle of the unit disk
    u, v = u + 0.08, v + 0.08
    half = 0.53
    square = np.maximum(np.abs(u), np.abs(v))
    return np.minimum(square, np.minimum(np.hypot(u - half, v), np.hypot(u, v - half))) - half


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disk": _disk,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "ring": _ring,
    "heart": _heart,
}
CLASSES: tuple[str, ...] = tuple(SHAPES)
