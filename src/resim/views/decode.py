"""Decode an image file to upright 8-bit RGB, no larger than its crops need."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from resim.reading import NotRegularError
from resim.views.foreign import foreign_format
from resim.views.limits import MAX_PIXELS, parts_fault, scans_fault, size_fault
from resim.views.shards import open_image
from resim.views.tones import Samples, dark_fault, gray_8_bits, samples_of, tiff_fault
from resim.views.unread_parts import unread_parts, warn_of_unread_parts

_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of an image is in the exception too


class BadImageError(Exception):
    """An image cannot be decoded; the message is the reason."""


class Photo:
    """An opened image: its upright size and its EXIF orientation are known, and its pixels are decoded later.

    Args:
        path: path of the image, also of one in a tar (`views.shards`), or an open binary file.
        max_pixels: number of pixels that are decoded at most. A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its
            size, if that is small enough.

    Raises:
        BadImageError: the file cannot be opened, is no regular file, or takes more memory or time than `views.limits`
            allows.
    """

    def __init__(self, path: str | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> None:
        self._file: BinaryIO | None = None  # to close; a file of the caller stays open
        image: Image.Image | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if isinstance(path, str):
                    file = self._file = open_image(path)
                else:
                    file = path
                _refuse(parts_fault(file))
                image = Image.open(file)
                if isinstance(image, ImageFile.StubImageFile):  # a format that Pillow knows and cannot decode
                    _refuse(foreign_format(path) or f"{image.format}, which is not read: save it as JPEG or PNG")
                self._least_scale = _least_scale(image, file, max_pixels)
                samples, self._unread = samples_of(image), unread_parts(image)
                if image.format == "TIFF":  # loading a TIFF turns it upright and changes its size
                    image.load()
                orientation = image.getexif().get(_ORIENTATION, 1)
        except BadImageError:
            self._close_file()
            raise
        except NotRegularError as error:
            raise BadImageError(error.strerror) from None
        except Exception as error:  # decoders raise any exception; one file must not stop a run
            if image is not None:
                image.close()
            self._close_file()
            is_unknown = isinstance(error, UnidentifiedImageError)
            fault = (tiff_fault(path) if is_unknown else "") or foreign_format(path)
            if isinstance(error, Image.DecompressionBombError):
                fault = f"{type(error).__name__}: {error} Cut it into tiles"
            reason = f"cannot identify image file {path!r}" if is_unknown and isinstance(path, str) else error
            raise BadImageError(fault or f"{type(error).__name__}: {reason}") from None
        self._image, self._samples = image, samples
        self._name = path if isinstance(path, str) else "an image in an archive"
        self.orientation = orientation if orientation in range(2, 9) else 1  # others are ignored
        width, height = image.size
        self.width, self.height = (height, width) if orientation in SIDEWAYS else (width, height)

    def close(self) -> None:
        """Close a file that is not decoded."""
        self._image.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def decode(self, reduction: float = 1.0) -> Image.Image:
        """Decode to upright RGB, at full size or, for a JPEG, smaller by at most a factor `reduction` on each axis.

        JPEG decoders scale by 1/2, 1/4 and 1/8 in a fraction of the time; one above the limit of pixels is scaled
        further than `reduction`. Gray, palette, CMYK, 16-bit, 32-bit, float and transparent images become 8-bit RGB
        (see `views.tones` for samples of more than 8 bits). Transparency is dropped, except in an image of a single
        colour, whose content is its transparency: it is composited on white, or on black if the colour is light. An
        animation gives its first frame.

        Raises:
            BadImageError: the pixels cannot be decoded.
        """
        try:
            with self._image as image, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scale = self._least_scale
                if image.format == "JPEG":
                    scale = max(scale, next((s for s in (8, 4, 2) if s <= reduction), 1))
                if scale > 1:
                    width, height = image.size
                    image.draft("RGB", (max(1, width // scale), max(1, height // scale)))
                if self._unread:
                    warn_of_unread_parts(self._name, *self._unread)
                return _to_rgb(ImageOps.exif_transpose(image), self._samples, self._name)
        except Exception as error:
            raise BadImageError(f"{type(error).__name__}: {error}") from None
        finally:
            self._close_file()

    def pixels(self, reduction: float = 1.0) -> np.ndarray:
        """As `decode`, but (H, W, 3) uint8; a JPEG at full size is decoded by simplejpeg, if that is installed.

        Both decoders are libjpeg-turbo and give the same bytes (docs/speed.md has their times).

        Raises:
            BadImageError: as `decode`.
        """
        image = self._image
        library = _simplejpeg() if reduction < 2 and self._least_scale == 1 else None
        if library is not None and self.orientation == 1 and (image.format, image.mode) == ("JPEG", "RGB"):
            assert image.fp is not None
            try:
                image.fp.seek(0)
                pixels = library.decode_jpeg(image.fp.read())
            except (ValueError, OSError):  # Pillow reads more files
                image.fp.seek(0)
            else:
                self.close()
                return pixels
        return np.array(self.decode(reduction))  # a copy, because PyTorch needs a writable array


def _refuse(fault: str) -> None:
    if fault:
        raise BadImageError(fault)


def _least_scale(image: Image.Image, file: BinaryIO, max_pixels: int) -> int:
    """1, or the n of the largest 1 / n at which a JPEG is decoded to at most `max_pixels` pixels.

    Raises:
        BadImageError: the image is too large, or a JPEG of too many scans.
    """
    width, height = image.size
    if image.format not in ("JPEG", "MPO"):
        _refuse(size_fault(width, height, max_pixels))
        return 1
    _refuse(scans_fault(image, file))
    if image.info.get("progressive"):  # all coefficients are kept, 6 bytes a pixel at any scale
        _refuse(size_fault(width, height, 4 * max_pixels))
    scale = next((s for s in (1, 2, 4) if -(-width // s) * -(-height // s) <= max_pixels), 8)
    _refuse(size_fault(-(-width // scale), -(-height // scale), max_pixels) and size_fault(width, height, max_pixels))
    return scale


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
