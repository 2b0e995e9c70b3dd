"""Probes of a network that need no classes: region correspondence, and the health of its vectors.

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

Told = Callable[[str, int, int], None]
"""Called with what is being done, how many more images of it are done, and how many there are."""


def probe_window(size: int) -> int:
    """Side of the windows in a view of `size` px: 48 px, 3/8 of a view below 128 px; they lie a third of it apart.

    The same for every level, so that levels answer the same questions.
    """
    return min(48, size * 3 // 8)


def correspondence_probe(
    network: Network, images: ProbeImages, *, size: int, seed: int = 0, changes: tuple[Change, ...] = CHANGES,
    radius: float | None = None, told: Told | None = None,
) -> dict[Change, dict[str, Correspondence]]:  # fmt: skip
    """Region correspondence of every map of a network, for each kind of change.

    Args:
        network: in evaluation mode.
        images: whose views are compared.
        size: side of a view, px, at least 64.
        seed: of crops, colours and warps.
        changes: kinds of change between the two views.
        radius: up to which distance a cell counts as right, px; default: one stride of each level.
        told: progress.

    Raises:
        UserError: none of the images can be decoded, or none has a window in both views.
    """
    found: dict[Change, dict[str, Correspondence]] = {}
    for change in changes:
        pairs = known_pairs(images, change, size=size, seed=seed)
        if told is not None:
            pairs = _counted(pairs, lambda pair: len(pair.query), f"correspondence, {change}", len(images), told)
        try:
            found[change] = correspondences(
                lambda views: network.maps(views)[1],
                pairs,
                strides=network.strides,
                window=probe_window(size),
                step=probe_window(size) // 3,
                radius=radius,
            )
        except ValueError as error:
            raise UserError(f"{images.source}, correspondence: {error}") from None
    return found


def health_probe(
    network: Network, images: ProbeImages, *, size: int, seed: int = 0, told: Told | None = None
) -> dict[str, Health]:
    """Health of the vectors of every level, of the images' centres; alignment between two random views of each.

    Raises:
        UserError: fewer than two images can be decoded.
    """
    views = ViewsConfig(image_size=size, blur_sigma=(0.1 * size / 224, 2.0 * size / 224))
    drawn: dict[int, tuple[Draw, Draw]] = {}

    def cut(photo: Photo, index: int) -> np.ndarray:
        flip, drawn[index] = draw_views(views, photo.width, photo.height, sample_generator(seed, 0, index))
        return np.concatenate([cut_views(photo, flip, drawn[index], size), centre_view(images.open(index), size)])

    batches = read_views(images, range(len(images)), cut, list[BadFile]())
    if told is not None:
        batches = _counted(batches, lambda batch: len(batch[0]), "health", len(images), told)
    rows: tuple[dict[str, list[Tensor]], ...] = ({}, {}, {})
    for indices, pixels in batches:
        draws = [drawn.pop(index) for index in indices]
        inputs = [
            augment(
                pixels[:, i],
                [pair[i] for pair in draws],
                order=views.photometric_order,
                blur_radius=blur_reach(views.blur_sigma[1]),
            )
            for i in range(2)
        ]
        for kept, batch in zip(rows, [*inputs, to_images(pixels[:, 2])], strict=True):
            for level, vectors in network.vectors(batch).items():
                kept.setdefault(level, []).append(vectors)
    first, second, centre = ({level: torch.cat(parts) for level, parts in kept.items()} for kept in rows)
    if not centre or len(next(iter(centre.values()))) < 2:
        raise UserError(f"{images.source}: health needs two images or more that can be decoded")
    return {
        level: dataclasses.replace(measure_health(vectors), alignment=alignment(first[level], second[level]))
        for level, vectors in centre.items()
    }


def _counted(items: Iterator[Any], count: Callable[[Any], int], what: str, of: int, told: Told) -> Iterator[Any]:
    told(what, 0, of)
    for item in items:
        yield item
        told(what, count(item), of)
