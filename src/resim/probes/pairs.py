"""Pairs of views of which it is known where each place of the one lies in the other: four kinds of change.

photometric  the same crop twice, each with colours and blur of its own
scale        two crops, one of them 0.5 to 0.8 times as wide and within the other; colours as they are
both         those two crops, each with colours and blur of its own
warp         the same crop, the key warped smoothly: places move by up to 6 % of the view; colours as they are

Crops are square and nothing is mirrored, so that the four differ in what they are named for and in nothing else.

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
_WAVES, _REACH = 3, 0.06  # of a warp: waves added up in each direction, and the farthest they move a place together


@dataclass(frozen=True)
class KnownPairs:
    """A batch of query and key views, and the way from the one to the other."""

    query: Tensor
    """(N, 3, S, S), normalised."""
    key: Tensor
    """(N, 3, S, S), normalised."""
    find: Callable[[Tensor], Tensor]
    """Windows (R, 4) of every query view, px -> where they lie in the key views, (N, R, 4) float64, px."""

    @property
    def size(self) -> int:
        """S, px."""
        return self.query.shape[-1]


def from_views(views_q: Views, views_k: Views) -> KnownPairs:
    """Pairs whose crops tell the way."""

    def find(windows: Tensor) -> Tensor:
        flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
        return map_windows(windows, views_q.crops, views_k.crops, views_q.size, **flips)

    return KnownPairs(views_q.images, views_k.images, find)


def known_pairs(
    images: ProbeImages, change: Change, *, size: int, seed: int = 0, indices: Sequence[int] | None = None
) -> Iterator[KnownPairs]:
    """Pairs of each image that can be decoded, in batches; the draws of an image depend on the seed and its index.

    Args:
        images: with or without classes.
        change: between query and key.
        size: S, px.
        seed: of crops, colours and warps; crops and colours are the same for every change that has them.
        indices: of the images; None: all.
    """
    colours = ViewsConfig(image_size=size, blur_sigma=(0.1 * size / 224, 2.0 * size / 224), flip="none")
    chosen = range(len(images)) if indices is None else indices
    drawn: dict[int, tuple[Draw, Draw]] = {}

    def cut(photo: Photo, index: int) -> np.ndarray:
        draws = draw_change(change, photo.width, photo.height, colours, np.random.default_rng([6, seed, index]))
        drawn[index] = draws
        return cut_views(photo, False, draws, size)

    bad: list[BadFile] = []
    for batch, pixels in read_views(images, chosen, cut, bad):
        draws = [drawn.pop(index) for index in batch]
        views = []
        for side in range(2):
            own = [pair[side] for pair in draws]
            radius = blur_reach(colours.blur_sigma[1])
            if change in ("photometric", "both"):
                view = augment(pixels[:, side], own, order=colours.photometric_order, blur_radius=radius)
            else:
                view = to_images(pixels[:, side])
            views.append(Views(view, torch.tensor([draw.crop for draw in own], dtype=torch.float64)))
        if change == "warp":
            warp = draw_warp(size, [np.random.default_rng([10, seed, index]) for index in batch])
            yield KnownPairs(views[0].images, warp.of(views[0].images), warp.find)
        else:
            yield from_views(views[0], views[1])


def draw_change(
    change: Change, width: int, height: int, colours: ViewsConfig, generator: np.random.Generator
) -> tuple[Draw, Draw]:
    """What is done to both views of an image of `width` x `height` px."""
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    inner = max(1, round(side * generator.uniform(*SCALES)))
    down, across = (int(generator.integers(0, side - inner + 1)) for _ in range(2))
    whole, part = (top, left, side, side), (top + down, left + across, inner, inner)
    crops = (whole, part) if generator.random() < 0.5 else (part, whole)
    if change in ("photometric", "warp"):
        crops = (whole, whole)
    if change in ("scale", "warp"):
        return plain_draw(crops[0]), plain_draw(crops[1])
    _, (query, key) = draw_views(colours, width, height, generator)
    return _with_crop(query, crops[0]), _with_crop(key, crops[1])


def _with_crop(draw: Draw, crop: tuple[int, int, int, int]) -> Draw:
    return Draw(crop, draw.flipped, draw.jitter, draw.jitter_order, draw.gray, draw.sigma)


@dataclass(frozen=True)
class Warp:
    """A smooth warp of each of N views: the warped view shows at place y what the view has at y + shift(y), px.

    The shift is a sum of long waves, gentle enough for the way back to be found by repeating y <- x - shift(y).
    """

    size: int
    """S, px."""
    waves: Tensor
    """(N, W, 2) float64: cycles across the view, along x and y."""
    phases: Tensor
    """(N, W) float64, radians."""
    heights: Tensor
    """(N, W, 2) float64: how far each wave moves a place along x and y, px."""

    def shift(self, points: Tensor) -> Tensor:
        """(N, P, 2) places x, y in px of the view -> (N, P, 2) px."""
        angles = 2 * math.pi * points.double() @ self.waves.transpose(1, 2) / self.size + self.phases[:, None]
        return torch.sin(angles) @ self.heights

    def of(self, images: Tensor) -> Tensor:
        """The warped views of (N, 3, S, S), bilinear; what comes from outside a view repeats its edge."""
        centres = torch.arange(self.size, dtype=torch.float64) + 0.5
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        places = torch.stack([x, y], dim=-1).view(1, -1, 2).expand(len(images), -1, -1)
        source = (places + self.shift(places)) * 2 / self.size - 1
        grid = source.view(len(images), self.size, self.size, 2).to(images)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def back(self, points: Tensor) -> Tensor:
        """Where places (N, P, 2) of the views are in the warped views, (N, P, 2) px."""
        found = points.double()
        for _ in range(60):  # each round leaves at most 0.57 of the error
            found = points - self.shift(found)
        return found

    def find(self, windows: Tensor) -> Tensor:
        """Windows (R, 4) of every view -> windows of the same size around their centres in the warped views."""
        windows = windows.double().expand(len(self.waves), -1, -1)
        centres, half = (windows[..., :2] + windows[..., 2:]) / 2, (windows[..., 2:] - windows[..., :2]) / 2
        moved = self.back(centres)
        return torch.cat([moved - half, moved + half], dim=-1)


def draw_warp(size: int, generators: Sequence[np.random.Generator]) -> Warp:
    """A warp for each generator: three waves of half a cycle to one and a half across the view."""
    waves, phases, heights = [], [], []
    for generator in generators:
        direction = generator.uniform(0, 2 * math.pi, _WAVES)
        cycles = generator.uniform(0.5, 1.5, _WAVES)
        waves.append(np.stack([np.cos(direction), np.sin(direction)], axis=1) * cycles[:, None])
        phases.append(generator.uniform(0, 2 * math.pi, _WAVES))
        turned = generator.uniform(0, 2 * math.pi, _WAVES)
        shares = generator.dirichlet(np.ones(_WAVES))
        heights.append(np.stack([np.cos(turned), np.sin(turned)], axis=1) * (shares * _REACH * size)[:, None])
    return Warp(size, *(torch.from_numpy(np.stack(part)) for part in (waves, phases, heights)))
