"""Convert gray images of more than 8 bits, or of floats, to 8 bits; explain why a TIFF cannot be read.

Integers are scaled by a range of 8, 12 or 16 bits: 65,535 becomes 255. Floats are scaled by [0, 1]: 1 becomes 255. An
image with values outside of its range, or a float image that would be darker than 16 of 255 everywhere, is scaled from
its least to its greatest value instead.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from resim.reading import open_file

DARK = 16  # of 255; an image that is darker everywhere looks black
_WIDTH, _BITS, _PHOTOMETRIC, _SAMPLES, _FORMAT = 256, 258, 262, 277, 339  # tags of a TIFF
_NODATA = 42113  # GDAL's
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex"}
_BAND = 2**16  # pixels that are converted at a time
_WARNED = mmap.mmap(-1, 1)  # shared with forked loader processes, so that only one of them warns


@dataclass(frozen=True)
class Samples:
    """The sample format of a file.

    Attributes:
        bits: bits per sample; 0: not known.
        kind: "unsigned", "signed" or "float".
        nodata: the value of samples without data.
        is_negative: 0 is white, as in many radiographs; Pillow inverts samples of 8 bits itself.
    """

    bits: int = 0
    kind: str = "unsigned"
    nodata: float | None = None
    is_negative: bool = False


def samples_of(image: Image.Image) -> Samples:
    """The sample format of an opened file, as far as its header has it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags: Any = image.tag_v2
        kind = {2: "signed", 3: "float"}.get(_first(tags.get(_FORMAT), 1), "unsigned")
        nodata = None
        with contextlib.suppress(ValueError, TypeError):
            nodata = float(str(tags.get(_NODATA)).strip("\0 "))
        bits = _first(tags.get(_BITS), 1)
        return Samples(bits=bits, kind=kind, nodata=nodata, is_negative=bits > 8 and tags.get(_PHOTOMETRIC) == 0)
    return Samples(bits=16 if any(";16" in str(tile) for tile in getattr(image, "tile", ())) else 0)


def gray_8_bits(values: np.ndarray, samples: Samples, name: str) -> np.ndarray:
    """Convert (H, W) integers or floats to (H, W) uint8.

    An image within its range is scaled by the range: 0 to 1 for floats; for integers 0 to 255, 0 to 4,095 or 0 to
    65,535, the smallest that contains all values. Any other image is scaled from its least to its greatest value, with
    one warning per run. NaN, no-data and -infinity become 0, +infinity 255. A constant image out of range becomes 128.
    A negative is inverted, except for samples that are not known.

    Args:
        values: the samples.
        samples: their format in the file.
        name: name of the file, for the warning.

    Raises:
        ValueError: no value is a finite number.
    """
    if samples.bits == 32 and samples.kind == "unsigned" and values.dtype.kind == "i":
        values = values.view(np.uint32)
    elif samples.bits == 8 and samples.kind == "signed":
        values = values.view(np.int8)
    bands = _bands(values)
    extremes = [(part.min(), part.max()) for band in bands if (part := _known(band, samples)[0]).size]
    if not extremes:
        raise ValueError("has no finite value")
    least, greatest = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    top = _range_end(least, greatest, is_float=values.dtype.kind == "f")
    if top is None and greatest > least:
        scaling = "are scaled to 0 to 255, and likewise in other such images (shown once)"
        warn_once(_WARNED, f"{name}: values from {least:g} to {greatest:g} {scaling}")
    gray = np.empty(values.shape, np.uint8)
    for band, out in zip(bands, _bands(gray), strict=True):
        wide = band.astype(np.float64)
        if top is not None:
            scaled = wide * 255 / top
        elif greatest > least:
            scaled = (wide - least) * 255 / (greatest - least)
        else:
            scaled = np.full_like(wide, 128)
        scaled = np.where(_known(band, samples)[1] | np.isposinf(wide), scaled, 0)
        eight = np.nan_to_num(scaled, posinf=255).clip(0, 255).round()
        out[:] = np.where(_known(band, samples)[1], 255 - eight, eight) if samples.is_negative else eight
    return gray


def _bands(image: np.ndarray) -> list[np.ndarray]:
    """Views of consecutive rows of an image: as float64, with its copies, a whole one takes 48 bytes a pixel."""
    rows = max(1, _BAND // max(1, image.shape[1]))
    return [image[start : start + rows] for start in range(0, len(image), rows)]


def _known(band: np.ndarray, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """The values that are finite and not the no-data value, in float64; and where they are."""
    wide = band.astype(np.float64)
    known = np.isfinite(wide)
    if samples.nodata is not None:
        known &= wide != samples.nodata
    return wide[known], known


def _range_end(least: float, greatest: float, *, is_float: bool) -> float | None:
    """The end of the range that an image is scaled by; None: it is scaled from its least to its greatest value."""
    if least < 0:
        return None
    if is_float:
        return 1.0 if greatest == 0 or DARK / 255 <= greatest <= 1 else None
    return next((top for top in (255.0, 4095.0, 65535.0) if greatest <= top), None)


def dark_fault(image: Image.Image, samples: Samples) -> str:
    """Why colours of 16 bits cannot be used, or an empty string: Pillow keeps only their upper 8 bits."""
    if samples.bits != 16 or image.mode not in ("RGB", "RGBA", "CMYK"):
        return ""
    highest = max(int(greatest) for _, greatest in image.getextrema()[:3])  # type: ignore[misc,index]
    if 0 < highest < DARK or (highest == 0 and image.format == "TIFF"):
        return "colours of 16 bits with 12 significant bits or fewer, which are black as 8-bit RGB: save them as 8 bits"
    return ""


def tiff_fault(path: str | BinaryIO) -> str:
    """The sample format of a TIFF that Pillow cannot open, and the remedy; empty for other files."""
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_file(path)) if isinstance(path, str) else path
            file.seek(0)
            header = file.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return ""
            directory: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(directory.next)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            directory.load(file)
            if _WIDTH not in directory:  # cut off
                return ""
            bits, count = _first(directory.get(_BITS), 1), directory.get(_SAMPLES, 1)
            kind = _FORMATS.get(_first(directory.get(_FORMAT), 1), "samples of an unknown kind")
    except Exception:  # a damaged file: Pillow's message is kept
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


def warn_once(flag: mmap.mmap | bytearray, text: str) -> None:
    """Print a warning, unless a process that shares `flag` has set it, and set it."""
    if not flag[0]:
        flag[0] = 1
        print(f"warning: {text}", file=sys.stderr, flush=True)
