"""What is wrong with a data set, said in a line for each kind, and what is done about it.

By default faulty annotations are repaired or left out and listed; strict reading stops instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from resim.counts import counted
from resim.datasets.faults import KINDS, NOTES, what_it_is
from resim.errors import UserError
from resim.views.decode import BadImageError, Photo

OVERHANG = 1.0  # pixels that a box may stick out of its image: COCO's own do, by rounding

EXAMPLES = 20  # problems of a kind that are kept; the others are counted


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: its kind (a key of `faults.KINDS` or `NOTES`), where it is and what was found there."""

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
        also = ", ".join(f"{self.counts[kind]} {what_it_is(kind, self.counts[kind])[0]}" for kind in others)
        raise UserError(f"{line}{'; also ' if also else ''}{also}")

    def _faults(self) -> list[str]:
        return [kind for kind in self.counts if kind in KINDS]

    def _line(self, kind: str, examples: int, strict: bool = False) -> str:
        count = self.counts[kind]
        wrong, done = what_it_is(kind, count)
        lost = f" with {counted(self.lost[kind], 'annotation')}" if self.lost[kind] else ""
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
    doubt: Callable[..., None] | None = None,
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
        doubt: takes (size, note, detail) of an image whose annotation exchanges width and height, in place of a fault.
    """
    note = partial(repairs.add, file=file, image_id=image_id)
    if said is not None and not check:
        return said
    try:
        photo = Photo(path)
    except BadImageError as error:
        note("unreadable-image", detail=f"{path}: {error}", num_objects=num_objects)
        return None
    photo.close()
    size = photo.width, photo.height
    if said is not None and said != size:
        detail = f"{path} is {size[0]} x {size[1]}, the annotation says {said[0]} x {said[1]}"
        if said == size[::-1] and _is_turned(path):
            detail += ": it is turned by its EXIF orientation"
        elif said == size[::-1]:
            detail += ": width and height are exchanged there, for no EXIF orientation turns the file"
            if doubt is not None:
                doubt(size, note, detail)
                return size
        note("image-size", detail=detail, num_objects=num_objects)
        return None
    return size


def _is_turned(path: str) -> bool:
    """Whether the EXIF orientation of an image, which can be opened, exchanges its width and height."""
    with Image.open(path) as image:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)


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
