"""Label maps as arrays: the labels of every image at the size of the probes, with void pixels marked.

Shapes: N images of S x S px, K classes, H, W the height and width of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resim.counts import counted
from resim.datasets.masks import to_rle
from resim.datasets.records import Record
from resim.errors import UserError
from resim.probes.config import BACKGROUND, VOID_VALUES
from resim.probes.label_files import read_values
from resim.probes.label_palettes import Palettes
from resim.probes.labelled_images import LabelledImages
from resim.probes.labels import ProbeImages
from resim.views.decode import SIDEWAYS, BadImageError, Photo

VOID = -1
"""Value of pixels that are ignored."""
_RAW_VOID = -1
_WIDE_VOID = 65535  # what 16-bit label maps often have where 8-bit ones have 255
_MOST_NAMELESS = 30  # values of label maps that are read as classes without a warning


@dataclass(frozen=True, kw_only=True)
class LabelMaps:
    """N images and their labels at S x S px."""

    images: ProbeImages
    """Without image classes, in the order of the labels."""
    labels: Tensor
    """(N, S, S) int16, indices into `classes`, or VOID."""
    classes: tuple[str, ...]
    background: int | None
    """Index of the background in `classes`; None: there is no background."""
    notes: tuple[str, ...] = field(default=())
    """What is omitted, with counts and reasons."""

    def __len__(self) -> int:
        return len(self.labels)


def load_label_maps(
    train: LabelledImages,
    test: LabelledImages,
    size: int,
    *,
    void: Sequence[int] = VOID_VALUES,
    background: int | None = BACKGROUND,
    only: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> tuple[LabelMaps, LabelMaps]:
    """Decode the labels of two sets, with the same classes for both.

    A label map is resized to S x S px by nearest neighbour, without regard to its aspect ratio, so no pixel is cropped.
    Where COCO objects overlap, the smaller lies on top. Images whose label map cannot be decoded or has another size
    are omitted and counted.

    Classes are those with a stated name and those of other values that occur, in ascending order of the values.

    Args:
        train: training images.
        test: test images.
        size: S.
        void: values that are ignored.
        background: value of the background; None: there is none.
        only: names of the classes to keep in addition to the background; the others become void. Empty: all.
        progress: called every 32 images with their number.

    Raises:
        UserError: nothing can be read, the training set does not have a class, or there are fewer than two classes.
    """
    raw = [_read_all(images, size, void, progress) for images in (train, test)]
    _check_not_binary(train, raw[0][1], void)
    classes = _class_names(train, test, raw[0][1], raw[1][1])
    ground = None if background is None else _name(train, background)
    if ground not in classes:
        if background not in (None, BACKGROUND):
            values = ", ".join(sorted({str(v) for v in np.unique(raw[0][1]) if v != _RAW_VOID}, key=int)[:10])
            raise UserError(
                f"--background {background}: no label map of {train.source} has this value; it has {values}"
            )
        ground = None
    keep = _kept_classes(classes, ground, only, train)
    sets = []
    for images, (kept, values, notes) in zip((train, test), raw, strict=True):
        labels = _class_indices(images, values, keep)
        paths = [images.images[index] for index in kept]
        if not (labels != VOID).any():
            raise UserError(
                f"{images.source}: all pixels of its {len(kept)} label maps are void: check --void and --classes"
            )
        sets.append(
            LabelMaps(
                images=ProbeImages(source=images.source, kind=images.kind, refs=paths, labels=None, classes=()),
                labels=torch.from_numpy(labels),
                classes=tuple(keep),
                background=None if ground is None else keep.index(ground),
                notes=(*images.notes, *notes, *(_many_values(images, values) if images is train else ())),
            )
        )
    return sets[0], sets[1]


def paint_record(record: Record) -> np.ndarray:
    """Paint the labels of an image's objects: (H, W) int32, 0 for background and -1 for void.

    Where objects overlap, the one with fewer pixels lies on top; of equals the later. Pixels of crowd regions and of
    boxes without a mask are void unless an object with a mask covers them.
    """
    from pycocotools import mask as rle

    painted = np.zeros((record.height, record.width), dtype=np.int32)
    masks: list[tuple[int, np.ndarray]] = []
    for index in range(len(record)):
        segmentation = None if record.masks is None else record.masks[index]
        if segmentation is None:
            x0, y0, x1, y1 = record.boxes[index]
            painted[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = _RAW_VOID
            continue
        mask = np.asarray(rle.decode(to_rle(segmentation, record.height, record.width))).astype(bool)  # type: ignore[arg-type]
        if record.crowd[index]:
            painted[mask] = _RAW_VOID
        else:
            masks.append((int(record.labels[index]), mask))
    for label, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):  # a stable sort: of equals, the later wins
        painted[mask] = label
    return painted


def resize_nearest(values: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W) to (size, size): each new pixel takes the value at its centre."""
    rows, columns = (((np.arange(size) + 0.5) * (length / size)).astype(np.int64) for length in values.shape)
    return values[rows[:, None], columns[None, :]]


Raw = tuple[list[int], np.ndarray, tuple[str, ...]]
"""Indices of the images whose labels can be used, their values (N, S, S) int32 with -1 for void, and notes."""


def _read_all(images: LabelledImages, size: int, void: Sequence[int], progress: Callable[[int], None] | None) -> Raw:
    void_values = np.array(sorted(set(void)), dtype=np.int32)

    palettes, turned = Palettes(), list[int]()

    def read_one(index: int) -> np.ndarray | str:
        """The values of one image, or the reason why they cannot be used."""
        label = images.labels[index]
        if isinstance(label, Record):
            return resize_nearest(paint_record(label), size)
        try:
            values = read_values(label, images.colours, palettes)
        except BadImageError as error:
            return f"{label}: {error}"
        try:
            photo = Photo(images.images[index])
            photo.close()
        except BadImageError as error:
            return f"{images.images[index]}: {error}"
        if values.shape != (photo.height, photo.width):
            height, width = values.shape
            sizes = f"the label map is {width} x {height}, the image {photo.width} x {photo.height} (upright)"
            return f"{images.images[index]}: {sizes}"
        if photo.orientation != 1 and (photo.orientation not in SIDEWAYS or photo.width == photo.height):
            turned.append(index)
        values = resize_nearest(values, size)
        return np.where(np.isin(values, void_values), _RAW_VOID, values)

    kept, maps, bad = list[int](), list[np.ndarray](), list[str]()
    with ThreadPoolExecutor(4) as threads:
        for index, result in enumerate(threads.map(read_one, range(len(images)))):
            if isinstance(result, str):
                bad.append(result)
            else:
                kept.append(index)
                maps.append(result)
            if progress is not None and (index + 1) % 32 == 0:
                progress(32)
    if not kept:
        raise UserError(f"{images.source}: none of {counted(len(bad), 'label map')} can be used ({bad[0]})")
    notes = (f"left out: {counted(len(bad), 'image')} whose label map cannot be used: {bad[0]}",) if bad else ()
    if turned:
        first = images.images[min(turned)]
        notes += (
            f"{images.source}: the EXIF orientation turns or mirrors {counted(len(turned), 'image')}, such as {first}: "
            "label maps are read as those of the upright image",
        )
    if palettes.conflict():
        notes += (
            f"warning: {images.source}: the label maps have palettes of their own: {palettes.conflict()}; they are "
            "read by index: name the colours in a labelmap.txt (name:red,green,blue) to read them by colour",
        )
    values = np.stack(maps)
    if _WIDE_VOID in values and _WIDE_VOID not in images.names:
        notes += (f"{images.source}: the value {_WIDE_VOID} is read as a class: --void 255 {_WIDE_VOID} ignores it",)
    return kept, values, notes


def _check_not_binary(images: LabelledImages, values: np.ndarray, void: Sequence[int]) -> None:
    kinds = set(np.unique(values).tolist())
    if images.kind == "label maps" and 255 in void and _RAW_VOID in kinds and kinds <= {_RAW_VOID, 0}:
        held = "0 and 255, and 255 is void" if (values == 0).any() else "255, which is void"
        raise UserError(
            f"{images.source}: the label maps hold only {held}: where it is an object, add --void without a value"
        )


def _many_values(images: LabelledImages, values: np.ndarray) -> tuple[str, ...]:
    """A warning where nameless values are so many that a smoothed mask is likelier than classes."""
    found = [int(value) for value in np.unique(values) if value != _RAW_VOID]
    if images.names or len(found) <= _MOST_NAMELESS:
        return ()
    shown = ", ".join(map(str, found[:5]))
    return (
        f"warning: {images.source}: {len(found)} different values without names ({shown}, ...), each read as a class: "
        "a mask that was resized or blurred has such values at its edges: save it with nearest-pixel resizing",
    )


def _name(images: LabelledImages, value: int) -> str:
    return images.names.get(value, str(value))


def _class_names(train: LabelledImages, test: LabelledImages, first: np.ndarray, second: np.ndarray) -> list[str]:
    """All classes: those of the training set in the order of their values, then those only in the test set."""
    names = []
    for images, values in ((train, first), (test, second)):
        occurring = {int(value) for value in np.unique(values) if value != _RAW_VOID}
        names.append([_name(images, value) for value in sorted(occurring | set(images.names))])
    foreign = [name for name in names[1] if name not in names[0]]
    if foreign and test.names and train.names:
        raise UserError(
            f"{test.source}: class {foreign[0]!r} is not among the {len(names[0])} classes of {train.source}"
        )
    return list(dict.fromkeys([*names[0], *foreign]))


def _kept_classes(classes: list[str], ground: str | None, only: Sequence[str], train: LabelledImages) -> list[str]:
    unknown = next((name for name in only if name not in classes), None)
    if unknown is not None:
        raise UserError(f"--classes {unknown}: {train.source} has the classes {', '.join(classes)}")
    keep = [name for name in classes if not only or name in only or name == ground]
    if len(keep) < 2:
        raise UserError(f"{train.source}: there is only one class, {keep[0]!r}: at least two are needed")
    return keep


def _class_indices(images: LabelledImages, values: np.ndarray, keep: Sequence[str]) -> np.ndarray:
    """Convert values to indices into `keep`: (N, S, S) int16."""
    index = {name: i for i, name in enumerate(keep)}
    unique, inverse = np.unique(values, return_inverse=True)
    table = [VOID if value == _RAW_VOID else index.get(_name(images, int(value)), VOID) for value in unique]
    return np.array(table, dtype=np.int16)[inverse.reshape(values.shape)]
