"""The archives that PyTorch writes, and the checksums in them: is every byte what was written?"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from resim.errors import UserError

ZIP = b"PK\x03\x04"
"""What such a file begins with."""

_CHUNK = 1 << 22
_MOST_UNPACKED = 1 << 28  # bytes of TorchScript's code, which alone is compressed


def check_archive(file: BinaryIO, path: Path) -> None:
    """Compare each member of a zip archive with its CRC-32, and leave the file at its beginning.

    A file without checksums (`torch.serialization.set_crc32_options(False)` writes zeros) passes, and so does what is
    no zip archive: a file of torch.save before 1.6, or a truncated one, which no loader takes.

    Args:
        file: the open file, or its bytes.
        path: its name, for the message.

    Raises:
        UserError: the member whose bytes are not those that were written.
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
            if sum(entry.file_size for entry in packed) > _MOST_UNPACKED:
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
            f"{path}: damaged: {name} in it is not what was written ({error}); copy or download the file again"
        ) from None
    finally:
        file.seek(0)


def has_checksums(entries: list[zipfile.ZipInfo]) -> bool:
    """Whether the archive keeps CRC-32s: PyTorch can be set to write zeros."""
    return any(entry.CRC for entry in entries)
