"""Dense features of labelled images: the maps of a frozen network, computed once, and which pixels belong to a cell.

Shapes: N images of S x S px, a map of C channels and H x W cells, K classes.

A map's cells tile the image evenly: cell (i, j) stands for the i-th of H strips of rows and the j-th of W strips of
columns. Scores of cells become scores of pixels by bilinear interpolation between the centres of the tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.counts import counted
from resim.errors import UserError
from resim.probes.features import Network, plain_draw, read_views, to_images
from resim.probes.label_maps import VOID
from resim.probes.labels import ProbeImages
from resim.probes.unlabelled import Told
from resim.views.crops import cut_views
from resim.views.decode import Photo
from resim.views.loader import BadFile

ALL = "all"
"""The level that is every map of a network, each resized to the finest of them, one above the other."""
_GIB = 2**30
_HALF_RANGE = (1e-2, 6e4)  # of a map's largest value: float16 keeps 11 bits of what lies well within its range


@dataclass(frozen=True, kw_only=True)
class DenseMaps:
    """Every map of N images by one network, on the CPU."""

    maps: dict[str, Tensor]
    """By level, (N, C, H, W) float16, or float32 where values lie outside the range of float16."""
    kept: np.ndarray
    """(N,) int64: which image each row is of; those that cannot be decoded are left out."""
    bad: tuple[BadFile, ...] = field(default=())
    """The images left out."""


def dense_maps(
    network: Network,
    images: ProbeImages,
    *,
    size: int,
    levels: Sequence[str] = (),
    memory: float = 4.0,
    told: Told | None = None,
    what: str = "dense features",
) -> DenseMaps:
    """Encode images, each resized as a whole to S x S px whatever its aspect, and keep their maps.

    Args:
        network: in evaluation mode.
        images: what to encode.
        size: S.
        levels: maps to keep; empty: all of them.
        memory: most GiB that the maps may take.
        told: progress, under the name `what`.
        what: see `told`.

    Raises:
        UserError: a level that the network does not have, maps that take more memory, or no image that can be decoded.
    """
    chosen = tuple(levels) or tuple(network.strides)
    missing = [level for level in chosen if level not in network.strides]
    if missing:
        raise UserError(f"--dense-levels {missing[0]}: {network.name} has {', '.join(network.strides)}")
    if told is not None:
        told(what, 0, len(images))
    kept: list[int] = []
    bad: list[BadFile] = []
    maps: dict[str, Tensor] = {}
    for indices, pixels in read_views(images, range(len(images)), lambda photo, _: whole_view(photo, size), bad):
        batch = network.maps(to_images(pixels[:, 0]))[1]
        if not maps:
            needed = len(images) * sum(2 * batch[level][0].numel() for level in chosen)
            _check_memory(needed, memory, len(images), size)
            maps = {level: batch[level].new_empty((len(images), *batch[level].shape[1:]), dtype=torch.float16,
                                                  device="cpu") for level in chosen}  # fmt: skip
        for level in chosen:
            values = batch[level].float().cpu()
            largest = float(values.abs().max())
            if maps[level].dtype == torch.float16 and not (largest == 0 or _HALF_RANGE[0] < largest < _HALF_RANGE[1]):
                maps[level] = maps[level].float()
                _check_memory(sum(values.nbytes for values in maps.values()), memory, len(images), size)
            maps[level][len(kept) : len(kept) + len(indices)] = values
        kept += indices
        if told is not None:
            told(what, len(indices), len(images))
    if not kept:
        reason = f"{bad[0].path}: {bad[0].reason}"
        raise UserError(f"{images.source}: none of {counted(len(images), 'image')} can be decoded ({reason})")
    cut = {level: values[: len(kept)] for level, values in maps.items()}
    return DenseMaps(maps=cut, kept=np.array(kept, dtype=np.int64), bad=tuple(bad))


def _check_memory(needed: int, memory: float, num_images: int, size: int) -> None:
    if needed > memory * _GIB:
        raise UserError(
            f"the maps of {num_images} images of {size} px take {needed / _GIB:.1f} GiB, --dense-memory is {memory:g}: "
            "raise it, or set --images, --image-size or --dense-levels to less"
        )


def whole_view(photo: Photo, size: int) -> np.ndarray:
    """(1, size, size, 3) uint8: the whole image, resized to a square."""
    return cut_views(photo, False, (plain_draw((0, 0, photo.height, photo.width)),), size)


def level_names(maps: Mapping[str, Tensor], *, with_all: bool) -> tuple[str, ...]:
    """The maps, and "all" where there is more than one of them."""
    return (*maps, ALL) if with_all and len(maps) > 1 else tuple(maps)


def level_maps(maps: Mapping[str, Tensor], level: str, rows: slice, device: torch.device | str = "cpu") -> Tensor:
    """Some images' map of a level, or of all levels together, (n, C, H, W) in float32 or wider.

    For "all" every map is resized bilinearly to the greatest height and width among them; channels are put together.
    """
    if level != ALL:
        return _wide(maps[level][rows].to(device))
    finest = max(values.shape[-2:] for values in maps.values())
    parts = [_wide(values[rows].to(device)) for values in maps.values()]
    return torch.cat(
        [part if part.shape[-2:] == finest else F.interpolate(part, size=finest, mode="bilinear") for part in parts],
        dim=1,
    )


def level_shape(maps: Mapping[str, Tensor], level: str) -> tuple[int, int, int]:
    """Channels, height and width of a level."""
    if level != ALL:
        _, channels, height, width = maps[level].shape
        return channels, height, width
    height, width = max(values.shape[-2:] for values in maps.values())
    return sum(values.shape[1] for values in maps.values()), height, width


def batches(count: int, size: int = 32) -> Iterator[slice]:
    """Slices of `size` of `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def cell_shares(labels: Tensor, num_classes: int, height: int, width: int) -> Tensor:
    """How the labelled pixels of each cell are shared among the classes.

    Args:
        labels: (N, S, S), positions of classes or VOID.
        num_classes: K.
        height: H, of the map.
        width: W.

    Returns:
        (N, H * W, K) float32, cells row by row; each sums to 1, or to 0 where every pixel of the cell is void.
    """
    rows, columns = _tile(labels.shape[1], height), _tile(labels.shape[2], width)
    cell = (rows[:, None] * width + columns[None, :]).to(labels.device)
    image = torch.arange(len(labels), device=labels.device)[:, None, None] * (height * width)
    counted = labels != VOID
    place = ((image + cell) * num_classes + labels.long())[counted]
    counts = torch.bincount(place, minlength=len(labels) * height * width * num_classes)
    counts = counts.view(len(labels), height * width, num_classes).float()
    return counts / counts.sum(dim=2, keepdim=True).clamp(min=1)


def _tile(pixels: int, cells: int) -> Tensor:
    """The strip that holds the centre of each pixel."""
    return ((torch.arange(pixels) + 0.5) * cells / pixels).long().clamp(max=cells - 1)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """M labelled cells of a map of H x W cells."""

    image: Tensor
    """(M,) int64, ascending."""
    cell: Tensor
    """(M,) int64, i * W + j."""
    shares: Tensor
    """(M, K) float32, as `cell_shares` gives them."""

    def __len__(self) -> int:
        return len(self.image)


def sample_cells(
    labels: Tensor, num_classes: int, shape: tuple[int, int], *, most: int, seed: int, images: Sequence[int] = ()
) -> Cells:
    """Labelled cells of images, at most `most / N` of each (but one), chosen at random.

    Args:
        labels: (N', S, S).
        num_classes: K.
        shape: H, W.
        most: cells, over all images.
        seed: of the choice; an image's cells depend on it and on the image's position alone.
        images: N positions in `labels`; empty: all of them.
    """
    chosen = list(images) or list(range(len(labels)))
    each = max(1, most // len(chosen))
    image, cell, shares = list[Tensor](), list[Tensor](), list[Tensor]()
    for rows in batches(len(chosen)):
        indices = chosen[rows]
        for index, of_image in zip(indices, cell_shares(labels[indices], num_classes, *shape), strict=True):
            known = of_image.sum(dim=1).nonzero()[:, 0]
            if len(known) > each:
                order = np.random.default_rng([11, seed, index]).permutation(len(known))[:each]
                known = known[torch.from_numpy(np.sort(order))]
            image.append(torch.full((len(known),), index))
            cell.append(known)
            shares.append(of_image[known])
    return Cells(image=torch.cat(image), cell=torch.cat(cell), shares=torch.cat(shares))


def gather_cells(maps: Mapping[str, Tensor], level: str, cells: Cells, device: torch.device | str = "cpu") -> Tensor:
    """The features of cells, (M, C) in float32 or wider."""
    channels = level_shape(maps, level)[0]
    some = next(iter(maps.values())).dtype
    found = torch.empty((len(cells), channels), dtype=torch.promote_types(some, torch.float32), device=device)
    for rows in batches(len(next(iter(maps.values())))):
        own = (cells.image >= rows.start) & (cells.image < rows.stop)
        if own.any():
            features = level_maps(maps, level, rows, device).flatten(2).transpose(1, 2)
            found[own.to(device)] = features[cells.image[own].to(device) - rows.start, cells.cell[own].to(device)]
    return found


def upsample(scores: Tensor, size: int) -> Tensor:
    """(n, K, H, W) scores of cells -> (n, K, size, size) scores of pixels."""
    return F.interpolate(scores, size=(size, size), mode="bilinear")


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
