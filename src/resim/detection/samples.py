"""From records to training samples: images with their objects, flipped, in batches of like shape.

Shapes: n objects, H x W pixels of an image, K keypoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from resim.datasets.masks import decode_masks
from resim.datasets.records import DetectionData, Record
from resim.detection.config import ImagesConfig
from resim.views.crops import sample_generator
from resim.views.decode import BadImageError, Photo
from resim.views.loader import BadFile, Loader, UnreadableError, epoch_order
from resim.views.workers import reading

Target = dict[str, Tensor]

_TRIES = 20  # images in a row that may be undecodable
SMALLEST = 0.01  # px: a thinner box may have no extent left in single precision, once flipped and resized


@dataclass(frozen=True)
class Sample:
    """One image as a loader process returns it."""

    image: Tensor
    """(3, H, W) uint8; where it cannot be decoded, empty."""
    target: Target
    """boxes (n, 4) px, labels (n,), and masks (n, H, W) uint8 or keypoints (n, K, 3) as the detector needs them."""
    index: int
    """Which record it is of."""
    size: int
    """Shorter side after resizing, px."""
    seed: int
    """Of the regions that the losses sample."""
    fault: str = ""
    """Why it cannot be decoded, nor any image that replaced it."""
    bad: tuple[BadFile, ...] = ()
    """Files that it replaces, which cannot be decoded."""


@dataclass(frozen=True)
class DetectionBatch:
    """Images of any size, together."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def pin_memory(self) -> DetectionBatch:
        """The same in page-locked memory."""
        pinned = [
            dataclasses.replace(s, image=s.image.pin_memory(), target={k: v.pin_memory() for k, v in s.target.items()})
            for s in self.samples
        ]
        return DetectionBatch(pinned)

    def to(self, device: torch.device) -> tuple[list[Tensor], list[Target]]:
        """Images as floats in [0, 1] and their targets, on `device`."""
        images = [sample.image.to(device, non_blocking=True).float().div_(255) for sample in self.samples]
        targets = [{k: v.to(device, non_blocking=True) for k, v in s.target.items()} for s in self.samples]
        return images, targets


def records_of(batch: DetectionBatch, records: Sequence[Record]) -> Callable[[], list[dict[str, Any]]]:
    """A function that describes each image: path, shorter side after resizing and seed of the regions; no pixels kept.

    The flip and the size of an image are functions of the run's seed, the epoch and its position in the data.
    """
    parts = [(records[sample.index].image, sample.index, sample.size, sample.seed) for sample in batch.samples]
    return lambda: [dict(zip(("path", "index", "size", "seed"), part, strict=True)) for part in parts]


class TrainingSet(Dataset[Sample]):
    """Images with their objects by (epoch, index): flipped or not, with one of the sizes.

    Crowd regions are excluded, and objects marked difficult unless the config includes them. Boxes end at the image's
    edge. An image that cannot be decoded is replaced by another of the same shape, tall or wide, which the sample's
    generator chooses.
    """

    def __init__(
        self, data: DetectionData, images: ImagesConfig, seed: int, *, masks: bool = False, keypoints: bool = False
    ) -> None:
        self.records, self.config, self.seed = data.records, images, seed
        self.masks, self.keypoints = masks, keypoints
        self.swaps = keypoint_swaps(data.keypoint_names)
        self._is_wide = np.array([record.width >= record.height for record in self.records], dtype=bool)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        generator = sample_generator(self.seed, epoch, index)
        flip = bool(generator.random() < self.config.flip)
        size = self.config.min_sizes[int(generator.integers(len(self.config.min_sizes)))]
        seed = int(generator.integers(2**62))
        bad: list[BadFile] = []
        pixels = None
        while pixels is None:
            record = self.records[index]
            try:
                pixels = read_pixels(record)
            except BadImageError as error:
                bad.append(BadFile(record.image, str(error)))
                if len(bad) == _TRIES:
                    return Sample(torch.empty(0), {}, index, size, seed, fault=str(error), bad=tuple(bad))
                alike = np.flatnonzero(self._is_wide == self._is_wide[index])
                index = int(alike[generator.integers(len(alike))])
        record = self.records[index]
        target = self._target(record)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if flip:
            image, target = self._flipped(image, target, record.width)
        return Sample(image.contiguous(), target, index, size, seed, bad=tuple(bad))

    def _target(self, record: Record) -> Target:
        keep = objects_to_learn(record, difficult=self.config.difficult, masks=self.masks)
        boxes = clipped(record)[keep]
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(record.labels[keep].astype(np.int64)),
        }
        if self.masks:
            target["masks"] = torch.from_numpy(decode_masks(record)[keep].astype(np.uint8))
        if self.keypoints:
            assert record.keypoints is not None
            points = record.keypoints[keep].astype(np.float32)
            points[..., :2] += 0.5  # COCO counts pixels; here 0 is the left edge of the first
            target["keypoints"] = torch.from_numpy(points)
        return target

    def _flipped(self, image: Tensor, target: Target, width: int) -> tuple[Tensor, Target]:
        x0, y0, x1, y1 = target["boxes"].unbind(1)
        flipped = target | {"boxes": torch.stack([width - x1, y0, width - x0, y1], dim=1)}
        if "masks" in target:
            flipped["masks"] = target["masks"].flip(2).contiguous()
        if "keypoints" in target:
            points = target["keypoints"][:, self.swaps].clone()
            is_labelled = points[..., 2] > 0
            points[..., 0] = torch.where(is_labelled, width - points[..., 0], points[..., 0])
            flipped["keypoints"] = points
        return image.flip(2), flipped


class TestSet(Dataset[Sample]):
    """Images as they are, by the position of their record."""

    __test__ = False  # not a test

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        try:
            pixels = read_pixels(self.records[index])
        except BadImageError as error:
            return Sample(torch.empty(0), {}, index, 0, 0, fault=str(error))
        return Sample(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), {}, index, 0, 0)


def read_pixels(record: Record) -> np.ndarray:
    """(H, W, 3) uint8.

    Raises:
        BadImageError: the file cannot be decoded, or has another size than its record says.
    """
    with reading(record.image):
        pixels = np.array(Photo(record.image).decode())
    if pixels.shape[:2] != (record.height, record.width):
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise BadImageError(f"is {size} px, its annotation says {record.width} x {record.height}")
    return pixels


def clipped(record: Record) -> np.ndarray:
    """(n, 4) boxes that end at the image's edge."""
    limits = np.array([record.width, record.height, record.width, record.height], dtype=np.float64)
    return np.clip(record.boxes, 0, limits)


def objects_to_learn(record: Record, *, difficult: bool, masks: bool) -> np.ndarray:
    """(n,) bool: no crowd region, no empty box, with a mask where masks are learnt, difficult ones if `difficult`."""
    boxes = clipped(record)
    keep = ~record.crowd & (boxes[:, 2:] - boxes[:, :2] >= SMALLEST).all(axis=1)
    if not difficult:
        keep &= ~record.difficult
    return keep & record.has_mask if masks else keep


def keypoint_swaps(names: Sequence[str]) -> list[int]:
    """For each keypoint its place in the mirror: left_eye becomes right_eye, a nose stays."""
    mirrored = [
        name.replace("left", "\0").replace("right", "left").replace("\0", "right") if name else name for name in names
    ]
    return [names.index(name) if name and name in names else place for place, name in enumerate(mirrored)]


def collate_samples(samples: list[Sample]) -> DetectionBatch:
    """Samples as one batch."""
    return DetectionBatch(samples)


def read_samples(loader: Loader[DetectionBatch], signals: Sequence[int] = ()) -> Generator[DetectionBatch, None, None]:
    """The loader's batches. After a signal, they end where the loader hangs (`views.waiting`).

    Raises:
        UnreadableError: an image that cannot be decoded, nor in training those that replaced it.
    """
    records: Sequence[Record] = cast(Any, loader.dataset).records
    with contextlib.closing(loader.read(signals)) as batches:
        for batch in batches:
            for sample in batch.samples:
                if sample.fault:
                    path = records[sample.index].image
                    others = f"; {len(sample.bad)} images in a row cannot be decoded" if len(sample.bad) > 1 else ""
                    remedy = f"mend it, or take it out of the data set{others}"
                    bad = [file for each in batch.samples for file in each.bad]
                    raise UnreadableError(f"{path}: cannot be decoded ({sample.fault}): {remedy}", bad)
            yield batch


class ShapeOrder(Sampler[list[tuple[int, int]]]):
    """This process's part of every batch: epochs of all images in random order, tall and wide ones apart.

    An image waits for others of its shape, so that a batch needs little padding; a batch may reach into the next
    epoch. Of each batch, process r of W has the r-th run of batch / W images.

    Args:
        is_wide: (images,) bool: the width is at least the height.
        batch: images a step, over all processes.
        seed: of the order.
        start_step: first batch.
        end_step: end of the batches.
        rank: r.
        processes: W.
    """

    def __init__(
        self,
        is_wide: np.ndarray,
        batch: int,
        *,
        seed: int,
        start_step: int = 0,
        end_step: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.is_wide, self.batch, self.seed = is_wide, batch, seed
        self.start_step, self.end_step, self.rank, self.processes = start_step, end_step, rank, processes

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.batch // self.processes
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        epoch = step = 0
        while step < self.end_step:
            for index in epoch_order(len(self.is_wide), self.seed, epoch).tolist():
                bucket = waiting[bool(self.is_wide[index])]
                bucket.append((epoch, index))
                if len(bucket) < self.batch:
                    continue
                if self.start_step <= step < self.end_step:
                    yield bucket[self.rank * part : (self.rank + 1) * part]
                step += 1
                bucket.clear()
            epoch += 1
