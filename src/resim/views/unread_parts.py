"""Pages, frames and bands of an image file that are not read."""

from __future__ import annotations

import mmap
import warnings
from typing import Any

from PIL import Image, TiffImagePlugin

from resim.views.tones import warn_once

_SUBFILE, _WIDTH, _HEIGHT, _SAMPLES, _EXTRA = 254, 256, 257, 277, 338  # tags of a TIFF
_REDUCED_OR_MASK = 0b101  # bits of the subfile type of overviews and masks
_ANIMATED = ("GIF", "PNG", "WEBP")
# of each kind, shared with forked loader processes, so that only one of them warns
_WARNED = {kind: mmap.mmap(-1, 1) for kind in ("bands", "pages", "frames")}


def unread_parts(image: Image.Image) -> tuple[str, str] | None:
    """What of an opened file is not read, as a kind and a text: further pages or frames, or bands; None: all is read.

    Overviews, masks, and the previews in JPEG files are no pages, and an alpha channel is no band.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags: Any = image.tag_v2
        extra = tags.get(_EXTRA, ())
        if 0 in (extra if isinstance(extra, tuple) else (extra,)):
            count = tags.get(_SAMPLES, 1)
            return "bands", f"{count} bands, of which {'the first 3 are' if count > 3 else 'the first is'} read"
        has_pages = bool(tags.next) and _has_second_page(image, tags.next)
        return ("pages", "several pages, of which the first is read") if has_pages else None
    is_animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
    return ("frames", "several frames, of which the first is read") if is_animated else None


def _has_second_page(image: TiffImagePlugin.TiffImageFile, offset: int) -> bool:
    """Whether the second directory of a TIFF is an image of the size of the first."""
    file = image.fp
    assert file is not None
    place = file.tell()
    try:
        file.seek(0)
        head = file.read(8)
        directory: Any = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if 43 in head[2:4] else b""))
        file.seek(offset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directory.load(file)
        is_other = directory.get(_SUBFILE, 0) & _REDUCED_OR_MASK
        return not is_other and (directory.get(_WIDTH), directory.get(_HEIGHT)) == image.size
    except Exception:  # a damaged directory: the first page is read all the same
        return False
    finally:
        file.seek(place)


def warn_of_unread_parts(name: str, kind: str, text: str) -> None:
    """Say what of a file is not read, once in a run for each kind, in whichever process."""
    warn_once(_WARNED[kind], f"{name}: has {text}, and likewise in other such images (shown once)")
