"""Open and read the files that users name: images, archives, labels, settings.

Only regular files are opened. A named pipe, a socket or a device called `a.jpg` is refused at once, because opening or
reading one can block for ever, and opening some devices acts on them.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_NO_MEMORY = "it takes more memory than there is"


class NotRegularError(OSError):
    """A path leads to a pipe, a socket or a device; `strerror` says to which."""


def open_descriptor(path: str | Path) -> int:
    """The descriptor of a regular file, open for reading; it never blocks.

    Raises:
        NotRegularError: the path leads to a pipe, a socket or a device.
        OSError: the file cannot be opened.
    """
    _check_kind(os.stat(path).st_mode, path)  # noqa: PTH116 - before it is opened, which acts on some devices
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        _check_kind(os.fstat(descriptor).st_mode, path)  # it may have been replaced in between
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading bytes.

    Raises:
        NotRegularError: as `open_descriptor`.
        OSError: as `open_descriptor`.
    """
    return os.fdopen(open_descriptor(path), "rb")


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        NotRegularError: as `open_descriptor`.
        OSError: the file cannot be opened or read.
    """
    with open_file(path) as file:
        return file.read()


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: as `read_file`.
        ValueError: as `parse_json`.
    """
    try:
        data = read_file(path)
        encoding = json.detect_encoding(data)  # as json.loads does, which would keep the bytes next to the text
        text = data.decode(encoding, "surrogatepass")
        del data
    except MemoryError:
        raise ValueError(_NO_MEMORY) from None
    return parse_json(text)


def parse_json(data: bytes | str) -> Any:
    """The content of a JSON text, in UTF-8 if it is given as bytes.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or takes more memory than there is; bytes of another encoding
            raise its subclass UnicodeDecodeError.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None
    except MemoryError:
        raise ValueError(_NO_MEMORY) from None


def special_kind(path: str | Path) -> str:
    """What a path leads to if it is a pipe, a socket or a device, such as "a named pipe"; empty for all others."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):  # a ValueError: a zero byte in the name
        return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def _check_kind(mode: int, path: str | Path) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise NotRegularError(errno.EINVAL, f"{kind}, not a file", os.fspath(path))
