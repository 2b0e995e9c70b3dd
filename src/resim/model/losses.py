"""The objective: image similarity, region similarity at each level, and their weighted sum. Read reference.py first.

Shapes: n query views of this process, R windows, C channels of a level, D the global width, M negatives.

Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.model.config import ModelConfig
from resim.model.infonce import Contrast, info_nce
from resim.model.keys import LevelKeys
from resim.regions.level import Level
from resim.regions.pooling import precise_roi_pool


class Similarity(NamedTuple):
    """A loss with its diagnostics, each a scalar and a mean over groups."""

    loss: Tensor
    """With gradient."""
    accuracy: Tensor
    """Share of the valid queries whose positive is more similar than every negative."""
    valid: Tensor
    """Share of the queries that are valid."""


def image_similarity(queries: Tensor, keys: Tensor, queue: Tensor, *, groups: int, temperature: float) -> Similarity:
    """Compare each image's query with its key, against the queue of earlier keys (section 3.1).

    Args:
        queries: (n, D), global vectors of the query views, not yet normalised.
        keys: (n, D), L2-normalised global vectors of the key views of the same images.
        queue: (K, D), the negatives.
        groups: number of groups in the n images.
        temperature: divides every similarity.
    """
    queries = F.normalize(widen(queries), dim=1)
    contrast = info_nce(queries, keys, queue.to(queries.dtype), temperature=temperature)
    return mean_over_groups(contrast, torch.ones(len(queries), dtype=torch.bool, device=queries.device), groups)


def region_similarity(
    features: Tensor,
    keys: LevelKeys,
    level: Level,
    part: slice,
    *,
    groups: int,
    temperature: float,
    matmul_dtype: torch.dtype | None,
) -> Similarity:
    """Compare each window of the query maps with the same region of the key maps, against their cells (section 3.2).

    Args:
        features: (n, C, H, W), the query maps of this level.
        keys: keys of this level, for all images of this process.
        level: the level of the region loss.
        part: where the n images are in this process's batch.
        groups: number of groups in the n images.
        temperature: divides every similarity.
        matmul_dtype: as in `info_nce`.
    """
    regions = pool_regions(features, keys.windows, level.stride).flatten(0, 1)  # (n * R, C)
    positives = keys.positives.wait()[part].flatten(0, 1)
    negatives = keys.cells.wait()
    if level.negatives == "group":
        regions, positives = (x.unflatten(0, (groups, -1)) for x in (regions, positives))
        negatives = negatives[part].flatten(0, 1).unflatten(0, (groups, -1))
    contrast = info_nce(regions, positives, negatives, temperature=temperature, matmul_dtype=matmul_dtype)
    return mean_over_groups(contrast, keys.valid[part], groups)


def total_loss(losses: Mapping[str, Tensor], config: ModelConfig) -> Tensor:
    """The weighted sum of the image loss and every level's region loss, a scalar (section 3.3)."""
    weights = {"instance": config.instance_weight} | {level.name: level.weight for level in config.levels}
    return torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()


def pool_regions(features: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """(n, R, C): regions of the maps (n, C, H, W), pooled to one vector each and L2-normalised."""
    return F.normalize(precise_roi_pool(widen(features), boxes, stride), dim=-1)


def widen(x: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of products with negatives: autocast's if it is enabled, else None (that of the factors)."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def mean_over_groups(contrast: Contrast, valid: Tensor, groups: int) -> Similarity:
    """Mean over the valid queries of each group (0 if it has none), then over groups."""
    loss, correct, valid = (x.reshape(groups, -1) for x in (*contrast, valid))
    num_valid = valid.sum(1).clamp(min=1)
    return Similarity(
        (torch.where(valid, loss, 0.0).sum(1) / num_valid).mean(),
        ((correct & valid).sum(1) / num_valid).mean(),
        valid.float().mean(),
    )
