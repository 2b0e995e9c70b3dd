"""Pictures and tars: decoding and view making, members, the index of `resim pack`."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resim.views.config import ViewsConfig
from resim.views.crops import cut_views, draw_views, sample_generator
from resim.views.decode import BadImageError, Photo
from resim.views.folder import find_images, is_image
from resim.views.shards import list_shard, member_path, read_member

REFUSALS = (BadImageError,)
SMALL = ViewsConfig(image_size=32)


@functools.cache
def canary() -> bytes:
    """A whole picture that no input may lead to."""
    return _encode(Image.new("RGB", (8, 8)), "PNG")


def _encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@functools.cache
def pictures() -> Sequence[bytes]:
    """Small pictures in the formats that are read, in all their modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        _encode(rgb, "JPEG"), _encode(rgb, "JPEG", progressive=True, exif=exif), _encode(rgb.convert("L"), "JPEG"),
        _encode(rgb.convert("CMYK"), "JPEG"), _encode(rgb, "PNG"), _encode(rgb.convert("RGBA"), "PNG"),
        _encode(rgb.convert("P"), "PNG"), _encode(rgb.convert("LA"), "PNG"), _encode(rgb.convert("1"), "PNG"),
        _encode(wide, "PNG"), _encode(rgb, "BMP"), _encode(rgb, "GIF"), _encode(rgb, "PPM"), _encode(rgb, "TGA"),
        _encode(rgb, "TIFF"), _encode(rgb, "TIFF", compression="tiff_lzw"), _encode(wide, "TIFF"),
        _encode(rgb, "TIFF", compression="jpeg"), _encode(wide.convert("F"), "TIFF"), _encode(rgb, "WEBP"),
        _encode(rgb, "WEBP", lossless=True), _encode(rgb, "JPEG2000"), _encode(rgb, "ICO"), _encode(rgb, "PCX"),
        _encode(rgb, "DDS"), _encode(rgb, "QOI") if "QOI" in Image.SAVE else b"qoif",
    ]  # fmt: skip


def read_picture(data: bytes, folder: Path) -> None:
    """Decode a picture and cut two views, as the loader does."""
    path = folder / "a.jpg"
    path.write_bytes(data)
    photo = Photo(str(path))
    flip, draws = draw_views(SMALL, photo.width, photo.height, sample_generator(0, 0, 0))
    views = cut_views(photo, flip, draws, SMALL.image_size)
    assert views.shape == (2, 32, 32, 3)
    assert views.dtype == np.uint8


def _tar(form: int, names: Sequence[str], **entry: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            for key, value in entry.items():
                setattr(info, key, value)
            picture = pictures()[4]
            info.size = len(picture) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(picture))
    return buffer.getvalue()


@functools.cache
def tars() -> Sequence[bytes]:
    """Tars of all formats, with long names, links and pax headers."""
    names = ["a.png", "b/c.png", "long/" * 30 + "d.png"]
    return [
        _tar(tarfile.USTAR_FORMAT, names[:2]), _tar(tarfile.GNU_FORMAT, names), _tar(tarfile.PAX_FORMAT, names),
        _tar(tarfile.GNU_FORMAT, ["a" * 300 + ".png"] * 2), _tar(tarfile.PAX_FORMAT, ["é" * 90 + ".png"]),
        _tar(tarfile.GNU_FORMAT, ["a.png"], type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        _tar(tarfile.PAX_FORMAT, ["a.png"], pax_headers={"size": "600", "GNU.sparse.major": "1"}),
        _tar(tarfile.PAX_FORMAT, ["a.png"], pax_headers={"mtime": "1e5", "comment": "x" * 900}),
    ]  # fmt: skip


def read_tar(data: bytes, folder: Path) -> None:
    """List a tar and read its pictures."""
    path = folder / "a.tar"
    path.write_bytes(data)
    for member in list_shard(str(path), is_image)[:4]:
        assert len(read_member(str(path), member)) == member.size
        try:
            Photo(member_path(str(path), member)).close()
        except BadImageError:
            continue
    find_images([path])


def with_tar(folder: Path) -> None:
    """A whole tar, whose index is the input."""
    (folder / "a.tar").write_bytes(tars()[0])


@functools.cache
def indices() -> Sequence[Any]:
    """The index of a folder of tars."""
    size = len(tars()[0])
    members = [["a.png", 512, 100], ["b/c.png", 2048, 100]]
    return [{"shards": {"a.tar": {"bytes": size, "members": members}}}, {"shards": {"a.tar": {}}}]


def read_index(data: bytes, folder: Path) -> None:
    """List a folder of tars by its index."""
    (folder / "shards.json").write_bytes(data)
    json.dumps(list_shard(str(folder / "a.tar"), is_image))
    find_images([folder])
