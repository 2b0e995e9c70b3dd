"""Images whose annotation exchanges width and height, which no EXIF orientation explains: whose size do the boxes have?

Where some boxes fit the file's size alone and none the annotation's alone, only the two numbers are exchanged, and the
images are read by their files' sizes. Else they are left out: the boxes may be those of an image that was turned since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from resim.datasets.records import Record
from resim.datasets.repair import OVERHANG, Repairs

Size = tuple[int, int]


@dataclass
class _Doubtful:
    note: Callable[..., None]
    detail: str
    num_objects: int
    repairs: Repairs = field(default_factory=Repairs)


class SwappedSizes:
    """The images of a data set of which this is in doubt, until all are read."""

    def __init__(self) -> None:
        self._images: dict[int | str, _Doubtful] = {}
        self._agreeing = self._contrary = False

    def add(
        self,
        image_id: int | str,
        size: Size,
        boxes: Sequence[Sequence[float]],
        note: Callable[..., None],
        detail: str,
        num_objects: int,
    ) -> None:
        """Note an image.

        Args:
            image_id: of the image.
            size: width and height of its file.
            boxes: (x0, y0, x1, y1) in pixels.
            note: takes a kind, a detail and `num_objects`.
            detail: both sizes, for people.
            num_objects: annotations of the image.
        """
        by_file, by_annotation = _fit(boxes, size), _fit(boxes, (size[1], size[0]))
        self._agreeing |= by_file and not by_annotation
        self._contrary |= by_annotation and not by_file
        self._images[image_id] = _Doubtful(note, detail, num_objects)

    def repairs_of(self, image_id: int | str, repairs: Repairs) -> Repairs:
        """Where the faults of an image's objects are noted: apart for one that may be left out."""
        doubtful = self._images.get(image_id)
        return repairs if doubtful is None else doubtful.repairs

    def settle(self, records: Sequence[Record], repairs: Repairs) -> list[Record]:
        """The records that stay, in their order; what was decided is noted."""
        stay = self._agreeing and not self._contrary
        for doubtful in self._images.values():
            if stay:
                doubtful.note("size-exchanged", detail=doubtful.detail)
                repairs.extend(doubtful.repairs)
            else:
                doubtful.note("image-size", detail=doubtful.detail, num_objects=doubtful.num_objects)
        return [record for record in records if stay or record.image_id not in self._images]


def _fit(boxes: Sequence[Sequence[float]], size: Size) -> bool:
    return all(box[2] <= size[0] + OVERHANG and box[3] <= size[1] + OVERHANG for box in boxes)
