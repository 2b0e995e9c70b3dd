"""Walk the files below a folder, and count those that are passed over, by reason."""

from __future__ import annotations

import heapq
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

# endings of images and videos that are not read
UNREAD_FORMATS = frozenset(
    [
        *(".3fr", ".arw", ".avi", ".avif", ".bil", ".bip", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".emf", ".eps"),
        *(".exr", ".gif", ".hdr", ".heic", ".heif", ".icns", ".ico", ".j2c", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl"),
        *(".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".nef", ".nrw", ".orf", ".pam", ".pbm", ".pcx", ".pef", ".pfm"),
        *(".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".raf", ".rw2", ".sgi", ".sr2", ".srw", ".svg", ".tga"),
        *(".webm", ".wmv", ".x3f"),
    ]
)
_MOST_ENDINGS = 6  # that a message lists

# Suffixes that mark folders and links among sorted names; no name contains them. "/" is what follows a folder in the
# paths of its files, and "\0" sorts before every letter, so that the order is that of the paths.
_FOLDER, _LINK = "/", "\0"
_MANY = 100_000  # names that are sorted as strings; more are sorted in runs
_KEYS = re.compile(rb"([^/]+/?)//")


@dataclass
class PassedOver:
    """Files that a walk through folders passes over, counted by reason."""

    endings: Counter[str] = field(default_factory=Counter)
    """Number of files by their ending in lower case; "" counts those without one."""
    tars: int = 0
    """Tar files in a folder with image files."""
    hidden: int = 0
    """Folders, and files with an image's ending, whose name starts with a dot."""
    dead_links: int = 0
    """Links to nothing or to themselves."""
    loops: int = 0
    """Links to a folder that contains them."""
    special: int = 0
    """Pipes, sockets and devices."""
    repeats: int = 0
    """Further paths to a file that is already counted."""

    def __bool__(self) -> bool:
        return bool(self.reasons())

    def add(self, other: PassedOver) -> None:
        """Add the counts of another walk."""
        self.endings.update(other.endings)
        for name in ("tars", "hidden", "dead_links", "loops", "special", "repeats"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def reasons(self) -> list[str]:
        """The reasons with their counts, as text."""
        pictures = {ending: count for ending, count in self.endings.items() if ending in UNREAD_FORMATS}
        others = {ending: count for ending, count in self.endings.items() if ending not in UNREAD_FORMATS}
        reasons = []
        for counts, one, many in (
            (pictures, "an image format that is not read", "image formats that are not read"),
            (others, "no image by its ending", "no images by their endings"),
        ):
            if counts:
                total = sum(counts.values())
                reasons.append(f"{_listed(counts)} ({one if total == 1 else many})")
        reasons += [f"{self.tars:,} .tar in a folder with image files (name them to read them)"] if self.tars else []
        for count, one, many in (
            (self.hidden, "name that starts with a dot", "names that start with a dot"),
            (self.dead_links, "link to nothing or to itself", "links to nothing or to themselves"),
            (self.loops, "link to a folder above it", "links to a folder above them"),
            (self.special, "pipe, socket or device", "pipes, sockets or devices"),
            (self.repeats, "further path to the same file", "further paths to the same files"),
        ):
            reasons += [f"{count:,} {one if count == 1 else many}"] if count else []
        return reasons

    def __str__(self) -> str:
        return f"passed over: {', '.join(self.reasons())}"


def _listed(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {ending or 'without an ending'}" for ending, count in ranked[:_MOST_ENDINGS]]
    rest = sum(count for _, count in ranked[_MOST_ENDINGS:])
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))


def ending_of(name: str) -> str:
    """The ending of a file name with its dot, in lower case; "" if there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - strings: a million Path objects are slow


def walk_files(
    folder: str, is_wanted: Callable[[str], bool], passed: PassedOver, *, skip_unreadable: bool = False
) -> Iterator[tuple[str, bool]]:
    """Yield the files below `folder`, at any depth, whose name is wanted, and whether each is a link.

    The order is that of the sorted paths. In memory are the names of one folder, and of those above it the names that
    are still to be visited. Links are resolved; a link to a folder that contains it is not entered.

    Args:
        folder: the folder to start from.
        is_wanted: whether to yield a file of this name.
        passed: counts all other files.
        skip_unreadable: whether to pass over subfolders that cannot be read.

    Raises:
        OSError: a folder cannot be read.
    """
    identity = _identity(folder)
    above = {identity}
    levels = [(identity, folder, iter(_sorted_keys(folder, is_wanted, passed)))]
    while levels:
        identity, folder, keys = levels[-1]
        key = next(keys, None)
        if key is None:
            above.remove(identity)
            levels.pop()
            continue
        path = os.path.join(folder, key.rstrip(_FOLDER + _LINK))  # noqa: PTH118
        if not key.endswith(_FOLDER):
            yield path, key.endswith(_LINK)
            continue
        identity = _identity(path)
        if identity in above:
            passed.loops += 1
            continue
        try:
            below = _sorted_keys(path, is_wanted, passed)
        except PermissionError:
            if skip_unreadable:
                continue
            raise
        above.add(identity)
        levels.append((identity, path, iter(below)))


def _sorted_keys(folder: str, is_wanted: Callable[[str], bool], passed: PassedOver) -> Iterable[str]:
    """The subfolders and the wanted files of a folder, by name with a suffix, sorted; all others are counted.

    A string takes some 70 bytes. Of many names, runs are sorted, joined to bytes and merged while they are read.
    """
    runs: list[bytes] = []
    with _scan(folder) as entries:
        keys = _keys(entries, is_wanted, passed)
        while run := sorted(itertools.islice(keys, _MANY)):
            if len(run) < _MANY and not runs:
                return run
            runs.append(os.fsencode("".join(f"{key}//" for key in run)))
    return heapq.merge(*map(_split_run, runs))


def _split_run(run: bytes) -> Iterator[str]:
    return (os.fsdecode(match[1]) for match in _KEYS.finditer(run))


def _keys(entries: Iterable[os.DirEntry[str]], is_wanted: Callable[[str], bool], passed: PassedOver) -> Iterator[str]:
    for entry in entries:
        if entry.name.startswith("."):
            passed.hidden += is_wanted(entry.name) or _is_folder(entry)
        elif _is_folder(entry):
            yield entry.name + _FOLDER
        elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            passed.dead_links += 1
        elif not entry.is_file():
            passed.special += 1
        elif is_wanted(entry.name):
            yield entry.name + _LINK * entry.is_symlink()
        else:
            passed.endings[ending_of(entry.name)] += 1


def _scan(folder: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    return os.scandir(folder)


def _identity(folder: str) -> tuple[int, int]:
    """Device and inode."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        if entry.is_symlink():
            return False
        raise
