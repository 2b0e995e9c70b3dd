"""The key side of a step: windows mapped into the key views, and the keys of the queries. Read reference.py first.

Shapes: N images on this process of W, R windows, P cells of a key map without its border, C channels of a level, D the
global width.

Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resim.distributed.hosts import gather_rows_of_host, is_one_host
from resim.distributed.rows import PendingRows, exchange_rows, gather_rows, world
from resim.regions.level import Level
from resim.regions.windows import inside_view, map_windows
from resim.views.views import Views


@dataclass(frozen=True)
class KeyWindows:
    """The windows of one level in the key views."""

    grid: Tensor
    """(R, 4) float64, the windows over every query view, px."""
    boxes: Tensor
    """(N, R, 4) float64, the same regions in the key views, px; zeros where not valid."""
    valid: Tensor
    """(N, R) bool: the region lies wholly inside the key view."""


def map_to_keys(level: Level, views_q: Views, views_k: Views) -> KeyWindows:
    """Map a level's windows from the query views through the source images into the key views."""
    grid = level.windows(views_q.size)
    flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
    boxes = map_windows(grid.to(views_q.crops.device), views_q.crops, views_k.crops, views_k.size, **flips)
    valid = inside_view(boxes, views_k.size)
    return KeyWindows(grid, torch.where(valid[..., None], boxes, 0.0), valid)


@dataclass(frozen=True)
class LevelKeys:
    """The windows, positives and negatives of one level, without gradient; images in the order of the queries."""

    windows: Tensor
    """(R, 4) float64, the grid over every query view, px."""
    valid: Tensor
    """(N, R) bool: the window lies wholly inside the key view."""
    positives: PendingRows
    """(N, R, C), L2-normalised."""
    cells: PendingRows
    """Negatives, L2-normalised, as `share_cells` returns them: (N, P, C), or (M, C) in no order."""


def share_cells(cells: Tensor, level: Level, back: Tensor | None) -> PendingRows:
    """Transfer key cells to the processes whose windows are compared with them (section 3.2).

    A window's negatives are the cells of all images of its group, its own image included (`negatives="group"`, P3), of
    all images whose queries are on its host (`"node"`), or of all images of all processes (`"all"`, P4). For a group
    and a node the cells of each image return to the process that has its query; those of a node are then gathered on
    its processes, when they are waited for. For all, every process receives every cell. On one host, a node is all.

    Args:
        cells: (N, P, C), of the images that this process encoded, which are those of the shuffled batch.
        level: of the cells.
        back: inverse of the shuffle; None: there was none.

    Returns:
        (N, P, C) in the order of the queries; for "all" (W * N * P, C) in the order of the shuffle, on which the loss
        does not depend; for "node" (L * N * P, C), of the L processes of the host.

    Raises:
        UserError: "node", and which processes are on one host is not known.
    """
    if level.negatives == "all" or (level.negatives == "node" and is_one_host()):
        return gather_rows(cells).then(lambda rows: rows.flatten(0, 1))
    returned = exchange_rows(cells, back)
    if level.negatives == "node":
        return returned.then(lambda rows: gather_rows_of_host(rows).flatten(0, 1))
    return returned


@dataclass(frozen=True)
class Keys:
    """All keys of a step; images in the order of the queries."""

    all_vectors: PendingRows
    """(W * N, D), L2-normalised: the keys of all processes, which enter the queue."""
    num_images: int
    """N."""
    levels: dict[str, LevelKeys]

    def local_vectors(self) -> Tensor:
        """Wait for the keys of all processes and return those of this process: (N, D)."""
        rank, _ = world()
        return self.all_vectors.wait()[rank * self.num_images : (rank + 1) * self.num_images]

    def without_levels(self) -> Keys:
        """The keys that `ReSim.finish_step` needs; those of the levels can be freed."""
        return replace(self, levels={})
