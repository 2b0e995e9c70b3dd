"""Checksums of the zip archives that PyTorch writes: of each member, and of a whole file of ours.

Zip has a CRC-32 of each member's bytes. It has none of what lies between them (headers, padding, the table of
contents), where PyTorch's reader looks for the bytes of a member: a flipped bit there can make it read other bytes.
`ArchiveWriter` therefore writes a CRC-32 of the whole file into the archive's comment, which every reader of zip files
passes over. A CRC-32 detects each change of up to 32 adjacent bits, and others but for one in 2^32.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from resim.errors import UserError

ZIP = b"PK\x03\x04"
"""The first bytes of a zip archive."""

_CHUNK = 1 << 22
_MAX_UNPACKED = 1 << 28  # bytes; only the code of TorchScript is compressed
_END = b"PK\x05\x06"  # the last record of an archive: 22 bytes, of which the last two are the length of the comment
_END_SIZE = 22
_COMMENT = re.compile(rb"resim:crc32:([0-9a-f]{8})\Z")
_COMMENT_SIZE = 20


class DamagedError(UserError):
    """A file whose bytes are not those that were written, or not all of them."""


class ArchiveWriter:
    """Passes what `torch.save` writes on to a file, and computes its CRC-32.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._crc, self._tail = file, 0, b""

    def write(self, data: bytes | memoryview) -> int:
        """Write some bytes after the others."""
        self._crc = zlib.crc32(data, self._crc)
        self._tail = (self._tail + bytes(data[-_END_SIZE:]))[-_END_SIZE:]
        return self._file.write(data)

    def flush(self) -> None:
        """Flush the file, as `torch.save` does at the end."""
        self._file.flush()

    def write_checksum(self) -> None:
        """Write the CRC-32 of the whole archive into its comment, after everything else."""
        if not (self._tail.startswith(_END) and self._tail.endswith(b"\0\0")):
            raise ValueError("torch.save wrote no zip archive, or one with a comment")
        self._file.seek(-2, 2)
        self._file.write(struct.pack("<H", _COMMENT_SIZE) + b"resim:crc32:%08x" % self._crc)


def check_archive(file: BinaryIO, path: Path) -> bool:
    """Compare a zip archive with the checksums in it, and rewind the file.

    A file with a CRC-32 of the whole is compared with that, another one member by member. A file without checksums
    passes (`torch.serialization.set_crc32_options(False)` writes zeros), and so does a file that is no zip archive: one
    of torch.save before 1.6, or a truncated one, which no loader reads.

    Args:
        file: the open file, or its bytes.
        path: its name, for the message.

    Returns:
        Whether the file has a CRC-32 of the whole, which matches: all bytes are those that were written.

    Raises:
        DamagedError: the bytes do not match a checksum.
        UserError: a compressed archive.
    """
    file.seek(0)
    if file.read(4) != ZIP:
        file.seek(0)
        return False
    size = file.seek(0, 2)
    expected = _stored_checksum(file, size)
    if expected is not None:
        is_same = _checksum(file, size) == expected
        file.seek(0)
        if not is_same:
            raise DamagedError(
                f"{path}: damaged: its {size} bytes do not match the checksum at its end; copy or download the file "
                "again"
            )
        return True
    if _is_cut_off(file, size):
        file.seek(0)
        raise DamagedError(f"{path}: damaged, or no checkpoint ({size} bytes; its end is missing)")
    name = ""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.compress_size for entry in entries) > size:
                raise DamagedError(f"{path}: damaged: its members claim more than its {size} bytes")
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if sum(entry.file_size for entry in packed) > _MAX_UNPACKED:
                raise UserError(f"{path}: {packed[0].filename} in it is compressed, as torch.save does not do")
            for entry in entries if has_checksums(entries) else ():
                name = entry.filename
                with archive.open(entry) as member:
                    while member.read(_CHUNK):
                        pass
    except UserError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        if not name:
            return False
        raise DamagedError(
            f"{path}: damaged: {name} in it does not match its checksum ({error}); copy or download the file again"
        ) from None
    finally:
        file.seek(0)
    return False


def has_checksums(entries: list[zipfile.ZipInfo]) -> bool:
    """Whether the archive contains CRC-32s: PyTorch can be set to write zeros."""
    return any(entry.CRC for entry in entries)


def _stored_checksum(file: BinaryIO, size: int) -> int | None:
    """The CRC-32 in the comment of an archive; None: it has no such comment."""
    if size < _END_SIZE + _COMMENT_SIZE:
        return None
    file.seek(size - _COMMENT_SIZE)
    match = _COMMENT.match(file.read(_COMMENT_SIZE))
    return int(match[1], 16) if match else None


def _is_cut_off(file: BinaryIO, size: int) -> bool:
    """Whether the end of an archive with our comment, or with none, is missing."""
    file.seek(max(0, size - _END_SIZE - _COMMENT_SIZE))
    tail = file.read()
    place = tail.rfind(_END)
    if place < 0:
        return False
    length = tail[place + _END_SIZE - 2 : place + _END_SIZE]
    return len(length) < 2 or len(tail) < place + _END_SIZE + struct.unpack("<H", length)[0]


def _checksum(file: BinaryIO, size: int) -> int | None:
    """The CRC-32 of an archive as it was before it got its comment; None: the comment's length is not its length."""
    file.seek(0)
    crc, left = 0, size - _COMMENT_SIZE - 2
    while left:
        data = file.read(min(_CHUNK, left))
        crc, left = zlib.crc32(data, crc), left - len(data)
    return zlib.crc32(b"\0\0", crc) if file.read(2) == struct.pack("<H", _COMMENT_SIZE) else None
