"""Decode an image file to upright 8-bit RGB, no larger than its crops need."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resim.views.foreign import foreign_format
from resim.views.shards import open_bytes
from resim.views.tones import Samples, dark_fault, gray_8_bits, samples_of, tiff_fault

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


class BadImageError(Exception):
    """An image cannot be decoded; the message is the reason."""


class Photo:
    """An opened image: its upright size is known, and its pixels are decoded later.

    Args:
        path: path of the image, also of one in a tar (`views.shards`), or an open binary file.

    Raises:
        BadImageError: the file cannot be opened, or exceeds Pillow's limit against decompression bombs.
    """

    def __init__(self, path: str | BinaryIO) -> None:
        image: Image.Image | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(open_bytes(path) if isinstance(path, str) else path)
                samples = samples_of(image)
                if image.format == "TIFF":  # loading a TIFF turns it upright and changes its size
                    image.load()
                orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception as error:  # decoders raise any exception; one file must not stop a run
            if image is not None:
                image.close()
            fault = (tiff_fault(path) or foreign_format(path)) if isinstance(error, UnidentifiedImageError) else ""
            raise BadImageError(fault or f"{type(error).__name__}: {error}") from None
        self._image, self._samples = image, samples
        self._name = path if isinstance(path, str) else "an image in an archive"
        self._upright = orientation == 1
        width, height = image.size
        self.width, self.height = (height, width) if orientation in _SIDEWAYS else (width, height)

    def close(self) -> None:
        """Close a file that is not decoded."""
        self._image.close()

    def decode(self, reduction: float = 1.0) -> Image.Image:
        """Decode to upright RGB, at full size or, for a JPEG, smaller by at most a factor `reduction` on each axis.

        JPEG decoders scale by 1/2, 1/4 and 1/8 in a fraction of the time. Gray, palette, CMYK, 16-bit, 32-bit, float
        and transparent images become 8-bit RGB (see `views.tones` for samples of more than 8 bits). Transparency is
        dropped, except in an image of a single colour, whose content is its transparency: it is composited on white,
        or on black if the colour is light. An animation gives its first frame.

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
        """As `decode`, but (H, W, 3) uint8; a JPEG at full size is decoded by simplejpeg, if that is installed.

        Both decoders are libjpeg-turbo and give the same bytes (docs/speed.md has their times).

        Raises:
            BadImageError: as `decode`.
        """
        image = self._image
        library = _simplejpeg()
        if library is not None and reduction < 2 and self._upright and (image.format, image.mode) == ("JPEG", "RGB"):
            assert image.fp is not None
            try:
                image.fp.seek(0)
                pixels = library.decode_jpeg(image.fp.read())
            except (ValueError, OSError):  # Pillow reads more files
                image.fp.seek(0)
            else:
                image.close()
                return pixels
        return np.array(self.decode(reduction))  # a copy, because PyTorch needs a writable array


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
    # Pillow's conversion clips wide samples: floats from 0 to 1 all become black
    is_wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if is_wide or (image.mode == "L" and samples.kind == "signed"):
        return Image.fromarray(gray_8_bits(np.asarray(image), samples, name)).convert("RGB")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or (image.mode != "RGBA" and "transparency" in image.info):
        image = image.convert("RGBA")
    return _without_alpha(image) if image.mode == "RGBA" else image.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours without alpha; a single colour is composited on white, or on black if it is light."""
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
