"""The size of an image: that of its file, compared with that of its annotation.

Where an annotation exchanges width and height and no EXIF orientation explains it, the boxes of the data set decide. If
some boxes fit only the file's size and none fits only the annotation's, the images are read with the sizes of their
files. Otherwise they are skipped: the boxes may belong to images that were rotated later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from resim.datasets.annotation_values import finite_numbers
from resim.datasets.records import OVERHANG, Record
from resim.datasets.repairs import Repairs
from resim.views.decode import SIDEWAYS, BadImageError, Photo

Size = tuple[int, int]


def annotated_size(width: object, height: object) -> Size | None:
    """Width and height as an annotation states them; None unless both are numbers above 0."""
    numbers = finite_numbers([width, height])
    return (int(numbers[0]), int(numbers[1])) if numbers and min(numbers) > 0 else None


def checked_size(
    path: str,
    annotated: Size | None,
    *,
    file: str,
    image_id: int | str,
    check: bool,
    repairs: Repairs,
    num_objects: int = 0,
    on_exchanged: Callable[..., None] | None = None,
) -> Size | None:
    """Width and height of an image file; None, with a fault in `repairs`, if it cannot be used.

    Args:
        path: of the image file, which exists.
        annotated: width and height by the annotation, None if it states none.
        file: of the annotation.
        image_id: of the image.
        check: open the file even if the annotation states a size (0.1 ms an image).
        repairs: to which a fault is added.
        num_objects: annotations of the image, which are skipped with it.
        on_exchanged: called with (size, note, detail) for an image whose annotation exchanges width and height, instead
            of adding a fault.
    """
    note = partial(repairs.add, file=file, image_id=image_id)
    if annotated is not None and not check:
        return annotated
    try:
        photo = Photo(path)
    except BadImageError as error:
        note("unreadable-image", detail=f"{path}: {error}", num_objects=num_objects)
        return None
    photo.close()
    size = photo.width, photo.height
    if annotated is None or annotated == size:
        is_shown = annotated is not None and photo.orientation in SIDEWAYS and size[0] != size[1]
        if photo.orientation != 1 and not is_shown:
            note("orientation", detail=f"{path} has orientation {photo.orientation}")
        return size
    detail = f"{path} is {size[0]} x {size[1]}, its annotation states {annotated[0]} x {annotated[1]}"
    if annotated == size[::-1] and photo.orientation in SIDEWAYS:
        detail += (
            ": the file is turned by its EXIF orientation; if it was labelled unturned: exiftool -Orientation= FILE"
        )
    elif annotated == size[::-1]:
        detail += ": width and height are exchanged, and no EXIF orientation turns the file"
        if on_exchanged is not None:
            on_exchanged(size, note, detail)
            return size
    note("image-size", detail=detail, num_objects=num_objects)
    return None


@dataclass
class _ExchangedSize:
    note: Callable[..., None]
    detail: str
    num_objects: int
    repairs: Repairs = field(default_factory=Repairs)


class ExchangedSizes:
    """The images of a data set whose annotations exchange width and height, until all images are read."""

    def __init__(self) -> None:
        self._images: dict[int | str, _ExchangedSize] = {}
        self._any_fits_file = self._any_fits_annotation = False

    def add(
        self,
        image_id: int | str,
        size: Size,
        boxes: Sequence[Sequence[float]],
        note: Callable[..., None],
        detail: str,
        num_objects: int,
    ) -> None:
        """Add an image.

        Args:
            image_id: of the image.
            size: width and height of its file.
            boxes: (x0, y0, x1, y1) in pixels.
            note: takes a kind, a detail and `num_objects`.
            detail: both sizes, for messages.
            num_objects: annotations of the image.
        """
        fit_file, fit_annotation = _fit(boxes, size), _fit(boxes, (size[1], size[0]))
        self._any_fits_file |= fit_file and not fit_annotation
        self._any_fits_annotation |= fit_annotation and not fit_file
        self._images[image_id] = _ExchangedSize(note, detail, num_objects)

    def repairs_of(self, image_id: int | str, repairs: Repairs) -> Repairs:
        """The log for the faults of an image's objects: one apart for an image that may still be skipped."""
        exchanged = self._images.get(image_id)
        return repairs if exchanged is None else exchanged.repairs

    def resolve(self, records: Sequence[Record], repairs: Repairs) -> list[Record]:
        """The records to keep, in their order; the decision is added to `repairs`."""
        keep = self._any_fits_file and not self._any_fits_annotation
        for exchanged in self._images.values():
            if keep:
                exchanged.note("size-exchanged", detail=exchanged.detail)
                repairs.extend(exchanged.repairs)
            else:
                exchanged.note("image-size", detail=exchanged.detail, num_objects=exchanged.num_objects)
        return [record for record in records if keep or record.image_id not in self._images]


def _fit(boxes: Sequence[Sequence[float]], size: Size) -> bool:
    return all(box[2] <= size[0] + OVERHANG and box[3] <= size[1] + OVERHANG for box in boxes)
