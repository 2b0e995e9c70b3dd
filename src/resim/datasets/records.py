"""A detection data set in memory, whatever layout it was read from: one record an image.

Shapes: n objects of an image, K keypoints of an object.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from resim.datasets.repairs import Repairs
from resim.errors import UserError

OVERHANG = 1.0  # pixels by which a box may extend beyond its image: COCO's boxes do, by rounding

Segmentation = list[list[float]] | dict[str, Any]  # polygons (x, y, x, y, ...), or COCO RLE, compressed or not


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """An image and its annotated objects. Pixels and masks are decoded only when they are needed.

    Attributes:
        image: path of the image file.
        image_id: as in the data set; results refer to it.
        width: of the upright image in pixels.
        height: of the upright image in pixels.
        boxes: (n, 4) float64, (x0, y0, x1, y1) in pixels: 0 is the left edge of the first pixel, `width` the right
            edge of the last. A box may extend beyond the image by up to `OVERHANG` pixels.
        labels: (n,) int64 from 1; label l is `DetectionData.classes[l - 1]`.
        masks: n segmentations, None for an object without one; None if the data set has no masks.
        keypoints: (n, K, 3) float64, COCO's (x, y, visibility); None if the data set has none.
        crowd: (n,) bool, regions of many objects: not trained on, and detections in them do not count as wrong.
        difficult: (n,) bool, in the sense of VOC: ignored by its evaluation, whether detected or not.
        annotation_ids: (n,) int64, as in the data set.
        areas: (n,) float64, in pixels: by them COCO's evaluation separates small, medium and large.
    """

    image: str
    image_id: int | str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    masks: tuple[Segmentation | None, ...] | None
    keypoints: np.ndarray | None
    crowd: np.ndarray
    difficult: np.ndarray
    annotation_ids: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_mask(self) -> np.ndarray:
        """(n,) bool: the objects with a segmentation."""
        if self.masks is None:
            return np.zeros(len(self), dtype=bool)
        return np.array([mask is not None for mask in self.masks], dtype=bool)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The share of a data set that was sampled to evaluate on.

    Attributes:
        fraction: of the images, as requested.
        seed: of the sampling.
        image_ids: of the sampled images.
        images: number of images of the data set.
    """

    fraction: float
    seed: int
    image_ids: tuple[int | str, ...]
    images: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain data, from which a resumed run restores the same share."""
        return {"val_fraction": self.fraction, "seed": self.seed, "val_images": list(self.image_ids)}


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionData:
    """A split of a detection data set.

    Attributes:
        records: one for each image, in the order of the data set, images without objects included.
        classes: names; label l is `classes[l - 1]`.
        category_ids: of each class, as in the data set and in COCO results.
        kind: the layout that was read.
        source: path and split that were read, for messages.
        keypoint_names: K names, empty without keypoints.
        keypoint_labels: labels of the classes that have keypoints.
        repairs: faults of the data and how they were repaired.
        held_out: how the records were sampled, if they are a share that was sampled to evaluate on.
    """

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    kind: Literal["coco", "voc", "cityscapes", "yolo"]
    source: str
    keypoint_names: tuple[str, ...] = ()
    keypoint_labels: tuple[int, ...] = ()
    repairs: Repairs = field(default_factory=Repairs)
    held_out: HeldOut | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_objects(self) -> int:
        """Number of objects and crowd regions of all images."""
        return sum(len(record) for record in self.records)

    @property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation."""
        return any(record.has_mask.any() for record in self.records)

    @property
    def has_keypoints(self) -> bool:
        """Whether any class has keypoints."""
        return bool(self.keypoint_names)


def subset(data: DetectionData, fraction: float, seed: int = 0) -> DetectionData:
    """A random share of the images, in their order, determined by data, fraction and seed.

    With one seed, a smaller share is part of each larger one. It has at least one image.

    Args:
        data: the split.
        fraction: above 0, at most 1.
        seed: 0 or more.

    Raises:
        UserError: the fraction or the seed is out of its range.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: it must be above 0 and at most 1")
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be 0 or more")
    num_images = max(1, round(fraction * len(data)))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:num_images])
    return dataclasses.replace(data, records=tuple(data.records[index] for index in chosen))
