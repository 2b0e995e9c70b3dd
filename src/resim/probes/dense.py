"""Dense features of labelled images: the maps of a frozen network, computed once, and the labels of their cells.

Shapes: N images of S x S px, a map of C channels and H x W cells, K classes.

The cells of a map tile the image evenly: cell (i, j) covers the i-th of H strips of rows and the j-th of W strips of
columns. Scores of pixels are interpolated bilinearly between the centres of these tiles.
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
from resim.probes.features import Network, at_least_float32, plain_draw, read_views, to_images
from resim.probes.label_maps import VOID
from resim.probes.labels import ProbeImages
from resim.probes.unlabelled import ProbeProgress
from resim.views.crops import cut_views
from resim.views.decode import Photo
from resim.views.loader import BadFile

ALL = "all"
"""The level that concatenates all maps of a network, resized to the finest."""
_GIB = 2**30
_HALF_RANGE = (1e-2, 6e4)  # bounds of a map's largest value for which float16 keeps 11 bits


@dataclass(frozen=True, kw_only=True)
class DenseMaps:
    """The maps of N images by one network, on the CPU."""

    maps: dict[str, Tensor]
    """By level, (N, C, H, W) float16, or float32 if values lie outside the range of float16."""
    kept: np.ndarray
    """(N,) int64, index of the image of each row; images that cannot be decoded are omitted."""
    bad: tuple[BadFile, ...] = field(default=())
    """The images that cannot be decoded."""


def dense_maps(
    network: Network,
    images: ProbeImages,
    *,
    size: int,
    levels: Sequence[str] = (),
    memory: float = 4.0,
    progress: ProbeProgress | None = None,
    what: str = "dense features",
) -> DenseMaps:
    """Compute the maps of images, each resized to S x S px without regard to its aspect ratio.

    Args:
        network: in evaluation mode.
        images: to encode.
        size: S.
        levels: maps to compute; empty: all of them.
        memory: maximum size of the maps, GiB.
        progress: reports completed images under the name `what`.
        what: name of the task.

    Raises:
        UserError: the network does not have a level, the maps exceed the memory, or no image can be decoded.
    """
    chosen = tuple(levels) or tuple(network.strides)
    missing = [level for level in chosen if level not in network.strides]
    if missing:
        raise UserError(f"--dense-levels {missing[0]}: {network.name} has {', '.join(network.strides)}")
    if progress is not None:
        progress(what, 0, len(images))
    kept: list[int] = []
    bad: list[BadFile] = []
    maps: dict[str, Tensor] = {}
    for indices, pixels in read_views(images, range(len(images)), lambda photo, _: whole_view(photo, size), bad):
        batch = network.maps(to_images(pixels[:, 0]))[1]
        if not maps:
            required = len(images) * sum(2 * batch[level][0].numel() for level in chosen)
            _check_memory(required, memory, len(images), size)
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
        if progress is not None:
            progress(what, len(indices), len(images))
    if not kept:
        reason = f"{bad[0].path}: {bad[0].reason}"
        raise UserError(f"{images.source}: none of {counted(len(images), 'image')} can be decoded ({reason})")
    filled = {level: values[: len(kept)] for level, values in maps.items()}
    return DenseMaps(maps=filled, kept=np.array(kept, dtype=np.int64), bad=tuple(bad))


def _check_memory(required: int, memory: float, num_images: int, size: int) -> None:
    if required > memory * _GIB:
        raise UserError(
            f"the maps of {num_images} images of {size} px take {required / _GIB:.1f} GiB, --dense-memory is "
            f"{memory:g}: raise it, or reduce --images, --image-size or --dense-levels"
        )


def whole_view(photo: Photo, size: int) -> np.ndarray:
    """The whole image, resized to a square: (1, size, size, 3) uint8."""
    return cut_views(photo, False, (plain_draw((0, 0, photo.height, photo.width)),), size)


def level_names(maps: Mapping[str, Tensor], *, with_all: bool) -> tuple[str, ...]:
    """Names of the maps, and "all" if there are several."""
    return (*maps, ALL) if with_all and len(maps) > 1 else tuple(maps)


def level_maps(maps: Mapping[str, Tensor], level: str, rows: slice, device: torch.device | str = "cpu") -> Tensor:
    """The map of a level of some images: (n, C, H, W), in float32 or wider.

    For "all", the maps are resized bilinearly to the finest of them and their channels are concatenated.
    """
    if level != ALL:
        return at_least_float32(maps[level][rows].to(device))
    finest = max(values.shape[-2:] for values in maps.values())
    parts = [at_least_float32(values[rows].to(device)) for values in maps.values()]
    return torch.cat(
        [part if part.shape[-2:] == finest else F.interpolate(part, size=finest, mode="bilinear") for part in parts],
        dim=1,
    )


def level_shape(maps: Mapping[str, Tensor], level: str) -> tuple[int, int, int]:
    """Number of channels, height and width of a level."""
    if level != ALL:
        _, channels, height, width = maps[level].shape
        return channels, height, width
    height, width = max(values.shape[-2:] for values in maps.values())
    return sum(values.shape[1] for values in maps.values()), height, width


def batches(count: int, size: int = 32) -> Iterator[slice]:
    """Split `count` rows into slices of `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def cell_shares(labels: Tensor, num_classes: int, height: int, width: int) -> Tensor:
    """The class distribution of the labelled pixels of each cell.

    Args:
        labels: (N, S, S), class indices or VOID.
        num_classes: K.
        height: H, of the map.
        width: W, of the map.

    Returns:
        (N, H * W, K) float32, cells row by row; each sums to 1, or to 0 if every pixel of the cell is void.
    """
    rows, columns = _tile(labels.shape[1], height), _tile(labels.shape[2], width)
    cell = (rows[:, None] * width + columns[None, :]).to(labels.device)
    image = torch.arange(len(labels), device=labels.device)[:, None, None] * (height * width)
    known = labels != VOID
    index = ((image + cell) * num_classes + labels.long())[known]
    counts = torch.bincount(index, minlength=len(labels) * height * width * num_classes)
    counts = counts.view(len(labels), height * width, num_classes).float()
    return counts / counts.sum(dim=2, keepdim=True).clamp(min=1)


def _tile(pixels: int, cells: int) -> Tensor:
    """Index of the strip that contains the centre of each pixel."""
    return ((torch.arange(pixels) + 0.5) * cells / pixels).long().clamp(max=cells - 1)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """M labelled cells of a map of H x W cells."""

    image: Tensor
    """(M,) int64, ascending."""
    cell: Tensor
    """(M,) int64, i * W + j."""
    shares: Tensor
    """(M, K) float32, class distributions from `cell_shares`."""

    def __len__(self) -> int:
        return len(self.image)


def sample_cells(
    labels: Tensor, num_classes: int, shape: tuple[int, int], *, most: int, seed: int, images: Sequence[int] = ()
) -> Cells:
    """Sample labelled cells at random, at most `most / N` of each of N images, and at least one.

    Args:
        labels: (N', S, S).
        num_classes: K.
        shape: H, W.
        most: maximum number of cells over all images.
        seed: of the choice; the cells of an image depend on the seed and the index of the image only.
        images: N indices into `labels`; empty: all of them.
    """
    chosen = list(images) or list(range(len(labels)))
    per_image = max(1, most // len(chosen))
    image, cell, shares = list[Tensor](), list[Tensor](), list[Tensor]()
    for rows in batches(len(chosen)):
        indices = chosen[rows]
        for index, distributions in zip(indices, cell_shares(labels[indices], num_classes, *shape), strict=True):
            known = distributions.sum(dim=1).nonzero()[:, 0]
            if len(known) > per_image:
                order = np.random.default_rng([11, seed, index]).permutation(len(known))[:per_image]
                known = known[torch.from_numpy(np.sort(order))]
            image.append(torch.full((len(known),), index))
            cell.append(known)
            shares.append(distributions[known])
    return Cells(image=torch.cat(image), cell=torch.cat(cell), shares=torch.cat(shares))


def gather_cells(maps: Mapping[str, Tensor], level: str, cells: Cells, device: torch.device | str = "cpu") -> Tensor:
    """The features of cells: (M, C), in float32 or wider."""
    channels = level_shape(maps, level)[0]
    dtype = torch.promote_types(next(iter(maps.values())).dtype, torch.float32)
    result = torch.empty((len(cells), channels), dtype=dtype, device=device)
    for rows in batches(len(next(iter(maps.values())))):
        is_here = (cells.image >= rows.start) & (cells.image < rows.stop)
        if is_here.any():
            features = level_maps(maps, level, rows, device).flatten(2).transpose(1, 2)
            image, cell = cells.image[is_here].to(device) - rows.start, cells.cell[is_here].to(device)
            result[is_here.to(device)] = features[image, cell]
    return result


def upsample(scores: Tensor, size: int) -> Tensor:
    """Interpolate scores of cells (n, K, H, W) bilinearly to scores of pixels (n, K, size, size)."""
    return F.interpolate(scores, size=(size, size), mode="bilinear")
