"""Formats of files that are not images, recognised by their first bytes, with a remedy for each."""

from __future__ import annotations

from typing import BinaryIO

from resim.reading import open_file

_STARTS = {
    b"%pdf": "a PDF: save its pages as images",
    b"<!doctype html": "a web page, not the image itself: download it again",
    b"<html": "a web page, not the image itself: download it again",
    b"version https://git-lfs": "a Git LFS pointer: fetch the image itself with git lfs pull",
    b"<svg": "an SVG drawing: save it as PNG",
    b"<?xml": "XML, perhaps an SVG drawing or a server's error: save or download it again as an image",
    b"pk\x03\x04": "a zip archive: unpack it",
    b"ii+\0": "a BigTIFF: save it as a TIFF of less than 4 GB, or as PNG",
    b"mm\0+": "a BigTIFF: save it as a TIFF of less than 4 GB, or as PNG",
    b"\x93numpy": "a NumPy array: save it as PNG or TIFF",
    b"\x89hdf\r\n": "HDF5: save its images as PNG or TIFF",
    b"simple  =": "FITS: save it as TIFF",
    b"v/1\x01": "OpenEXR: save it as TIFF of 32-bit floats, or as PNG",
    b"nitf0": "NITF: save it as TIFF (gdal_translate)",
    b"sqlite format 3": "a database, perhaps a GeoPackage: save its images as TIFF",
    b"matlab 5.0": "a MATLAB file: save its images as PNG or TIFF",
    b"\x1f\x8b": "compressed by gzip: decompress it",
    b"\xff\x0a": "JPEG XL, which is not read: save it as JPEG or PNG",
}
_HEAD = 352  # bytes: NIfTI's mark is behind its header of 348 less 4
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"heif": "HEIF", b"avif": "AVIF"}


def foreign_format(path: str | BinaryIO) -> str:
    """The format of a file that is not a readable image, and the remedy; empty if it is not known."""
    try:
        if isinstance(path, str):
            with open_file(path) as file:
                head = file.read(_HEAD)
        else:
            path.seek(0)
            head = path.read(_HEAD)
    except (OSError, ValueError):
        return ""
    if not head:
        return "an empty file (0 bytes)"
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return f"{_BRANDS[head[8:12]]}, which is not read: save it as JPEG or PNG"
    if head[128:132] == b"DICM":
        return "DICOM: save it as PNG or TIFF of 16 bits"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "NIfTI: save its slices as PNG or TIFF of 16 bits"
    text = head.lstrip().lower()
    return next((description for start, description in _STARTS.items() if text.startswith(start)), "")


_ARCHIVES = (
    (b"PK\x03\x04", "a zip archive", "unpack it, and name its folder"),
    (b"PK\x05\x06", "an empty zip archive", "name another file"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it, and name its folder"),
    (b"Rar!", "a RAR archive", "unpack it, and name its folder"),
    (b"\x1f\x8b", "compressed by gzip", "decompress it: images are read at random positions"),
    (b"BZh", "compressed by bzip2", "decompress it: images are read at random positions"),
    (b"\xfd7zXZ", "compressed by xz", "decompress it: images are read at random positions"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it: images are read at random positions"),
    (b"\xff\xd8\xff", "a JPEG image", "rename it"),
    (b"\x89PNG", "a PNG image", "rename it"),
)


def foreign_archive(head: bytes) -> str:
    """The format of a file that is called .tar but is not one, and the remedy; empty if it is not known.

    Args:
        head: the first bytes of the file.
    """
    known = next((f"{what}: {remedy}" for start, what, remedy in _ARCHIVES if head.startswith(start)), "")
    if known or not head:
        return known or "an empty file (0 bytes): copy it again"
    text = head.lstrip().lower()
    return next((description for start, description in _STARTS.items() if text.startswith(start)), "")
