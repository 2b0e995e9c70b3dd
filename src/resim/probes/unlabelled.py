"""Probes that need no labels: region correspondence, and the health of the vectors.

Shapes: N images, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resim.errors import UserError
from resim.probes.correspondence import Correspondence, correspondences
from resim.probes.features import Network, centre_view, read_views, to_images
from resim.probes.health import Health, alignment, measure_health
from resim.probes.labels import ProbeImages
from resim.probes.pairs import CHANGES, Change, known_pairs
from resim.views.crops import Draw, ViewsConfig, cut_views, draw_views, sample_generator
from resim.views.decode import Photo
from resim.views.loader import BadFile
from resim.views.photometric import augment, blur_reach

ProbeProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the number of images completed since the last call, and the total."""


def probe_window(size: int) -> int:
    """Side of the windows in a view of `size` px: 48 px, or 3/8 of a view below 128 px.

    Windows are a third of their side apart. All levels are measured on the same windows.
    """
    return min(48, size * 3 // 8)


def correspondence_probe(
    network: Network, images: ProbeImages, *, size: int, seed: int = 0, changes: tuple[Change, ...] = CHANGES,
    radius: float | None = None, progress: ProbeProgress | None = None,
) -> dict[Change, dict[str, Correspondence]]:  # fmt: skip
    """Measure region correspondence of every map of a network, for each kind of change.

    Args:
        network: in evaluation mode.
        images: from which the pairs of views are cut.
        size: side of a view, px, at least 64.
        seed: of crops, colours and warps.
        changes: kinds of change between the two views.
        radius: maximum distance of a correct cell, px; None: one stride of each level.
        progress: reports completed images.

    Raises:
        UserError: no image can be decoded, or no image has a window in both views.
    """
    results: dict[Change, dict[str, Correspondence]] = {}
    for change in changes:
        pairs = known_pairs(images, change, size=size, seed=seed)
        if progress is not None:
            pairs = _report(pairs, lambda pair: len(pair.query), f"correspondence, {change}", len(images), progress)
        try:
            results[change] = correspondences(
                lambda views: network.maps(views)[1],
                pairs,
                strides=network.strides,
                window=probe_window(size),
                step=probe_window(size) // 3,
                radius=radius,
            )
        except ValueError as error:
            raise UserError(f"{images.source}, correspondence: {error}") from None
    return results


def health_probe(
    network: Network, images: ProbeImages, *, size: int, seed: int = 0, progress: ProbeProgress | None = None
) -> dict[str, Health]:
    """Measure the health of every level's vectors of the centres of images, and the alignment of two augmented views.

    Raises:
        UserError: fewer than two images can be decoded.
    """
    views = ViewsConfig(image_size=size, blur_sigma=(0.1 * size / 224, 2.0 * size / 224))
    sampled: dict[int, tuple[Draw, Draw]] = {}

    def cut(photo: Photo, index: int) -> np.ndarray:
        flip, sampled[index] = draw_views(views, photo.width, photo.height, sample_generator(seed, 0, index))
        return np.concatenate([cut_views(photo, flip, sampled[index], size), centre_view(images.open(index), size)])

    batches = read_views(images, range(len(images)), cut, list[BadFile]())
    if progress is not None:
        batches = _report(batches, lambda batch: len(batch[0]), "health", len(images), progress)
    rows: tuple[dict[str, list[Tensor]], ...] = ({}, {}, {})
    for indices, pixels in batches:
        draws = [sampled.pop(index) for index in indices]
        inputs = [
            augment(
                pixels[:, i],
                [pair[i] for pair in draws],
                order=views.photometric_order,
                blur_radius=blur_reach(views.blur_sigma[1]),
            )
            for i in range(2)
        ]
        for view_rows, batch in zip(rows, [*inputs, to_images(pixels[:, 2])], strict=True):
            for level, vectors in network.vectors(batch).items():
                view_rows.setdefault(level, []).append(vectors)
    first, second, centre = ({level: torch.cat(parts) for level, parts in view_rows.items()} for view_rows in rows)
    if not centre or len(next(iter(centre.values()))) < 2:
        raise UserError(f"{images.source}: health needs at least two images that can be decoded")
    return {
        level: dataclasses.replace(measure_health(vectors), alignment=alignment(first[level], second[level]))
        for level, vectors in centre.items()
    }


def _report(
    items: Iterator[Any], count: Callable[[Any], int], task: str, total: int, progress: ProbeProgress
) -> Iterator[Any]:
    """Yield the items, and report each one after it has been used."""
    progress(task, 0, total)
    for item in items:
        yield item
        progress(task, count(item), total)
