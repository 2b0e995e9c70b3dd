"""The files that a data set names, also where a name is not quite that of the file.

Labelling tools write names of another machine, another system or another alphabet. A name that is no file as it stands
is compared without its folders, in one spelling, and without its ending. It is taken where exactly one file fits, which
no other name means. No path outside the given folders is ever taken.
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

from resim.views.folder import EXTENSIONS
from resim.views.walk import UNREAD_FORMATS, PassedOver, ending_of, walk_files

_SPLIT = re.compile(r"(train|val|valid|test|dev|eval)(ing|idation|uation)?[-_ ]?\d*", re.IGNORECASE)
# of a picture's stem there are others in these, which are never taken for it
_NO_PHOTOGRAPHS = {"annotations", "depth", "gt", "gtfine", "label", "labels", "mask", "masks", "thumbnails", "thumbs"}
_NO_PHOTOGRAPHS |= {"segmentationclass", "segmentationobject"}
PICTURES = EXTENSIONS | UNREAD_FORMATS
_HASHED = re.compile(r"[0-9a-f]{8}-(.+)")  # how Label Studio names what is uploaded to it
_NAMED_NEAREST = 3  # missing files for which the nearest name is looked up, as many as are shown


@dataclass(frozen=True)
class Located:
    """Where the file of a name lies.

    Attributes:
        path: of the file; None: there is none, or several.
        note: where the file is not called what the data set says: both, for a person; else empty.
        fault: why there is no path.
    """

    path: str | None
    note: str = ""
    fault: str = ""


def locate_files(names: Iterable[str], folders: Sequence[str | Path]) -> dict[str, Located]:
    """The file of each name: the path below a folder that it says, else one file anywhere below that fits.

    Names with folders must agree in these as far as they are there, and never in conflict: train/1.jpg is not
    val/1.jpg. The folders are walked once, and only if some name is no path. A file goes to one name alone.

    Args:
        names: as the data set says them.
        folders: where they are looked for, in this order. What links in them lead to counts as lying in them.
    """
    roots = [os.fspath(folder) for folder in folders]
    located: dict[str, Located] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        path = _direct(name, roots)
        if path is None:
            missing.append(name)
        else:
            located[name] = Located(path)
    if not missing:
        return located
    index = FileIndex(roots)
    taken = {_identity(one.path) for one in located.values() if one.path is not None}
    fits = {name: index.fits(name, taken) for name in missing}
    claims: dict[str, list[str]] = defaultdict(list)
    for name, (found, _) in fits.items():
        if len(found) == 1:
            claims[found[0]].append(name)
    nearest = 0
    for name, (found, is_plain) in fits.items():
        if len(found) == 1 and (len(claims[found[0]]) == 1 or is_plain):
            note = "" if is_plain else f"{_quoted(name)} is {index.shown(found[0])}"
            located[name] = Located(found[0], note)
        elif len(found) == 1:
            other = next(other for other in claims[found[0]] if other != name)
            fault = f"{_quoted(name)}: {index.shown(found[0])} would fit {_quoted(other)} too"
            located[name] = Located(None, fault=fault)
        elif found:
            what = "files of this name" if is_plain else "files would fit"
            located[name] = Located(None, fault=f"{_quoted(name)}: {len(found)} {what}, {found[0]} and {found[1]}")
        else:
            near = index.nearest(name, taken) if nearest < _NAMED_NEAREST else None
            nearest += 1
            located[name] = Located(None, fault=_quoted(name) + (f", the nearest is {_quoted(near)}" if near else ""))
    return located


class FileIndex:
    """The files below some folders, by name, by spelling and by stem; without names that start with a dot."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.roots = _outermost([os.fspath(folder) for folder in folders])
        self._folders: dict[str, tuple[str, ...]] = {}  # of a file, from its root down
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for root in self.roots:
            above = os.path.basename(os.path.abspath(root))  # noqa: PTH100, PTH119 - strings: Path objects are slow
            for path, _ in sorted(walk_files(root, lambda name: True, PassedOver(), skip_unreadable=True)):
                *parents, name = Path(path).relative_to(root).parts
                self._folders[path] = (above, *parents)
                self._by_name[name].append(path)
        self._by_spelling: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name, paths in self._by_name.items():
            for text in {name, unquote(name)}:
                self._by_spelling[spelling(text)] += paths
                if ending_of(text) in EXTENSIONS:
                    self._by_stem[spelling(_stem(text))] += paths

    def fits(self, name: str, taken: Container[str] = ()) -> tuple[list[str], bool]:
        """The files that a name may mean: one, several between which it does not decide, or none.

        Args:
            name: as the data set says it.
            taken: identities of files that other names mean; only a name as it stands gets one of these.

        Returns:
            The files; and whether the name as it stands is the end of their path.
        """
        plain = os.path.normpath(name)
        tail = os.sep + plain
        ends = [path for path in self._by_name.get(plain.rpartition(os.sep)[2], ()) if path.endswith(tail)]
        if ends:
            return ends, True
        readings = _readings(name)
        for look_up in (
            lambda last: self._by_name.get(last, ()),
            lambda last: self._by_spelling.get(spelling(last), ()),
            lambda last: self._by_stem.get(spelling(_stem(last) if ending_of(last) in PICTURES else last), ()),
            lambda last: self._by_stem.get(spelling(last), ()),
        ):
            for parts in readings:
                free = [path for path in dict.fromkeys(look_up(parts[-1])) if _identity(path) not in taken]
                best = self._agreeing(parts[:-1], free)
                if best:
                    return best, False
        return [], False

    def shown(self, path: str) -> str:
        """A file's path below its root, in quotes."""
        root = next((root for root in self.roots if path.startswith(os.path.join(root, ""))), "")  # noqa: PTH118
        return _quoted(os.path.relpath(path, root) if root else path)

    def nearest(self, name: str, taken: Container[str] = ()) -> str | None:
        """The path below its root of the file not taken whose name is most like a name; None if none is."""
        last = spelling(_readings(name)[-1][-1])
        forwards, backwards = self._sorted
        at, back = bisect.bisect(forwards, (last, "")), bisect.bisect(backwards, (last[::-1], ""))
        around = forwards[max(0, at - 50) : at + 50] + backwards[max(0, back - 50) : back + 50]
        free = {
            spelling(known): path
            for _, known in around
            for path in self._by_name[known]
            if _identity(path) not in taken
        }
        near = difflib.get_close_matches(last, free, n=1, cutoff=0.6)
        return os.path.join(*self._folders[free[near[0]]][1:], Path(free[near[0]]).name) if near else None  # noqa: PTH118

    @functools.cached_property
    def _sorted(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Every name after its spelling, and after its spelling from the end: like ones are neighbours."""
        spelled = [(spelling(name), name) for name in self._by_name]
        return sorted(spelled), sorted((text[::-1], name) for text, name in spelled)

    def _agreeing(self, folders: Sequence[str], paths: Sequence[str]) -> list[str]:
        """Of some files those in whose folders most of a name's last folders are, and none that contradicts them."""
        wanted = [spelling(folder) for folder in folders]
        best: list[str] = []
        most = 0
        for path in paths:
            has = [spelling(folder) for folder in self._folders[path]]
            said, there = ({part for part in parts if _SPLIT.fullmatch(part)} for parts in (wanted, has))
            if (said and there and not said & there) or (_NO_PHOTOGRAPHS & {*has[1:]}) - {*wanted}:
                continue
            same = 0
            while same < min(len(wanted), len(has)) and wanted[-1 - same] == has[-1 - same]:
                same += 1
            if not best or same > most:
                best, most = [path], same
            elif same == most:
                best.append(path)
        return best


def spelling(name: str) -> str:
    """A name in the one form in which names are compared: composed letters, small, no spaces around it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _identity(path: str) -> str:
    """A file whatever links its folder is reached by; to resolve every file would be slow."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)  # noqa: PTH118


def _direct(name: str, roots: Sequence[str]) -> str | None:
    """The path that a name says, where it is a file inside a root."""
    for root in roots:
        path = os.path.join(root, name)  # noqa: PTH118
        if not os.path.isfile(path):  # noqa: PTH113
            continue
        is_plain = not os.path.isabs(name) and ".." not in name  # noqa: PTH117
        inside = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118
        if is_plain or os.path.abspath(path).startswith(inside):  # noqa: PTH100
            return path
    return None


def _readings(name: str) -> list[list[str]]:
    """The folders and the file that a name may mean: as it stands, and without an address, codes and a hash."""
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
    """The folders that lie in no other of them, each once."""
    real = {folder: os.path.join(os.path.realpath(folder), "") for folder in folders}  # noqa: PTH118
    kept: dict[str, str] = {}
    for folder, path in real.items():
        if path not in kept and not any(path != other and path.startswith(other) for other in real.values()):
            kept[path] = folder
    return list(kept.values())


def _quoted(name: str) -> str:
    return '"' + name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") + '"'
