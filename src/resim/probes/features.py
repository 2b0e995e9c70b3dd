"""Features of a frozen network: the maps it looks at, and their means over each image, computed once and kept.

Shapes: N images, C channels, a map of H x W cells, views of S x S px.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from resim.counts import counted
from resim.errors import UserError
from resim.model.encoder import Encoder
from resim.probes.labels import ProbeImages
from resim.regions.level import Level
from resim.views.crops import NO_JITTER, Draw, cut_views
from resim.views.decode import BadImageError, Photo
from resim.views.loader import BadFile
from resim.views.photometric import normalize

GLOBAL = "global"
_CENTRE = 224 / 256  # side of the centre crop over the shorter side, the usual way to test on ImageNet
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Network:
    """A frozen encoder and how to run it."""

    name: str
    """What to call it in a table."""
    encoder: Encoder
    """In evaluation mode, on the device where it is to run."""
    has_head: bool = True
    """Whether its global head holds anything; False for a bare backbone."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs convolutions in bfloat16 (autocast); features are float32 all the same."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.encoder.parameters()).device

    @property
    def strides(self) -> dict[str, int]:
        """Every map that it has, and the pixels of a view that a cell stands for.

        C3, C4, C5 are the backbone's own, P levels the FPN's; C4+conv is C4 behind the convolution that its level has.
        """
        levels = {stage: Level(name=stage).stride for stage in ("C3", "C4", "C5")}
        levels |= {f"{name}+conv": Level(name=name).stride for name in self.encoder.convs}
        pyramid = () if self.encoder.fpn is None else self.encoder.fpn.levels
        return levels | {name: Level(name=name).stride for name in sorted(pyramid)}

    @torch.no_grad()
    def maps(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The global vectors (N, D) if it has a head, and its maps (N, C, H, W), all float32 or wider.

        Args:
            images: (N, 3, S, S) normalised views, on any device.

        Raises:
            UserError: a map or vector that is not finite: any number measured on it would be wrong.
        """
        if self.encoder.training:
            raise ValueError("a network is probed in evaluation mode: call its eval() first")
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            stages = self.encoder.backbone(images)
            vectors, levels = self.encoder.from_stages(stages)
        found = {stage: _wide(stages[stage]) for stage in ("C3", "C4", "C5")}
        found |= {name if name[0] == "P" else f"{name}+conv": _wide(levels[name]) for name in sorted(levels)}
        self._check_finite(found | ({GLOBAL: vectors} if self.has_head else {}))
        return _wide(vectors) if self.has_head else None, found

    @torch.no_grad()
    def c5(self, images: Tensor) -> Tensor:
        """The mean of C5 over each image alone, (N, C).

        Raises:
            UserError: as `maps`.
        """
        if self.encoder.training:
            raise ValueError("a network is probed in evaluation mode: call its eval() first")
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            means = _wide(self.encoder.backbone(images)["C5"]).mean(dim=(2, 3))
        self._check_finite({"C5": means})
        return means

    def vectors(self, images: Tensor) -> dict[str, Tensor]:
        """Every map's mean over each image, (N, C), and the global vectors under "global" if it has a head."""
        head, maps = self.maps(images)
        means = {name: cells.mean(dim=(2, 3)) for name, cells in maps.items()}
        return means if head is None else means | {GLOBAL: head}

    def _check_finite(self, features: dict[str, Tensor]) -> None:
        wild = [name for name, values in features.items() if not values.isfinite().all()]
        if wild:
            raise UserError(f"{self.name}: gives features that are not finite ({', '.join(wild)}): nothing to measure")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Vectors of N images."""

    vectors: dict[str, Tensor]
    """By level, (N, C) float32 on the CPU."""
    kept: np.ndarray
    """(N,) int64: which image each row is of; those that cannot be decoded are left out."""
    bad: tuple[BadFile, ...] = field(default=())
    """The images left out."""


def pooled_features(
    network: Network, images: ProbeImages, *, size: int, told: Callable[[int], None] | None = None
) -> Features:
    """Vectors of the centre of every image, each computed once.

    Args:
        network: what computes them.
        images: with or without classes.
        size: S; the central 7/8 of the shorter side is resized to it.
        told: called with the number of images done, now and then.

    Raises:
        UserError: none of the images can be decoded.
    """
    rows: dict[str, list[Tensor]] = {}
    kept: list[int] = []
    bad: list[BadFile] = []
    for indices, pixels in read_views(images, range(len(images)), lambda photo, _: centre_view(photo, size), bad):
        for name, vectors in network.vectors(to_images(pixels[:, 0])).items():
            rows.setdefault(name, []).append(vectors.float().cpu())
        kept += indices
        if told is not None:
            told(len(indices))
    if not kept:
        raise UserError(
            f"{images.source}: none of {counted(len(images), 'image')} can be decoded ({bad[0].path}: {bad[0].reason})"
        )
    return Features(
        vectors={name: torch.cat(parts) for name, parts in rows.items()},
        kept=np.array(kept, dtype=np.int64),
        bad=tuple(bad),
    )


def centre_view(photo: Photo, size: int) -> np.ndarray:
    """(1, size, size, 3) uint8: the central square of 7/8 of the shorter side, resized."""
    side = max(1, round(_CENTRE * min(photo.width, photo.height)))
    crop = ((photo.height - side) // 2, (photo.width - side) // 2, side, side)
    return cut_views(photo, False, (plain_draw(crop),), size)


def plain_draw(crop: tuple[int, int, int, int]) -> Draw:
    """A view of a crop (top, left, height, width) with its colours as they are."""
    return Draw(crop=crop, flipped=False, jitter=NO_JITTER, jitter_order=(0, 1, 2, 3), gray=False, sigma=0.0)


def to_images(pixels: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) float32, normalised."""
    return normalize(pixels.permute(0, 3, 1, 2).float() / 255)


def read_views(
    images: ProbeImages,
    indices: Sequence[int],
    cut: Callable[[Photo, int], np.ndarray],
    bad: list[BadFile],
    *,
    batch: int = _BATCH,
) -> Iterator[tuple[list[int], Tensor]]:
    """Cut views out of images in batches, decoded by threads one batch ahead; what cannot be decoded is left out.

    Threads, not processes: a probe also runs inside a training, where forking is not safe, and decoding frees Python's
    lock.

    Args:
        images: what to read.
        indices: of the images, in this order.
        cut: an opened image and its index -> (V, S, S, 3) uint8.
        bad: what cannot be decoded is added here.
        batch: images a batch.

    Yields:
        The indices of a batch and its (n, V, S, S, 3) uint8 views; never an empty one.
    """

    def one(index: int) -> np.ndarray | BadFile:
        try:
            return cut(images.open(index), index)
        except BadImageError as error:
            return BadFile(images.name(index), str(error))

    parts = [list(indices[start : start + batch]) for start in range(0, len(indices), batch)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, 16)) as threads:
        ahead: list[Future[np.ndarray | BadFile]] = []
        for part, after in zip_longest(parts, parts[1:], fillvalue=[]):
            now = ahead or [threads.submit(one, index) for index in part]
            ahead = [threads.submit(one, index) for index in after]
            done = [future.result() for future in now]
            good = [(index, view) for index, view in zip(part, done, strict=True) if isinstance(view, np.ndarray)]
            bad += [view for view in done if isinstance(view, BadFile)]
            if good:
                yield [index for index, _ in good], torch.from_numpy(np.stack([view for _, view in good]))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
