"""Pairs of views with a known map from one to the other, for four kinds of change.

photometric  the same crop, with independent colours and blur
scale        two crops, one 0.5 to 0.8 times as wide as the other and inside it; no change of colours
both         these two crops, with independent colours and blur
warp         the same crop, the key warped smoothly: points move by up to 6 % of the view; no change of colours

Crops are square and nothing is flipped, so the views of a pair differ in the named change only.

Shapes: N images, R windows, P points, views of S x S px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.probes.features import plain_draw, read_views, to_images
from resim.probes.labels import ProbeImages
from resim.regions.windows import map_windows
from resim.views.crops import Draw, ViewsConfig, cut_views, draw_views
from resim.views.decode import Photo
from resim.views.loader import BadFile
from resim.views.photometric import augment, blur_reach
from resim.views.views import Views

Change = Literal["photometric", "scale", "both", "warp"]
CHANGES: tuple[Change, ...] = ("photometric", "scale", "both", "warp")
SCALES = (0.5, 0.8)
_WAVES, _REACH = 3, 0.06  # waves of a warp, and their maximum total displacement as a fraction of the view


@dataclass(frozen=True)
class KnownPairs:
    """A batch of query and key views with the map from query to key."""

    query: Tensor
    """(N, 3, S, S), normalised."""
    key: Tensor
    """(N, 3, S, S), normalised."""
    map_to_key: Callable[[Tensor], Tensor]
    """Maps windows (R, 4) of every query view, px, to the key views, (N, R, 4) float64, px."""

    @property
    def size(self) -> int:
        """S, px."""
        return self.query.shape[-1]


def from_views(views_q: Views, views_k: Views) -> KnownPairs:
    """Pairs of views with known crops."""

    def map_to_key(windows: Tensor) -> Tensor:
        flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
        return map_windows(windows, views_q.crops, views_k.crops, views_q.size, **flips)

    return KnownPairs(views_q.images, views_k.images, map_to_key)


def known_pairs(
    images: ProbeImages, change: Change, *, size: int, seed: int = 0, indices: Sequence[int] | None = None
) -> Iterator[KnownPairs]:
    """Pairs of views of each image that can be decoded, in batches.

    The views of an image depend on the seed and the index of the image only.

    Args:
        images: with or without classes.
        change: between query and key.
        size: S, px.
        seed: of crops, colours and warps; changes that have crops or colours share them.
        indices: of the images; None: all.
    """
    colours = ViewsConfig(image_size=size, blur_sigma=(0.1 * size / 224, 2.0 * size / 224), flip="none")
    chosen = range(len(images)) if indices is None else indices
    sampled: dict[int, tuple[Draw, Draw]] = {}

    def cut(photo: Photo, index: int) -> np.ndarray:
        draws = sample_change(change, photo.width, photo.height, colours, np.random.default_rng([6, seed, index]))
        sampled[index] = draws
        return cut_views(photo, False, draws, size)

    bad: list[BadFile] = []
    for batch, pixels in read_views(images, chosen, cut, bad):
        pairs = [sampled.pop(index) for index in batch]
        views = []
        for side in range(2):
            draws = [pair[side] for pair in pairs]
            radius = blur_reach(colours.blur_sigma[1])
            if change in ("photometric", "both"):
                view = augment(pixels[:, side], draws, order=colours.photometric_order, blur_radius=radius)
            else:
                view = to_images(pixels[:, side])
            views.append(Views(view, torch.tensor([draw.crop for draw in draws], dtype=torch.float64)))
        if change == "warp":
            warp = sample_warp(size, [np.random.default_rng([10, seed, index]) for index in batch])
            yield KnownPairs(views[0].images, warp.apply(views[0].images), warp.map_windows)
        else:
            yield from_views(views[0], views[1])


def sample_change(
    change: Change, width: int, height: int, colours: ViewsConfig, generator: np.random.Generator
) -> tuple[Draw, Draw]:
    """Sample the parameters of both views of an image of `width` x `height` px."""
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    inner_side = max(1, round(side * generator.uniform(*SCALES)))
    dy, dx = (int(generator.integers(0, side - inner_side + 1)) for _ in range(2))
    outer, inner = (top, left, side, side), (top + dy, left + dx, inner_side, inner_side)
    crops = (outer, inner) if generator.random() < 0.5 else (inner, outer)
    if change in ("photometric", "warp"):
        crops = (outer, outer)
    if change in ("scale", "warp"):
        return plain_draw(crops[0]), plain_draw(crops[1])
    _, (query, key) = draw_views(colours, width, height, generator)
    return _with_crop(query, crops[0]), _with_crop(key, crops[1])


def _with_crop(draw: Draw, crop: tuple[int, int, int, int]) -> Draw:
    return Draw(crop, draw.flipped, draw.jitter, draw.jitter_order, draw.gray, draw.sigma)


@dataclass(frozen=True)
class Warp:
    """A smooth warp of each of N views: the warped view shows at point y what the view has at y + shift(y), px.

    The shift is a sum of long waves whose slope is below 1, so the fixed-point iteration y <- x - shift(y) inverts it.
    """

    size: int
    """S, px."""
    waves: Tensor
    """(N, W, 2) float64, cycles per view along x and y."""
    phases: Tensor
    """(N, W) float64, radians."""
    heights: Tensor
    """(N, W, 2) float64, amplitudes of the displacement along x and y, px."""

    def shift(self, points: Tensor) -> Tensor:
        """Displacements (N, P, 2) of points x, y (N, P, 2), px."""
        angles = 2 * math.pi * points.double() @ self.waves.transpose(1, 2) / self.size + self.phases[:, None]
        return torch.sin(angles) @ self.heights

    def apply(self, images: Tensor) -> Tensor:
        """Warp the views (N, 3, S, S) by bilinear interpolation; outside a view, its edge is repeated."""
        centres = torch.arange(self.size, dtype=torch.float64) + 0.5
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points = torch.stack([x, y], dim=-1).view(1, -1, 2).expand(len(images), -1, -1)
        source = (points + self.shift(points)) * 2 / self.size - 1
        grid = source.view(len(images), self.size, self.size, 2).to(images)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def map_points(self, points: Tensor) -> Tensor:
        """Map points (N, P, 2) of the views to the warped views: (N, P, 2) px."""
        mapped = points.double()
        for _ in range(60):  # each iteration leaves at most 0.57 of the error
            mapped = points - self.shift(mapped)
        return mapped

    def map_windows(self, windows: Tensor) -> Tensor:
        """Map the centres of windows (R, 4) of every view to the warped views, at the same size: (N, R, 4)."""
        windows = windows.double().expand(len(self.waves), -1, -1)
        centres, half = (windows[..., :2] + windows[..., 2:]) / 2, (windows[..., 2:] - windows[..., :2]) / 2
        mapped = self.map_points(centres)
        return torch.cat([mapped - half, mapped + half], dim=-1)


def sample_warp(size: int, generators: Sequence[np.random.Generator]) -> Warp:
    """Sample a warp from each generator: three waves of 0.5 to 1.5 cycles per view."""
    waves, phases, heights = [], [], []
    for generator in generators:
        direction = generator.uniform(0, 2 * math.pi, _WAVES)
        cycles = generator.uniform(0.5, 1.5, _WAVES)
        waves.append(np.stack([np.cos(direction), np.sin(direction)], axis=1) * cycles[:, None])
        phases.append(generator.uniform(0, 2 * math.pi, _WAVES))
        angle = generator.uniform(0, 2 * math.pi, _WAVES)
        fractions = generator.dirichlet(np.ones(_WAVES))
        heights.append(np.stack([np.cos(angle), np.sin(angle)], axis=1) * (fractions * _REACH * size)[:, None])
    return Warp(size, *(torch.from_numpy(np.stack(part)) for part in (waves, phases, heights)))
