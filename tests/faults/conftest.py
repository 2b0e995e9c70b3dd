"""The images and the uninterrupted run of the faults: those of the end-to-end tests."""

from end_to_end.conftest import images, uninterrupted

__all__ = ["images", "uninterrupted"]
