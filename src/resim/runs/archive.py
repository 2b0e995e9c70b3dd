"""Checksums of the zip archives that PyTorch writes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from resim.errors import UserError

ZIP = b"PK\x03\x04"
"""The first bytes of a zip archive."""

_CHUNK = 1 << 22
_MAX_UNPACKED = 1 << 28  # bytes; only the code of TorchScript is compressed


def check_archive(file: BinaryIO, path: Path) -> None:
    """Compare each member of a zip archive with its CRC-32, and rewind the file.

    A file without checksums passes (`torch.serialization.set_crc32_options(False)` writes zeros), and so does a file
    that is no zip archive: one of torch.save before 1.6, or a truncated one, which no loader reads.

    Args:
        file: the open file, or its bytes.
        path: its name, for the message.

    Raises:
        UserError: a member whose bytes do not match its checksum.
    """
    file.seek(0)
    if file.read(4) != ZIP:
        file.seek(0)
        return
    size = file.seek(0, 2)
    name = ""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.compress_size for entry in entries) > size:
                raise UserError(f"{path}: damaged: its members claim more than its {size} bytes")
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
            return
        raise UserError(
            f"{path}: damaged: {name} in it does not match its checksum ({error}); copy or download the file again"
        ) from None
    finally:
        file.seek(0)


def has_checksums(entries: list[zipfile.ZipInfo]) -> bool:
    """Whether the archive contains CRC-32s: PyTorch can be set to write zeros."""
    return any(entry.CRC for entry in entries)
