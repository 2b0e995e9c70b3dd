"""What is wrong with a data set, said in a line for each kind, and what is done about it.

By default faulty annotations are repaired or left out and listed; strict reading stops instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from resim.errors import UserError
from resim.views.decode import BadImageError, Photo

OVERHANG = 1.0  # pixels that a box may stick out of its image: COCO's own do, by rounding

# kind: (what is wrong, what is done about it)
KINDS: dict[str, tuple[str, str]] = {
    "missing-image": ("image files not found", "images skipped"),
    "other-name": ("file names that are not quite those of the files", "the only file that fits is taken"),
    "unreadable-image": ("image files that cannot be decoded", "images skipped"),
    "image-size": ("image files of another size than their annotation says", "images skipped"),
    "missing-annotation": ("images without a readable annotation file", "images skipped"),
    "listed-twice": ("images listed twice", "kept once"),
    "unknown-image": ("annotations of images that are not listed", "dropped"),
    "unknown-category": ("annotations of unknown categories", "dropped"),
    "not-finite": ("annotations with missing, NaN or infinite numbers", "dropped"),
    "no-shares": ("YOLO lines whose numbers are no shares of the image, 0 to 1", "dropped"),
    "keypoints-left-out": ("objects with keypoints, which are not read from YOLO files", "their boxes are read"),
    "zero-area": ("boxes of zero area", "dropped"),
    "outside": ("boxes wholly outside their image", "dropped"),
    "corners-reversed": ("boxes with their corners in reverse order", "put in order"),
    "odd-flag": ("flags that are neither yes nor no", "taken as no"),
    "overhang": ("boxes that reach outside their image", "clipped"),
    "short-polygon": ("polygons with fewer than three points", "polygon dropped, a box stays"),
    "bad-mask": ("masks that do not fit their image or are not COCO segmentations", "mask dropped, a box stays"),
}


@dataclass(frozen=True)
class Problem:
    """One fault: its kind (a key of `KINDS`), where it is and what was found there."""

    kind: str
    file: str
    image_id: int | str
    annotation_id: int | str | None
    detail: str

    def __str__(self) -> str:
        annotation = "" if self.annotation_id is None else f", annotation {self.annotation_id}"
        return f"{self.file}, image {self.image_id}{annotation} ({self.detail})"


@dataclass
class Repairs:
    """Every fault of a data set, in the order of reading."""

    problems: list[Problem] = field(default_factory=list)

    def add(
        self, kind: str, *, file: str, image_id: int | str, annotation_id: int | str | None = None, detail: str
    ) -> None:
        """Note a fault of one of the `KINDS`."""
        assert kind in KINDS, kind
        self.problems.append(Problem(kind, file, image_id, annotation_id, detail))

    @property
    def counts(self) -> dict[str, int]:
        """Faults of each kind that occurred, in the order of their first occurrence."""
        return dict(Counter(problem.kind for problem in self.problems))

    def lines(self, examples: int = 3) -> list[str]:
        """One line for each kind: how many, what was done, and the first few by file, image and annotation."""
        return [self._line(kind, examples) for kind in self.counts]

    def stop_if(self, strict: bool) -> None:
        """Raise what was noted, if reading is strict.

        Raises:
            UserError: strict, and there is a fault: the first kind with its count, and how many there are of others.
        """
        if not (strict and self.problems):
            return
        first, *others = self.counts
        line = self._line(first, examples=3, strict=True)
        also = ", ".join(f"{self.counts[kind]} {KINDS[kind][0]}" for kind in others)
        raise UserError(f"{line}{'; also ' if also else ''}{also}")

    def _line(self, kind: str, examples: int, strict: bool = False) -> str:
        found = [problem for problem in self.problems if problem.kind == kind]
        wrong, done = KINDS[kind]
        shown = "; ".join(map(str, found[:examples]))
        more = f"; and {len(found) - examples} more" if len(found) > examples else ""
        return f"{len(found)} {wrong}{' (strict)' if strict else f', {done}'}: {shown}{more}"


def nothing_left(source: str, repairs: Repairs, what: str) -> UserError:
    """The error of a split of which nothing can be used, and the first reason."""
    reasons = repairs.lines()
    return UserError(f"{source}: empty split, {what}" + (f": {reasons[0]}" if reasons else ""))


def sound_size(
    path: str,
    said: tuple[int, int] | None,
    *,
    file: str,
    image_id: int | str,
    check: bool,
    repairs: Repairs,
) -> tuple[int, int] | None:
    """Width and height of an image file, if it can be opened and agrees with its annotation; otherwise None.

    Args:
        path: of the image file, which exists.
        said: width and height by the annotation, None if it does not say.
        file: of the annotation.
        image_id: of the image.
        check: open the file also where its size is said (0.1 ms an image).
        repairs: where a fault is noted.
    """
    if said is not None and not check:
        return said
    try:
        photo = Photo(path)
    except BadImageError as error:
        repairs.add("unreadable-image", file=file, image_id=image_id, detail=f"{path}: {error}")
        return None
    photo.close()
    size = photo.width, photo.height
    if said is not None and said != size:
        turned = ", upright by its EXIF orientation" if said == size[::-1] else ""
        detail = f"{path} is {size[0]} x {size[1]}{turned}, the annotation says {said[0]} x {said[1]}"
        repairs.add("image-size", file=file, image_id=image_id, detail=detail)
        return None
    return size


def finite(values: object, count: int | None = None) -> list[float] | None:
    """Numbers as floats; None unless they are a list of finite numbers, `count` of them if that is given."""
    if not isinstance(values, Sequence) or isinstance(values, str) or (count is not None and len(values) != count):
        return None
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
    # inf - inf and NaN - NaN are not 0
    return numbers if all(number - number == 0 for number in numbers) else None
