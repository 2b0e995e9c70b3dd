"""The forward pass of the key side: as many images at a time as fit, in the order of the shuffled batch.

Shapes: N images on this process, R windows an image, C channels of a level, M cells of all N, D the global width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.distributed.rows import PendingRows, world
from resim.layers.grouped_norm import count_groups
from resim.model.losses import matmul_dtype, pool_regions, widen
from resim.regions.cells import key_cells
from resim.regions.level import Level

EncoderForward = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


def encode_shuffled(
    encoder: EncoderForward,
    pending: PendingRows,
    pending_boxes: Mapping[str, PendingRows],
    levels: Sequence[Level],
    per_pass: int,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Encode the key images of a shuffled batch, and pool from their maps what the queries need.

    Args:
        encoder: the key encoder.
        pending: (N, 3, S, S), the images.
        pending_boxes: by level (N, R, 4), the windows in these images, px.
        levels: of the region loss.
        per_pass: images in one forward pass.

    Returns:
        Global vectors (N, D), and by level regions (N, R, C) and cells (N, M / N, C), all L2-normalised.
    """
    images, boxes = pending.wait(), {name: rows.wait() for name, rows in pending_boxes.items()}
    dtype = matmul_dtype(images.device)  # read here: autocast is off below
    vectors: list[Tensor] = []
    regions: dict[str, list[Tensor]] = {name: [] for name in boxes}
    cells: dict[str, list[Tensor]] = {name: [] for name in boxes}
    for start in range(0, len(images), per_pass):
        part = slice(start, start + per_pass)
        vector, maps = encoder(images[part])
        with torch.autocast(images.device.type, enabled=False):
            vectors.append(F.normalize(widen(vector), dim=1))
            for level in levels:
                features = widen(maps[level.name])
                regions[level.name].append(pool_regions(features, boxes[level.name][part], level.stride))
                cells[level.name].append(key_cells(features).to(dtype or features.dtype))
    return torch.cat(vectors), _join(regions), _join(cells)


def _join(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(parts.pop(name)) for name in list(parts)}  # popped: each level's parts are freed at once


def narrow_for_transfer(images: Tensor) -> Tensor:
    """The images in autocast's dtype where they go to other processes: the first convolution casts them anyway."""
    dtype = matmul_dtype(images.device)
    return images if dtype is None or world()[1] == 1 else images.to(dtype)


def images_per_pass(images: int, group_size: int, groups_at_a_time: int | None) -> int:
    """Images in one forward pass: all (None), or those of so many groups.

    Raises:
        ValueError: fewer than one group, or images that are no whole number of groups.
    """
    if groups_at_a_time is not None and groups_at_a_time < 1:
        raise ValueError(f"groups_at_a_time {groups_at_a_time}: must be at least 1")
    groups = count_groups(images, group_size)
    return images // groups * min(groups, groups_at_a_time or groups)
