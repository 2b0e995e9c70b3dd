"""Features of a frozen network: its maps, and their means over each image.

Shapes: N images, C channels, a map of H x W cells, views of S x S px.
"""

from __future__ import annotations

import contextlib
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
_CENTRE = 224 / 256  # side of the centre crop over the shorter side of the image, the standard test view of ImageNet
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Network:
    """A frozen encoder with its name and precision."""

    name: str
    """In tables and messages."""
    encoder: Encoder
    """In evaluation mode, on the device on which it runs."""
    has_head: bool = True
    """Whether the global head has trained or initial weights; False for a bare backbone."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs convolutions in bfloat16 (autocast); features are float32."""

    @property
    def device(self) -> torch.device:
        """The device of the encoder."""
        return next(self.encoder.parameters()).device

    @property
    def strides(self) -> dict[str, int]:
        """The levels of the network, with their strides in px.

        C3, C4, C5 are the stages of the backbone, P levels those of the FPN; C4+conv is C4 after the convolution of a C
        level.
        """
        levels = {stage: Level(name=stage).stride for stage in ("C3", "C4", "C5")}
        levels |= {f"{name}+conv": Level(name=name).stride for name in self.encoder.convs}
        pyramid = () if self.encoder.fpn is None else self.encoder.fpn.levels
        return levels | {name: Level(name=name).stride for name in sorted(pyramid)}

    @torch.no_grad()
    def maps(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The global vectors (N, D), None without a head, and the maps (N, C, H, W) by level; float32 or wider.

        Args:
            images: (N, 3, S, S) normalised views, on any device.

        Raises:
            UserError: a map or vector is not finite.
        """
        if self.encoder.training:
            raise ValueError("a network is probed in evaluation mode: call its eval() first")
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            stages = self.encoder.backbone(images)
            vectors, levels = self.encoder.from_stages(stages)
        maps = {stage: at_least_float32(stages[stage]) for stage in ("C3", "C4", "C5")}
        maps |= {name if name[0] == "P" else f"{name}+conv": at_least_float32(levels[name]) for name in sorted(levels)}
        self._check_finite(maps | ({GLOBAL: vectors} if self.has_head else {}))
        return at_least_float32(vectors) if self.has_head else None, maps

    @torch.no_grad()
    def c5(self, images: Tensor) -> Tensor:
        """The mean of C5 over each image: (N, C).

        Raises:
            UserError: it is not finite.
        """
        if self.encoder.training:
            raise ValueError("a network is probed in evaluation mode: call its eval() first")
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            means = at_least_float32(self.encoder.backbone(images)["C5"]).mean(dim=(2, 3))
        self._check_finite({"C5": means})
        return means

    def vectors(self, images: Tensor) -> dict[str, Tensor]:
        """The mean of each map over each image, (N, C), and the global vectors as "global" if there is a head."""
        head, maps = self.maps(images)
        means = {name: cells.mean(dim=(2, 3)) for name, cells in maps.items()}
        return means if head is None else means | {GLOBAL: head}

    def _check_finite(self, features: dict[str, Tensor]) -> None:
        not_finite = [name for name, values in features.items() if not values.isfinite().all()]
        if not_finite:
            raise UserError(
                f"{self.name}: the features are not finite ({', '.join(not_finite)}); name a checkpoint from before "
                "the run diverged"
            )


@dataclass(frozen=True, kw_only=True)
class Features:
    """Vectors of N images."""

    vectors: dict[str, Tensor]
    """By level, (N, C) float32 on the CPU."""
    kept: np.ndarray
    """(N,) int64, index of the image of each row; images that cannot be decoded are omitted."""
    bad: tuple[BadFile, ...] = field(default=())
    """The images that cannot be decoded."""


def pooled_features(
    network: Network, images: ProbeImages, *, size: int, progress: Callable[[int], None] | None = None
) -> Features:
    """Compute the vectors of the centre of every image.

    Args:
        network: in evaluation mode.
        images: with or without classes.
        size: S, to which the central square of 7/8 of the shorter side is resized.
        progress: called after every batch with the number of its images.

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
        if progress is not None:
            progress(len(indices))
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
    """The central square of 7/8 of the shorter side, resized: (1, size, size, 3) uint8."""
    side = max(1, round(_CENTRE * min(photo.width, photo.height)))
    crop = ((photo.height - side) // 2, (photo.width - side) // 2, side, side)
    return cut_views(photo, False, (plain_draw(crop),), size)


def plain_draw(crop: tuple[int, int, int, int]) -> Draw:
    """Parameters of a view of a crop (top, left, height, width) without any change of colours."""
    return Draw(crop=crop, flipped=False, jitter=NO_JITTER, jitter_order=(0, 1, 2, 3), gray=False, sigma=0.0)


def to_images(pixels: Tensor) -> Tensor:
    """Convert pixels (N, S, S, 3) uint8 to normalised images (N, 3, S, S) float32."""
    return normalize(pixels.permute(0, 3, 1, 2).float() / 255)


def read_views(
    images: ProbeImages,
    indices: Sequence[int],
    cut: Callable[[Photo, int], np.ndarray],
    bad: list[BadFile],
    *,
    batch: int = _BATCH,
) -> Iterator[tuple[list[int], Tensor]]:
    """Cut views out of images, in batches decoded by threads one batch ahead; undecodable images are omitted.

    Threads are used, not processes: probes also run during training, where forking is not safe, and decoding releases
    the GIL.

    Args:
        images: to read.
        indices: of the images, in this order.
        cut: computes the views (V, S, S, 3) uint8 of an opened image and its index.
        bad: images that cannot be decoded are appended here.
        batch: images per batch.

    Yields:
        The indices of a batch and its views (n, V, S, S, 3) uint8; no batch is empty.
    """

    def read_one(index: int) -> np.ndarray | BadFile:
        try:
            with contextlib.closing(images.open(index)) as photo:
                return cut(photo, index)
        except BadImageError as error:
            return BadFile(images.name(index), str(error))

    parts = [list(indices[start : start + batch]) for start in range(0, len(indices), batch)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, 16)) as threads:
        ahead: list[Future[np.ndarray | BadFile]] = []
        for part, after in zip_longest(parts, parts[1:], fillvalue=[]):
            current = ahead or [threads.submit(read_one, index) for index in part]
            ahead = [threads.submit(read_one, index) for index in after]
            results = [future.result() for future in current]
            good = [(index, view) for index, view in zip(part, results, strict=True) if isinstance(view, np.ndarray)]
            bad += [view for view in results if isinstance(view, BadFile)]
            if good:
                yield [index for index, _ in good], torch.from_numpy(np.stack([view for _, view in good]))


def at_least_float32(x: Tensor) -> Tensor:
    """Convert narrower dtypes to float32; float64 is not changed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
