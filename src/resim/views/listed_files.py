"""Text files of paths, one a line, read line by line: a list may have millions."""

from __future__ import annotations

import difflib
import io
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterator

from resim.errors import UserError
from resim.reading import open_file, special_kind
from resim.views.shards import split_member_path
from resim.views.text import HEAD, encoding_of
from resim.views.walk import PassedOver

_LONGEST_LINE = 2**20  # letters


def listed_files(path: str, is_image: Callable[[str], bool], passed: PassedOver) -> Iterator[tuple[str, bool]]:
    """Yield the files that a text file lists, relative to its folder, and whether each is a link.

    Blank lines and lines that start with # are skipped. A line that is no path as it stands may have spaces or quotes
    around it, or backslashes between the folders.

    Args:
        path: of the text file.
        is_image: whether a file of this name may be suggested in place of a missing one.
        passed: counts pipes, sockets and devices.

    Raises:
        UserError: a file does not exist, or a line is too long to be a path.
        OSError: the text file cannot be read.
    """
    folder = os.path.dirname(path)  # noqa: PTH120
    for number, name in enumerate(_lines(path), start=1):
        if not name.strip() or name.startswith("#"):
            continue
        written = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118
        image = next((form for form in _forms(folder, name) if _is_there(form)), None)
        if image is None and special_kind(written):
            passed.special += 1
            continue
        if image is None:
            is_folder = os.path.isdir(written)  # noqa: PTH112
            hint = "; it is a folder: name it instead of the list" if is_folder else _nearest(written, is_image)
            raise UserError(f"{path}, line {number}: {name}: there is no such file{hint}")
        yield image, os.path.islink(image)  # noqa: PTH114


def _lines(path: str) -> Iterator[str]:
    """The lines without their ends: \\n, \\r or both, and no other letter at which `str.splitlines` splits."""
    with open_file(path) as file:
        encoding = encoding_of(file.read(HEAD))
        file.seek(0)
        # bytes that are not UTF-8 become surrogates, as in Python's file names
        errors = "surrogateescape" if encoding == "utf-8" else "replace"
        text = io.TextIOWrapper(file, encoding, errors, newline=None)
        for number in itertools.count(1):
            line = text.readline(_LONGEST_LINE)
            if len(line) == _LONGEST_LINE:
                raise UserError(
                    f"{path}, line {number}: is longer than a path can be: name a text file with one path a line"
                )
            if not line:
                return
            yield line.removesuffix("\n")


def _forms(folder: str, name: str) -> Iterator[str]:
    """The paths that a line may mean: as it stands, without spaces and quotes around it, with Windows' backslashes."""
    bare = name.strip()
    bare = bare[1:-1].strip() if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'" else bare
    for text in dict.fromkeys((name, bare, bare.replace("\\", "/"))):
        written = os.path.join(folder, os.path.expanduser(text))  # noqa: PTH111, PTH118
        yield written
        for form in ("NFC", "NFD"):  # a name has two forms in Unicode
            yield unicodedata.normalize(form, written)


def _is_there(image: str) -> bool:
    in_tar = split_member_path(image)
    return os.path.isfile(image if in_tar is None else in_tar[0])  # noqa: PTH113


def _nearest(image: str, is_image: Callable[[str], bool]) -> str:
    """For a message: the image with the most similar name in the folder of a path; empty if none is similar."""
    folder, name = os.path.split(image)
    name = name.rpartition("\\")[2]  # of a Windows path
    try:
        names = {entry.lower(): entry for entry in sorted(os.listdir(folder)) if is_image(entry)}  # noqa: PTH208
    except OSError:
        return ""
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
    return f'; the nearest in its folder is "{names[near[0]]}"' if near else ""
