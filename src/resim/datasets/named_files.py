"""Locate the files that a data set names, even if a name differs from that of the file.

Labelling tools write the paths of another machine, system or encoding. A name that is not the path of a file is
compared without its folders, in normalised spelling, and without its extension. It is matched if exactly one file fits
and no other name means that file. No file outside the folders of the data set is ever matched.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from resim.reading import special_kind
from resim.views.folder import EXTENSIONS
from resim.views.walk import UNREAD_FORMATS, PassedOver, ending_of, walk_files

_SPLIT = re.compile(r"(train|val|valid|test|dev|eval)(ing|idation|uation)?[-_ ]?\d*", re.IGNORECASE)
# folders of label maps and thumbnails, whose files have the stems of the images but are not the images
_NOT_IMAGES = {"annotations", "depth", "gt", "gtfine", "label", "labels", "mask", "masks", "thumbnails", "thumbs"}
_NOT_IMAGES |= {"segmentationclass", "segmentationobject"}
IMAGE_ENDINGS = EXTENSIONS | UNREAD_FORMATS
_HASHED = re.compile(r"[0-9a-f]{8}-(.+)")  # the name of an upload to Label Studio
_MAX_SUGGESTIONS = 3  # missing files for which the most similar name is searched: as many as messages show


@dataclass(frozen=True)
class LocatedFile:
    """The file that a name means.

    Attributes:
        path: of the file; None if no file fits, or several do.
        note: the name and that of the file, for messages, if they differ; otherwise empty.
        fault: why there is no path.
    """

    path: str | None
    note: str = ""
    fault: str = ""


def locate_files(names: Iterable[str], folders: Sequence[str | Path]) -> dict[str, LocatedFile]:
    """The file of each name: that at its path below a folder, or else the only file below the folders that fits.

    The folders in a name must agree with those of the file as far as they exist: train/1.jpg is not val/1.jpg. The
    folders are walked once, and only if some name is not a path. A file is matched to one name only.

    Args:
        names: as in the data set.
        folders: in which files are searched, in this order. Links in them are followed.
    """
    roots = [os.fspath(folder) for folder in folders]
    located: dict[str, LocatedFile] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        path = _path_below(name, roots)
        if path is None:
            missing.append(name)
        else:
            located[name] = LocatedFile(path)
    special = {name: kind for name in missing if (kind := _special_kind(name, roots))}
    for name, kind in special.items():
        located[name] = LocatedFile(None, fault=f"{_quoted(name)} is {kind}, not a file")
    missing = [name for name in missing if name not in special]
    if not missing:
        return located
    index = FileIndex(roots)
    taken = {_identity(file.path) for file in located.values() if file.path is not None}
    matches = {name: index.match(name, taken) for name in missing}
    claims: dict[str, list[str]] = defaultdict(list)
    for name, (paths, _) in matches.items():
        if len(paths) == 1:
            claims[paths[0]].append(name)
    num_suggestions = 0
    for name, (paths, is_exact) in matches.items():
        if len(paths) == 1 and (len(claims[paths[0]]) == 1 or is_exact):
            note = "" if is_exact else f"{_quoted(name)} is {index.quoted_path(paths[0])}"
            located[name] = LocatedFile(paths[0], note)
        elif len(paths) == 1:
            other = next(other for other in claims[paths[0]] if other != name)
            fault = f"{_quoted(name)}: {index.quoted_path(paths[0])} also fits {_quoted(other)}"
            located[name] = LocatedFile(None, fault=fault)
        elif paths:
            kind = "files have this name" if is_exact else "files fit"
            located[name] = LocatedFile(None, fault=f"{_quoted(name)}: {len(paths)} {kind}, {paths[0]} and {paths[1]}")
        else:
            similar = index.most_similar(name, taken) if num_suggestions < _MAX_SUGGESTIONS else None
            num_suggestions += 1
            suggestion = f"; the most similar name is {_quoted(similar)}" if similar else ""
            located[name] = LocatedFile(None, fault=_quoted(name) + suggestion)
    return located


class FileIndex:
    """The files below some folders, by name, by spelling and by stem; hidden files are excluded."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.roots = _outermost([os.fspath(folder) for folder in folders])
        self._folders: dict[str, tuple[str, ...]] = {}  # of each file, from its root down
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for root in self.roots:
            root_name = os.path.basename(os.path.abspath(root))  # noqa: PTH100, PTH119 - strings: Path objects are slow
            for path, _ in walk_files(root, lambda name: True, PassedOver(), skip_unreadable=True):
                *parents, name = Path(path).relative_to(root).parts
                self._folders[path] = (root_name, *parents)
                self._by_name[name].append(path)
        self._by_spelling: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name, paths in self._by_name.items():
            for text in {name, unquote(name)}:
                self._by_spelling[spelling(text)] += paths
                if ending_of(text) in EXTENSIONS:
                    self._by_stem[spelling(_stem(text))] += paths

    def match(self, name: str, taken: Container[str] = ()) -> tuple[list[str], bool]:
        """The files that a name may mean: one, none, or several if it is ambiguous.

        Args:
            name: as in the data set.
            taken: identities of the files of other names, which only an exact match may return.

        Returns:
            The paths; and whether they match exactly, that is, end in the name.
        """
        normal = os.path.normpath(name)
        tail = os.sep + normal
        exact = [path for path in self._by_name.get(normal.rpartition(os.sep)[2], ()) if path.endswith(tail)]
        if exact:
            return exact, True
        readings = _readings(name)
        for search in (  # from the strictest comparison to the loosest
            lambda last: self._by_name.get(last, ()),
            lambda last: self._by_spelling.get(spelling(last), ()),
            lambda last: self._by_stem.get(spelling(_stem(last) if ending_of(last) in IMAGE_ENDINGS else last), ()),
            lambda last: self._by_stem.get(spelling(last), ()),
        ):
            for parts in readings:
                free = [path for path in dict.fromkeys(search(parts[-1])) if _identity(path) not in taken]
                matches = self._best_agreeing(parts[:-1], free)
                if matches:
                    return matches, False
        return [], False

    def quoted_path(self, path: str) -> str:
        """The path of a file below its root, in quotes."""
        root = next((root for root in self.roots if path.startswith(os.path.join(root, ""))), "")  # noqa: PTH118
        return _quoted(os.path.relpath(path, root) if root else path)

    def most_similar(self, name: str, taken: Container[str] = ()) -> str | None:
        """The path below its root of the free file with the most similar name; None if none is similar."""
        last = spelling(_readings(name)[-1][-1])
        forwards, backwards = self._sorted
        i, j = bisect.bisect(forwards, (last, "")), bisect.bisect(backwards, (last[::-1], ""))
        neighbours = forwards[max(0, i - 50) : i + 50] + backwards[max(0, j - 50) : j + 50]
        free = {
            spelling(known): path
            for _, known in neighbours
            for path in self._by_name[known]
            if _identity(path) not in taken
        }
        similar = difflib.get_close_matches(last, free, n=1, cutoff=0.6)
        if not similar:
            return None
        path = free[similar[0]]
        return os.path.join(*self._folders[path][1:], Path(path).name)  # noqa: PTH118

    @functools.cached_property
    def _sorted(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(spelling, name) of all names, sorted by the spelling and by its reverse: similar names are neighbours."""
        spelled = [(spelling(name), name) for name in self._by_name]
        return sorted(spelled), sorted((text[::-1], name) for text, name in spelled)

    def _best_agreeing(self, folders: Sequence[str], paths: Sequence[str]) -> list[str]:
        """The files whose last folders agree with most of those of a name; files of another split are excluded."""
        named = [spelling(folder) for folder in folders]
        best: list[str] = []
        most = 0
        for path in paths:
            actual = [spelling(folder) for folder in self._folders[path]]
            splits, actual_splits = ({part for part in parts if _SPLIT.fullmatch(part)} for parts in (named, actual))
            is_other_split = splits and actual_splits and not splits & actual_splits
            if is_other_split or (_NOT_IMAGES & {*actual[1:]}) - {*named}:
                continue
            num_equal = 0
            while num_equal < min(len(named), len(actual)) and named[-1 - num_equal] == actual[-1 - num_equal]:
                num_equal += 1
            if not best or num_equal > most:
                best, most = [path], num_equal
            elif num_equal == most:
                best.append(path)
        return best


def spelling(name: str) -> str:
    """A name in the form in which names are compared: composed characters, case folded, stripped."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _identity(path: str) -> str:
    """The path of a file with the links to its folder resolved; to resolve every file would be slow."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)  # noqa: PTH118


def _path_below(name: str, roots: Sequence[str]) -> str | None:
    """The path of a name, if it is a file inside a root."""
    for root in roots:
        path = os.path.join(root, name)  # noqa: PTH118
        if not os.path.isfile(path):  # noqa: PTH113
            continue
        if not os.path.isabs(name) and ".." not in name:  # noqa: PTH117
            return path
        inside = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118
        if os.path.abspath(path).startswith(inside):  # noqa: PTH100
            return path
    return None


def _special_kind(name: str, roots: Sequence[str]) -> str:
    """What a name leads to if it is a pipe, a socket or a device; empty for all others."""
    kinds = (special_kind(os.path.join(root, name)) for root in roots)  # noqa: PTH118
    return next(filter(None, kinds), "")


def _readings(name: str) -> list[list[str]]:
    """The path components that a name may mean: as it stands, and without a URL, percent codes and a hash."""
    texts = [name]
    address = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*", "", name)
    if "?d=" in address:  # Label Studio's local files
        address = address.partition("?d=")[2].partition("&")[0]
    elif address != name:
        address = re.split(r"[?#]", address)[0]
    texts += [address, unquote(address), unquote(address.replace("+", " "))]
    readings = []
    for text in texts:
        parts = [part.strip() for part in re.split(r"[/\\]", text) if part.strip() not in ("", ".", "..")]
        if parts and re.fullmatch(r"[A-Za-z]:", parts[0]):
            parts = parts[1:]
        if parts and parts not in readings:
            readings.append(parts)
    for parts in list(readings):
        hashed = _HASHED.fullmatch(parts[-1])
        if hashed:
            readings.append([*parts[:-1], hashed[1]])
    return readings or [[name]]


def _outermost(folders: Sequence[str]) -> list[str]:
    """The folders that do not lie in another of them, each once."""
    real = {folder: os.path.join(os.path.realpath(folder), "") for folder in folders}  # noqa: PTH118
    kept: dict[str, str] = {}
    for folder, path in real.items():
        if path not in kept and not any(path != other and path.startswith(other) for other in real.values()):
            kept[path] = folder
    return list(kept.values())


def _quoted(name: str) -> str:
    return '"' + name.encode("utf-8", "surrogatepass").decode("utf-8", "replace") + '"'
