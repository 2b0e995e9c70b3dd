"""The key encoder: its momentum update, and its forward pass, in which positives and negatives are made.

Read reference.py first.

Shapes: N images on this process, R windows an image, P cells of a key map without its border, C channels of a level, D
the global width.

Source: He et al., arXiv 1911.05722, sections 3.2 (momentum update) and 3.3 (shuffled BatchNorm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resim.distributed.rows import PendingRows, world
from resim.layers.grouped_norm import count_groups
from resim.model.losses import matmul_dtype, pool_regions, widen
from resim.regions.cells import key_cells
from resim.regions.level import Level

EncoderForward = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


@torch.no_grad()
def update_key_encoder(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """Move the key encoder towards the query encoder: key = momentum * key + (1 - momentum) * query."""
    update = get_ema_multi_avg_fn(momentum)
    update(tuple(key.parameters()), tuple(query.parameters()), 0)


def encode_shuffled(
    encoder: EncoderForward,
    pending_images: PendingRows,
    pending_boxes: Mapping[str, PendingRows],
    levels: Sequence[Level],
    per_pass: int,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Encode the key views of a shuffled batch and pool each level's windows from the key maps.

    Args:
        encoder: the key encoder.
        pending_images: (N, 3, S, S), the key views.
        pending_boxes: by level (N, R, 4), the windows in these views, px.
        levels: levels of the region loss.
        per_pass: images in one forward pass.

    Returns:
        Global vectors (N, D), and by level regions (N, R, C), the positives, and cells (N, P, C), the negatives; all
        L2-normalised.
    """
    images, boxes = pending_images.wait(), {name: rows.wait() for name, rows in pending_boxes.items()}
    dtype = matmul_dtype(images.device)  # before autocast is disabled below
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
    return torch.cat(vectors), _concatenate(regions), _concatenate(cells)


def _concatenate(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(parts.pop(name)) for name in list(parts)}  # pop: each level's parts are freed at once


def narrow_images(images: Tensor) -> Tensor:
    """The images in autocast's dtype if other processes receive them; the first convolution casts them anyway."""
    dtype = matmul_dtype(images.device)
    return images if dtype is None or world()[1] == 1 else images.to(dtype)


def images_per_pass(num_images: int, group_size: int, groups_at_a_time: int | None) -> int:
    """Number of images in one forward pass: those of `groups_at_a_time` groups, or all if it is None.

    Raises:
        ValueError: `groups_at_a_time` is below 1, or `num_images` is not a multiple of the group size.
    """
    if groups_at_a_time is not None and groups_at_a_time < 1:
        raise ValueError(f"groups_at_a_time {groups_at_a_time}: must be at least 1")
    groups = count_groups(num_images, group_size)
    return num_images // groups * min(groups, groups_at_a_time or groups)
