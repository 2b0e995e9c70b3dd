"""Pictures of view pairs with their windows, for `resim preview` and for the pictures of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from resim.counts import counted
from resim.draw.primitives import printable
from resim.draw.windows import LevelWindows, PairPicture, draw_pairs
from resim.errors import UserError
from resim.regions.level import Level
from resim.regions.windows import inside_view, map_windows
from resim.views.crops import ViewsConfig
from resim.views.decode import BadImageError, Photo
from resim.views.loader import PairBatch, PairDataset, collate
from resim.views.photometric import MEAN, STD
from resim.views.shards import split_member_path
from resim.views.views import Views

_THUMBNAIL_PX = 320


def pair_pictures(
    views_q: Views,
    views_k: Views,
    levels: Sequence[Level],
    *,
    titles: Sequence[str] = (),
    sources: Sequence[tuple[np.ndarray, float] | None] = (),
) -> list[PairPicture]:
    """Each pair of views with the windows of every level.

    Args:
        views_q: N query views, normalised.
        views_k: their key views.
        levels: whose windows are drawn.
        titles: one per pair.
        sources: for each pair a thumbnail (h, w, 3) uint8 in the crops' frame, and the factor from px of the image to
            px of the thumbnail; None: the source is not drawn.
    """
    size = views_q.size
    levels_windows = []
    for level in levels:
        grid = level.windows(size)
        flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
        levels_windows.append((level, grid, map_windows(grid, views_q.crops, views_k.crops, size, **flips)))
    pixels_q, pixels_k = to_pixels(views_q.images), to_pixels(views_k.images)
    pictures = []
    for i in range(len(views_q)):
        thumbnail, scale = (sources[i] if i < len(sources) else None) or (None, 1.0)
        top, left, height, width = torch.stack([views_q.crops[i], views_k.crops[i]]).double().cpu().unbind(1)
        boxes = torch.stack([left, top, left + width, top + height], dim=1) * scale
        pictures.append(
            PairPicture(
                query=pixels_q[i],
                key=pixels_k[i],
                levels=tuple(
                    LevelWindows(
                        name=level.name,
                        query=grid.numpy(),
                        key=mapped[i].numpy(),
                        valid=inside_view(mapped[i], size).numpy(),
                    )
                    for level, grid, mapped in levels_windows
                ),
                title=titles[i] if i < len(titles) else "",
                source=thumbnail,
                crops=None if thumbnail is None else boxes.numpy(),
            )
        )
    return pictures


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Normalised (N, 3, S, S) -> (N, S, S, 3) uint8."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    pixels = (images.detach().float() * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def batch_pictures(
    batch: PairBatch, views: tuple[Views, Views], levels: Sequence[Level], paths: Sequence[str], count: int
) -> list[PairPicture]:
    """Pictures of the first `count` pairs of a batch, each with a thumbnail of its source image."""
    chosen = slice(0, count)
    views_q, views_k = (
        Views(v.images[chosen], v.crops[chosen], None if v.flipped is None else v.flipped[chosen]) for v in views
    )
    names = [paths[i] for i in batch.indices[chosen]]
    sources = [_thumbnail(name, flip) for name, flip in zip(names, batch.flips[chosen], strict=True)]
    return pair_pictures(views_q, views_k, levels, titles=[printable(_name(name)) for name in names], sources=sources)


def _name(path: str) -> str:
    """The name of an image's file; of an image in a shard, the member's name."""
    member = split_member_path(path)
    return Path(path if member is None else member[1].name).name


def _thumbnail(path: str, flip: bool) -> tuple[np.ndarray, float] | None:
    try:
        photo = Photo(path)
        image = photo.decode(max(photo.width, photo.height) / _THUMBNAIL_PX)
    except BadImageError:
        return None
    scale = _THUMBNAIL_PX / max(photo.width, photo.height)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(image) if flip else image), scale


def preview(paths: Sequence[str], views: ViewsConfig, levels: Sequence[Level], *, count: int, seed: int) -> Image.Image:
    """A sheet of `count` augmented view pairs with their windows; `seed` samples the images.

    Raises:
        UserError: none of the images can be decoded.
    """
    dataset = PairDataset(paths, views, seed)
    order = np.random.default_rng([4, seed]).permutation(len(paths))[:count]
    samples = [sample for i in order if (sample := dataset[(0, int(i))])[3] >= 0]
    if not samples:
        raise UserError(f"none of {counted(len(order), 'image')} can be decoded, for example {paths[int(order[0])]}")
    batch = collate(samples)
    return draw_pairs(batch_pictures(batch, batch.views(views), levels, paths, len(batch)))
