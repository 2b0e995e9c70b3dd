"""Gray samples of more than 8 bits, or of floating point, as 8 bits; and why a TIFF cannot be read.

Integers keep the range of their type, 16 bits: 65,535 becomes 255. Floats keep [0, 1]: 1 becomes 255. A picture that
leaves its range, or that would be darker than 16 of 255 everywhere, is scaled by what it holds instead.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

DARK = 16  # of 255: a picture that is darker everywhere would be taken for black
_BITS, _SAMPLES, _FORMAT, _NODATA = 258, 277, 339, 42113  # tags of a TIFF; the last one is GDAL's
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex"}
_SAID = mmap.mmap(-1, 1)  # shared with forked loader processes, so that one of them alone says it


@dataclass(frozen=True)
class Samples:
    """How a file stores its samples.

    Attributes:
        bits: of a sample; 0: not known.
        kind: "unsigned", "signed" or "float".
        nodata: the value that stands for none.
    """

    bits: int = 0
    kind: str = "unsigned"
    nodata: float | None = None


def samples_of(image: Image.Image) -> Samples:
    """How an opened file stores its samples, as far as its format says so."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags: Any = image.tag_v2
        kind = {2: "signed", 3: "float"}.get(_first(tags.get(_FORMAT), 1), "unsigned")
        nodata = None
        with contextlib.suppress(ValueError, TypeError):
            nodata = float(str(tags.get(_NODATA)).strip("\0 "))
        return Samples(bits=_first(tags.get(_BITS), 1), kind=kind, nodata=nodata)
    return Samples(bits=16 if any(";16" in str(tile) for tile in getattr(image, "tile", ())) else 0)


def gray_8_bits(values: np.ndarray, samples: Samples, name: str) -> np.ndarray:
    """(H, W) uint8 of (H, W) integers or floats.

    A picture within its range is scaled by the range; the ranges are 0 to 1 of floats, and 0 to 65,535 of integers, or
    0 to 4,095 or 0 to 255 where nothing in it is above. Any other is scaled from its least to its greatest value, which
    is said once. NaN, no-data and -infinity become 0, +infinity 255; a flat picture out of range becomes 128.

    Args:
        values: of the samples.
        samples: how the file stores them.
        name: of the file, for what is said.

    Raises:
        ValueError: no value is a finite number.
    """
    if samples.bits == 32 and samples.kind == "unsigned" and values.dtype.kind == "i":
        values = values.view(np.uint32)
    elif samples.bits == 8 and samples.kind == "signed":
        values = values.view(np.int8)
    wide = values.astype(np.float64)
    known = np.isfinite(wide)
    if samples.nodata is not None:
        known &= wide != samples.nodata
    if not known.any():
        raise ValueError("holds no finite number")
    low, high = float(wide[known].min()), float(wide[known].max())
    top = _top(low, high, is_float=values.dtype.kind == "f")
    if top is not None:
        scaled = wide * 255 / top
    elif high > low:
        scaled = (wide - low) * 255 / (high - low)
        said = "are scaled to 0 to 255, as of each such picture (said once)"
        _say_once(f"{name}: values from {low:g} to {high:g} {said}")
    else:
        scaled = np.full_like(wide, 128)
    scaled = np.where(known | np.isposinf(wide), scaled, 0)
    return np.nan_to_num(scaled, posinf=255).clip(0, 255).round().astype(np.uint8)


def _top(low: float, high: float, *, is_float: bool) -> float | None:
    """The end of the range by which a picture is scaled; None: by its own values."""
    if low < 0:
        return None
    if is_float:
        return 1.0 if high == 0 or DARK / 255 <= high <= 1 else None
    return next((top for top in (255.0, 4095.0, 65535.0) if high <= top), None)


def dark_fault(image: Image.Image, samples: Samples) -> str:
    """Why colours of 16 bits cannot be used: Pillow keeps their upper 8 bits, in which a 12-bit picture is black."""
    if samples.bits != 16 or image.mode not in ("RGB", "RGBA", "CMYK"):
        return ""
    highest = max(int(high) for _, high in image.getextrema()[:3])  # type: ignore[misc,index]
    if 0 < highest < DARK or (highest == 0 and image.format == "TIFF"):
        return "colours of 16 bits that use 12 or fewer, of which 8-bit RGB keeps nothing: save them as 8 bits"
    return ""


def tiff_fault(path: str | BinaryIO) -> str:
    """What a TIFF that Pillow does not open holds, and the remedy; empty for other files."""
    try:
        with contextlib.ExitStack() as held:
            file = held.enter_context(open(path, "rb")) if isinstance(path, str) else path  # noqa: PTH123
            file.seek(0)
            header = file.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return ""
            directory: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
            bits, count = _first(directory.get(_BITS), 1), directory.get(_SAMPLES, 1)
            kind = _FORMATS.get(_first(directory.get(_FORMAT), 1), "samples of an unknown kind")
    except Exception:  # a damaged file: what Pillow said of it stands
        return ""
    each = "a sample" if count == 1 else f"{count} samples"
    return (
        f"a TIFF with {each} a pixel, {bits}-bit {kind}, which is not read: save it as 8-bit RGB, or as gray of 8 or "
        "16 bits or 32-bit floats"
    )


def _first(value: Any, default: int) -> int:
    if value is None:
        return default
    return int(value[0]) if isinstance(value, tuple) else int(value)


def _say_once(text: str) -> None:
    if not _SAID[0]:
        _SAID[0] = 1
        print(f"warning: {text}", file=sys.stderr, flush=True)
