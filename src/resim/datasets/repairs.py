"""The log of repairs: which faults a data set has, how many of each kind, and where the first ones are.

By default faulty annotations are repaired or dropped, and listed; strict reading stops at the first kind instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from resim.counts import counted
from resim.datasets.fault_kinds import FAULTS, KINDS, NOTES
from resim.errors import UserError

EXAMPLES = 20  # problems of a kind that are stored; the others are only counted


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: its kind (a key of `fault_kinds.KINDS`), its place, and the faulty value."""

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
        counts: number of faults by kind, in the order of their first occurrence.
        lost: number of annotations that were skipped with them, by kind.
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
        """Record a fault of one of the `KINDS`, with which `num_objects` annotations are skipped."""
        assert kind in KINDS, kind
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.lost[kind] = self.lost.get(kind, 0) + num_objects
        if self.counts[kind] <= EXAMPLES:
            self.problems.append(Problem(kind, file, image_id, annotation_id, detail))

    def extend(self, other: Repairs) -> None:
        """Add the faults of another part of the data set."""
        room = {kind: EXAMPLES - number for kind, number in self.counts.items()}
        for problem in other.problems:
            room[problem.kind] = room.get(problem.kind, EXAMPLES) - 1
            if room[problem.kind] >= 0:
                self.problems.append(problem)
        for kind, number in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
            self.lost[kind] = self.lost.get(kind, 0) + other.lost[kind]

    def copy(self) -> Repairs:
        """A copy to which faults can be added."""
        return Repairs(list(self.problems), dict(self.counts), dict(self.lost))

    def lines(self, examples: int = 3) -> list[str]:
        """One line for each kind: the count, the repair, and the first few by file, image and annotation."""
        notes = [kind for kind in self.counts if kind in NOTES]
        return [self._line(kind, examples) for kind in [*self._faults(), *notes]]

    def reasons(self, *kinds: str) -> list[str]:
        """Lines that may explain an error, the most frequent kind first; all kinds if none is named."""
        shown = [kind for kind in self.counts if kind in kinds or not kinds]
        return [self._line(kind, 2) for kind in sorted(shown, key=lambda kind: -self.counts[kind])]

    def stop_if(self, strict: bool) -> None:
        """Raise an error for the faults, if reading is strict.

        Raises:
            UserError: strict, and there is a fault: the first kind with examples, and the counts of the others.
        """
        faults = self._faults()
        if not (strict and faults):
            return
        first, *others = faults
        line = self._line(first, examples=3, strict=True)
        also = ", ".join(f"{self.counts[kind]} {KINDS[kind].problem(self.counts[kind])}" for kind in others)
        raise UserError(f"{line}{'; also ' if also else ''}{also}; correct the data or leave --strict out")

    def _faults(self) -> list[str]:
        return [kind for kind in self.counts if kind in FAULTS]

    def _line(self, kind: str, examples: int, strict: bool = False) -> str:
        count = self.counts[kind]
        lost = f" with {counted(self.lost[kind], 'annotation')}" if self.lost[kind] else ""
        repair = " (strict)" if strict else f", {KINDS[kind].repair}{lost}"
        shown = [str(problem) for problem in self.problems if problem.kind == kind][:examples]
        remaining = f"; and {count - len(shown)} more" if count > len(shown) else ""
        return f"{count} {KINDS[kind].problem(count)}{repair}: {'; '.join(shown)}{remaining}"


def empty_split_error(source: str, repairs: Repairs, reason: str) -> UserError:
    """The error for a split without anything usable, with every kind of fault that was recorded."""
    return UserError("; ".join([f"{source}: empty split, {reason}", *repairs.reasons()]))
