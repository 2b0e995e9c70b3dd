"""Variants of ReSim that a study compares with it; the package does not offer them.

`resim-fpn+variant=own-masked`: a window is not compared with the cells of its own image that overlap its positive.
`resim-fpn+variant=window-negatives`: the negatives are pooled like the positives, which are the windows of the others.
`resim-fpn+variant=symmetric`: each view is a query and a key; a step has twice as many of both, at twice the cost.

They are computed densely, for batches of CPU size on one process.

Shapes: N images of a batch, n queries' images, R windows an image, P cells of a key map, B groups, C channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import resim.model.resim as model
import resim.training.prepare as preparation
from resim.distributed.rows import PendingRows, exchange_rows
from resim.model.infonce import Contrast
from resim.model.keys import KeyWindows, LevelKeys, map_to_keys
from resim.model.losses import Similarity, mean_over_groups, pool_regions
from resim.regions.level import Level
from resim.training.step import Stepper, make_stepper
from resim.views.views import Views


def apply_variant(method: str) -> contextlib.AbstractContextManager[None]:
    """While inside, pre-training follows the variant that the method names; without one it is ReSim's.

    Raises:
        KeyError: there is no such variant.
    """
    names = [text.removeprefix("variant=") for text in method.split("+") if text.startswith("variant=")]
    return VARIANTS[names[-1]]() if names else contextlib.nullcontext()


def contrast_densely(
    queries: Tensor, positives: Tensor, negatives: Tensor, allowed: Tensor, temperature: float
) -> Contrast:
    """InfoNCE in which each query has negatives of its own.

    Args:
        queries: (B, n * R, C), L2-normalised.
        positives: likewise.
        negatives: (B, M, C), L2-normalised.
        allowed: (B, n * R, M) bool, the negatives of each query.
        temperature: divides every similarity.
    """
    positive = (queries * positives).sum(-1, keepdim=True)
    logits = (queries @ negatives.transpose(1, 2)).masked_fill(~allowed, -torch.inf)
    loss = F.cross_entropy(
        torch.cat([positive, logits], -1).flatten(0, 1) / temperature,
        torch.zeros(positive.numel(), dtype=torch.long, device=positive.device),
        reduction="none",
    )
    return Contrast(loss.reshape(positive.shape[:2]), positive[..., 0] > logits.amax(-1))


def by_group(rows: Tensor, level: Level, part: slice, groups: int) -> Tensor:
    """(N, ...) -> (B, images, ...): those whose cells are negatives of the queries `part`, group by group."""
    return rows[part].unflatten(0, (groups, -1)) if level.negatives == "group" else rows[None]


def own_image(rows: Tensor, level: Level, part: slice, groups: int) -> Tensor:
    """(B, n / B, images) bool: which of the images of `by_group` is the query's own."""
    if level.negatives == "group":
        count = (part.stop - part.start) // groups
        return torch.eye(count, dtype=torch.bool, device=rows.device).expand(groups, -1, -1)
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)[None, part]


class OwnMasked:
    """The overlaps of positives with the cells of their own images, kept from the mapping of windows to the losses."""

    def __init__(self) -> None:
        self.boxes: dict[str, Tensor] = {}

    def map_to_keys(self, level: Level, views_q: Views, views_k: Views) -> KeyWindows:
        """As resim.model.keys.map_to_keys; the boxes are kept."""
        windows = map_to_keys(level, views_q, views_k)
        self.boxes[level.name] = windows.boxes
        return windows

    def region_similarity(
        self, features: Tensor, keys: LevelKeys, level: Level, part: slice, *, groups: int, temperature: float, **_: Any
    ) -> Similarity:
        """As resim.model.losses.region_similarity, without the cells that overlap the positive."""
        cells = keys.cells.wait().to(torch.float32)  # (N, P, C)
        boxes = self.boxes[level.name][part].to(features.device)
        overlap = overlaps(boxes, features.shape[-1], level.stride)  # (n, R, P)
        own = own_image(cells, level, part, groups)
        # (B, n / B, R, images, P)
        forbidden = overlap.unflatten(0, (own.shape[0], -1))[:, :, :, None] & own[:, :, None, :, None]
        negatives = by_group(cells, level, part, groups)
        return _similarity(features, keys, level, part, negatives, ~forbidden, groups, temperature)


def overlaps(boxes: Tensor, side: int, stride: int) -> Tensor:
    """Whether the box of a window and the 3 x 3 neighbourhood of a cell of the same view have an area in common.

    Args:
        boxes: (n, R, 4), px.
        side: of the map, with its border.
        stride: of the map, px.

    Returns:
        (n, R, P) bool, P = (side - 2)^2.
    """
    starts = torch.arange(side - 2, dtype=boxes.dtype, device=boxes.device) * stride
    ends = starts + 3 * stride
    along_x = (boxes[..., 0, None] < ends) & (starts < boxes[..., 2, None])  # (n, R, side - 2)
    along_y = (boxes[..., 1, None] < ends) & (starts < boxes[..., 3, None])
    return (along_y[..., :, None] & along_x[..., None, :]).flatten(-2)


def window_negatives(
    features: Tensor, keys: LevelKeys, level: Level, part: slice, *, groups: int, temperature: float, **_: Any
) -> Similarity:
    """Region similarity whose negatives are the positives of all other windows."""
    positives = keys.positives.wait().to(torch.float32)  # (N, R, C)
    own = own_image(positives, level, part, groups)
    same_window = torch.eye(positives.shape[1], dtype=torch.bool, device=features.device)
    forbidden = own[:, :, None, :, None] & same_window[:, None, :]  # (B, n / B, R, images, R)
    valid = by_group(keys.valid, level, part, groups)[:, None, None]
    return _similarity(
        features, keys, level, part, by_group(positives, level, part, groups), ~forbidden & valid, groups, temperature
    )


def _similarity(
    features: Tensor, keys: LevelKeys, level: Level, part: slice, negatives: Tensor, allowed: Tensor, groups: int,
    temperature: float,
) -> Similarity:  # fmt: skip
    """Region similarity of the queries `part`, with negatives (B, images, P, C), `allowed` (B, n / B, R, images, P)."""
    queries = pool_regions(features, keys.windows, level.stride)
    batches = len(negatives)
    queries, positives = (
        rows.flatten(0, 1).unflatten(0, (batches, -1)) for rows in (queries, keys.positives.wait()[part])
    )
    contrast = contrast_densely(
        queries, positives, negatives.flatten(1, 2), allowed.flatten(3).flatten(1, 2), temperature
    )
    return mean_over_groups(contrast, keys.valid[part], groups)


def _share_in_order(cells: Tensor, level: Level, back: Tensor | None) -> PendingRows:
    return exchange_rows(cells, back)


class SymmetricStepper(Stepper):
    """A step in which each view is a query and a key."""

    def __call__(self, views_q: Views, views_k: Views, order: Tensor | None) -> dict[str, Tensor]:
        """As Stepper, with a batch of twice the size."""
        both = None if order is None else torch.cat([order, order + len(order)])
        return super().__call__(_joined(views_q, views_k), _joined(views_k, views_q), both)


def _joined(first: Views, second: Views) -> Views:
    flips = [views.flipped for views in (first, second)]
    flipped = None if flips[0] is None or flips[1] is None else torch.cat([flips[0], flips[1]])
    return Views(torch.cat([first.images, second.images]), torch.cat([first.crops, second.crops]), flipped)


def _make_symmetric(*arguments: Any, **options: Any) -> Stepper:
    stepper = make_stepper(*arguments, **options)
    return SymmetricStepper(**vars(stepper))


@contextlib.contextmanager
def _own_masked() -> Iterator[None]:
    own = OwnMasked()
    with mock.patch.multiple(
        model, map_to_keys=own.map_to_keys, share_cells=_share_in_order, region_similarity=own.region_similarity
    ):
        yield


VARIANTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "own-masked": _own_masked,
    "window-negatives": lambda: mock.patch.object(model, "region_similarity", window_negatives),
    "symmetric": lambda: mock.patch.object(preparation, "make_stepper", _make_symmetric),
}
