"""From a file to upright 8-bit RGB, decoded no larger than its crops need."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resim.views.foreign import what_it_is
from resim.views.shards import open_bytes
from resim.views.tones import Samples, dark_fault, gray_8_bits, samples_of, tiff_fault

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


class BadImageError(Exception):
    """A file that cannot be decoded, and why."""


class Photo:
    """An opened image file: its upright size is known at once, its pixels are decoded when a scale is asked for.

    It is named by its path, or given as a binary file that is open (one read out of an archive).

    Raises:
        BadImageError: the file cannot be opened, or is larger than Pillow's limit against decompression bombs.
    """

    def __init__(self, path: str | BinaryIO) -> None:
        image: Image.Image | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(open_bytes(path) if isinstance(path, str) else path)
                samples = samples_of(image)
                if image.format == "TIFF":  # Pillow turns it upright by itself, and its size by then at the latest
                    image.load()
                orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception as error:  # decoders raise what they like; one file must not stop a run
            if image is not None:
                image.close()
            fault = (tiff_fault(path) or what_it_is(path)) if isinstance(error, UnidentifiedImageError) else ""
            raise BadImageError(fault or f"{type(error).__name__}: {error}") from None
        self._image, self._samples = image, samples
        self._name = path if isinstance(path, str) else "an image of an archive"
        self._upright = orientation == 1
        width, height = image.size
        self.width, self.height = (height, width) if orientation in _SIDEWAYS else (width, height)

    def close(self) -> None:
        """Let go of a file that will not be decoded."""
        self._image.close()

    def decode(self, reduction: float = 1.0) -> Image.Image:
        """Upright RGB pixels, of the full size or, for a JPEG, smaller by at most `reduction` in each direction.

        JPEG decoders scale by 1/2, 1/4 and 1/8 for a fraction of the time. Gray, palette, CMYK, 16-bit, 32-bit, float
        and transparent images become 8-bit RGB (`tones` has the rule for wide samples); transparency is dropped, but
        where all colours are the same, so that the picture is in the transparency alone, it is laid on white, or on
        black where it is light. Of an animation the first frame is taken.

        Raises:
            BadImageError: the pixels cannot be decoded.
        """
        try:
            with self._image as image, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if reduction >= 2 and image.format == "JPEG":
                    width, height = image.size
                    scale = next(s for s in (8, 4, 2) if s <= reduction)
                    image.draft("RGB", (max(1, width // scale), max(1, height // scale)))
                return _to_rgb(ImageOps.exif_transpose(image), self._samples, self._name)
        except Exception as error:
            raise BadImageError(f"{type(error).__name__}: {error}") from None

    def pixels(self, reduction: float = 1.0) -> np.ndarray:
        """What `decode` gives, as (H, W, 3) uint8; a whole JPEG by simplejpeg, where that is installed.

        Both are libjpeg-turbo and give the same bytes (docs/speed.md has their times).

        Raises:
            BadImageError: as `decode`.
        """
        image = self._image
        library = _simplejpeg()
        if library is not None and reduction < 2 and self._upright and (image.format, image.mode) == ("JPEG", "RGB"):
            assert image.fp is not None
            try:
                image.fp.seek(0)
                found = library.decode_jpeg(image.fp.read())
            except (ValueError, OSError):  # Pillow has the last word on what can be read
                image.fp.seek(0)
            else:
                image.close()
                return found
        return np.array(self.decode(reduction))  # writable: what PyTorch asks for


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:  # the extra `fast`
        return None


def _to_rgb(image: Image.Image, samples: Samples, name: str) -> Image.Image:
    image.load()
    fault = dark_fault(image, samples)
    if fault:
        raise ValueError(fault)
    if image.mode == "RGB":
        return image
    # a plain conversion would clip wide samples: floats of 0 to 1 all to black
    is_wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if is_wide or (image.mode == "L" and samples.kind == "signed"):
        return Image.fromarray(gray_8_bits(np.asarray(image), samples, name)).convert("RGB")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or (image.mode != "RGBA" and "transparency" in image.info):
        image = image.convert("RGBA")
    return _without_alpha(image) if image.mode == "RGBA" else image.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours as they are; where they are all the same, on a ground against which they show."""
    colors = image.convert("RGB")
    (low, high), *others = image.getextrema()  # type: ignore[misc]
    alpha_low, alpha_high = others[-1]  # type: ignore[misc]
    if low == high and all(least == most for least, most in others[:-1]) and alpha_low < alpha_high:  # type: ignore[misc]
        flat = colors.getpixel((0, 0))
        is_light = sum(flat) > 3 * 127  # type: ignore[arg-type]
        ground = Image.new("RGB", image.size, (0, 0, 0) if is_light else (255, 255, 255))
        ground.paste(colors, mask=image.getchannel("A"))
        return ground
    return colors
