"""What is wrong with a data set, said in a line for each kind, and what is done about it.

By default faulty annotations are repaired or left out and listed; strict reading stops instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from resim.errors import UserError
from resim.views.decode import BadImageError, Photo

OVERHANG = 1.0  # pixels that a box may stick out of its image: COCO's own do, by rounding

EXAMPLES = 20  # problems of a kind that are kept; the others are counted

# faults, by kind: (what is wrong, what is done about it)
KINDS: dict[str, tuple[str, str]] = {
    "missing-image": ("image files not found", "images skipped"),
    "other-name": ("file names that are not quite those of the files", "the only file that fits is taken"),
    "unreadable-image": ("image files that cannot be decoded", "images skipped"),
    "image-size": ("image files of another size than their annotation says", "images skipped"),
    "missing-annotation": ("images without a readable annotation file", "images skipped"),
    "bad-image": ("image entries without a usable id or file_name", "images skipped"),
    "one-id": ("image ids that stand for several files, so that an annotation may be of any of them", "files skipped"),
    "listed-twice": ("images listed twice", "kept once"),
    "bad-entry": ("entries that are no objects or have no id", "left out"),
    "unknown-image": ("annotations of images that are not listed", "dropped"),
    "image-id": ("annotations whose image_id is written otherwise than the image's id", "matched as numbers"),
    "image-by-name": ("annotations whose image_id is the name of an image file", "matched by it"),
    "unknown-category": ("annotations of unknown categories", "dropped"),
    "category-by-name": ("annotations whose category_id is the name of a category", "matched by it"),
    "only-category": ("annotations without a category_id", "taken as the only category's"),
    "no-categories": ("missing list of categories", "made from the annotations"),
    "text-category": ("categories whose id is text", "numbered, which results files then say"),
    "category-twice": ("categories listed twice", "kept once"),
    "same-name": ("categories with the name of another", "taken as one class, with the lower id"),
    "category-keypoints": ("lists of keypoints that are no list or differ between classes", "no keypoints are read"),
    "box-form": ("bboxes in another form than a list of numbers", "read"),
    "box-from-mask": ("annotations without a usable bbox", "it is taken from the mask"),
    "no-box": ("annotations without a bbox of four numbers, and without a mask to take it from", "dropped"),
    "not-finite": ("annotations with missing, NaN or infinite numbers", "dropped"),
    "no-shares": ("YOLO lines whose numbers are no shares of the image, 0 to 1", "dropped"),
    "keypoints-left-out": ("objects with keypoints, which are not read from YOLO files", "their boxes are read"),
    "corners-reversed": ("boxes with their corners in reverse order", "put in order"),
    "zero-area": ("boxes of zero area", "dropped"),
    "outside": ("boxes wholly outside their image", "dropped"),
    "overhang": ("boxes that reach outside their image", "clipped"),
    "area": ("annotations without a usable area", "it is worked out from the mask, or else the box"),
    "mask-form": ("segmentations in another form than COCO's", "read"),
    "short-polygon": ("polygons with fewer than three points", "polygon dropped, a box stays"),
    "bad-mask": ("masks that do not fit their image or are not COCO segmentations", "mask dropped, a box stays"),
    "empty-mask": ("masks without a pixel", "mask dropped, a box stays"),
    "keypoint-form": ("keypoints in another form than x, y, visibility", "read"),
    "bad-keypoints": ("keypoints that are not three numbers for each name of the category", "taken as not labelled"),
    "odd-flag": ("flags that are neither yes nor no", "taken as no"),
}

# what is said, but is no fault that strict reading would stop at
NOTES: dict[str, tuple[str, str]] = {
    "crowd-as-objects": ("crowd regions (iscrowd 1)", "taken as objects, as --crowd-as-objects says"),
    "no-bbox": ("annotations that give no bbox", "it is taken from the mask"),
    "no-area": ("annotations that give no area", "it is worked out from the mask, or else the box"),
    "ignore": ("annotations marked `ignore` and not iscrowd", "taken as objects, as COCO's evaluation does"),
    "unnamed-keypoints": ("annotations with keypoints of a category that names none", "keypoints passed over"),
    "no-name": ("categories without a name", "called by their id"),
    "parent-category": ("category that is the parent of the others and of no annotation (Roboflow)", "left out"),
    "file-name": ("image entries without a file_name", "named by another key"),
    "file-twice": ("image files listed under several ids", "each stays an image with its own annotations alone"),
    "corners": (
        "boxes that reach outside their image as COCO's x, y, width, height, while all boxes of the file fit as "
        "corners x0, y0, x1, y1",
        "clipped: were they written as corners?",
    ),
    "lvis": ("LVIS file", "scored by COCO's evaluation, which is not LVIS's: its unlisted classes are not set aside"),
    "class-ids": ("classes with another category id than where the detector was trained", "matched by name"),
    "class-case": ("classes in other letters than where the detector was trained", "matched all the same"),
    "class-by-id": ("classes that have a name on one side alone", "matched by id"),
    "unused-class": ("classes without an object that the detector does not know", "left out"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: its kind (a key of `KINDS` or `NOTES`), where it is and what was found there."""

    kind: str
    file: str
    image_id: int | str | None
    annotation_id: int | str | None
    detail: str

    def __str__(self) -> str:
        image = "" if self.image_id is None else f", image {self.image_id}"
        annotation = "" if self.annotation_id is None else f", annotation {self.annotation_id}"
        return f"{self.file}{image}{annotation} ({self.detail})"


@dataclass
class Repairs:
    """The faults of a data set by kind: how many, and the first of each.

    Attributes:
        problems: the first `EXAMPLES` of each kind, in the order of reading.
        counts: faults of each kind that occurred, in the order of their first occurrence.
        lost: annotations that went with them, by kind.
    """

    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        *,
        file: str,
        image_id: int | str | None = None,
        annotation_id: int | str | None = None,
        detail: str,
        num_objects: int = 0,
    ) -> None:
        """Note a fault of one of the `KINDS`, or one of the `NOTES`; `num_objects` annotations are lost by it."""
        assert kind in KINDS or kind in NOTES, kind
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.lost[kind] = self.lost.get(kind, 0) + num_objects
        if self.counts[kind] <= EXAMPLES:
            self.problems.append(Problem(kind, file, image_id, annotation_id, detail))

    def extend(self, other: Repairs) -> None:
        """Add what another part of the data set has."""
        room = {kind: EXAMPLES - number for kind, number in self.counts.items()}
        for problem in other.problems:
            room[problem.kind] = room.get(problem.kind, EXAMPLES) - 1
            if room[problem.kind] >= 0:
                self.problems.append(problem)
        for kind, number in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
            self.lost[kind] = self.lost.get(kind, 0) + other.lost[kind]

    def copy(self) -> Repairs:
        """The same, to be added to."""
        return Repairs(list(self.problems), dict(self.counts), dict(self.lost))

    def lines(self, examples: int = 3) -> list[str]:
        """One line for each kind: how many, what was done, and the first few by file, image and annotation."""
        return [self._line(kind, examples) for kind in [*self._faults(), *(k for k in self.counts if k in NOTES)]]

    def reasons(self, *kinds: str) -> list[str]:
        """The lines, or those of some kinds, the largest first: what may explain an error."""
        shown = [kind for kind in self.counts if kind in kinds or not kinds]
        return [self._line(kind, 2) for kind in sorted(shown, key=lambda kind: -self.counts[kind])]

    def stop_if(self, strict: bool) -> None:
        """Raise what was noted, if reading is strict.

        Raises:
            UserError: strict, and there is a fault: the first kind with its count, and how many there are of others.
        """
        faults = self._faults()
        if not (strict and faults):
            return
        first, *others = faults
        line = self._line(first, examples=3, strict=True)
        also = ", ".join(f"{self.counts[kind]} {KINDS[kind][0]}" for kind in others)
        raise UserError(f"{line}{'; also ' if also else ''}{also}")

    def _faults(self) -> list[str]:
        return [kind for kind in self.counts if kind in KINDS]

    def _line(self, kind: str, examples: int, strict: bool = False) -> str:
        count = self.counts[kind]
        wrong, done = KINDS.get(kind) or NOTES[kind]
        lost = f" with {self.lost[kind]} annotations" if self.lost[kind] else ""
        shown = [str(problem) for problem in self.problems if problem.kind == kind][:examples]
        more = f"; and {count - len(shown)} more" if count > len(shown) else ""
        return f"{count} {wrong}{' (strict)' if strict else f', {done}{lost}'}: {'; '.join(shown)}{more}"


def nothing_left(source: str, repairs: Repairs, what: str) -> UserError:
    """The error of a split of which nothing can be used, and all reasons that were noted."""
    return UserError("; ".join([f"{source}: empty split, {what}", *repairs.reasons()]))


def sound_size(
    path: str,
    said: tuple[int, int] | None,
    *,
    file: str,
    image_id: int | str,
    check: bool,
    repairs: Repairs,
    num_objects: int = 0,
) -> tuple[int, int] | None:
    """Width and height of an image file, if it can be opened and agrees with its annotation; otherwise None.

    Args:
        path: of the image file, which exists.
        said: width and height by the annotation, None if it does not say.
        file: of the annotation.
        image_id: of the image.
        check: open the file also where its size is said (0.1 ms an image).
        repairs: where a fault is noted.
        num_objects: annotations of the image, which are lost with it.
    """
    note = partial(repairs.add, file=file, image_id=image_id, num_objects=num_objects)
    if said is not None and not check:
        return said
    try:
        photo = Photo(path)
    except BadImageError as error:
        note("unreadable-image", detail=f"{path}: {error}")
        return None
    photo.close()
    size = photo.width, photo.height
    if said is not None and said != size:
        why = _why_turned(path) if said == size[::-1] else ""
        detail = f"{path} is {size[0]} x {size[1]}, the annotation says {said[0]} x {said[1]}{why}"
        note("image-size", detail=detail)
        return None
    return size


def _why_turned(path: str) -> str:
    """Why width and height of an image, which can be opened, are the other way round in its annotation."""
    with Image.open(path) as image:
        is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    if is_turned:
        return ": it is turned by its EXIF orientation"
    return ": width and height are exchanged there, for no EXIF orientation turns the file"


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
