"""Numbers with their nouns, for people: 1 image, 4 images."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun; `many` is the plural where it does not end in s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
