"""Kinds of files that contain no weights, or weights that are not read: recognised by their first bytes."""

from __future__ import annotations

import codecs

_DOWNLOAD = "download it again"
_SAVE = "save the weights with torch.save or as safetensors"
_ONNX = "an ONNX file, which is written and never read: name the checkpoint it was made from"
_KINDS: dict[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"<!doctype": f"a web page, not the file itself: {_DOWNLOAD}",
    b"<html": f"a web page, not the file itself: {_DOWNLOAD}",
    b"<head": f"a web page, not the file itself: {_DOWNLOAD}",
    b"<?xml": f"an XML document, such as a server's error, not the file itself: {_DOWNLOAD}",
    b"http/1.": f"a server's answer with its header, not the file itself: {_DOWNLOAD}",
    b"\x89hdf": f"an HDF5 file: {_SAVE}",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"bzh": "compressed with bzip2: unpack it first",
    b"\xfd7zxz": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, and name a file of weights in it",
    b"rar!\x1a\x07": "a RAR archive: unpack it, and name a file of weights in it",
    b"\x93numpy": "a file of NumPy's (.npy): save a state_dict",
    b"\x89png\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"gif8": "a GIF image",
    b"ii*\x00": "a TIFF image",
    b"mm\x00*": "a TIFF image",
    b"%pdf": "a PDF document",
    b"gguf": f"a GGUF file of language models: {_SAVE}",
    b"matlab 5.0 mat-file": f"a file of MATLAB: {_SAVE}",
    b"sqlite format 3": "an SQLite database",
    b"\x7felf": "a program",
    b"mz\x90\x00": "a program",
    b"\x12\x01\x00\x00\x00\x00\x00\x00": f"a file of MXNet: {_SAVE}",
}  # fmt: skip
_INNER: tuple[tuple[int, bytes, str], ...] = (
    (4, b"TFL3", f"a TensorFlow Lite file: {_SAVE}"),
    (4, b"ftyp", "a video or an image in an MP4 container"),
    (8, b"WEBP", "a WebP image"),
    (257, b"ustar", "a tar archive: unpack it, and name a file of weights in it"),
)
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_MAX_IR_VERSION = 64


def describe_foreign(head: bytes) -> str | None:
    """What a file is that is no file of weights, with a remedy; None where its first bytes do not show it.

    Args:
        head: the first 264 bytes, or all of a shorter file.
    """
    if head[4:9] == b"\0\0\0\0{":  # safetensors: the length of its header, then JSON
        return None
    mark = next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), b"")
    start = head.removeprefix(mark).lstrip().lower()
    kind = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)
    kind = kind or next((kind for place, magic, kind in _INNER if head[place:].startswith(magic)), None)
    if kind is not None:
        return kind
    if _is_onnx(head):
        return _ONNX
    if not head.strip(b"\0"):
        return f"without content: its first {len(head)} bytes are 0, as of an interrupted download: {_DOWNLOAD}"
    return None


def text_in(head: bytes) -> str | None:
    """The text that a file begins with; None if it is no text.

    Args:
        head: its first bytes; the last character may be cut.
    """
    mark = next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), b"")
    decoder = codecs.getincrementaldecoder(_BYTE_ORDER_MARKS.get(mark, "utf-8"))()
    try:
        text = decoder.decode(head.removeprefix(mark))
    except UnicodeDecodeError:
        return None
    return text if text and all(letter.isprintable() or letter.isspace() for letter in text) else None


def _is_onnx(head: bytes) -> bool:
    """Whether it begins as ONNX's message does: the version of the format, then the name of a program or a graph.

    Source: onnx.proto, fields 1 (`ir_version`), 2 (`producer_name`) and 7 (`graph`).
    """
    if len(head) < 6 or head[0] != 0x08 or not 0 < head[1] <= _MAX_IR_VERSION:
        return False
    if head[2] == 0x12:
        name = head[4 : 4 + head[3]]
        return len(name) == head[3] and (not name or (name.isascii() and name.decode().isprintable()))
    return head[2] == 0x3A
