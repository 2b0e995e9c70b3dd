"""Images on disk: any folders, files, shards and lists of paths, found once and in an order all processes agree on."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from resim.errors import UserError
from resim.views.shards import is_shard, list_shard, member_path, split_member_path
from resim.views.text import decode_text
from resim.views.walk import PassedOver, ending_of, walk_files

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})


class PathList(Sequence[str]):
    """Paths in one block of bytes: a million of them cost what their letters cost, also in every loader process."""

    def __init__(self, paths: Sequence[str], shards: Sequence[int] = (), passed: PassedOver | None = None) -> None:
        self.shards = tuple(shards)
        """Where all the images lie in shards: how many in each, one shard after the other."""
        self.passed = passed or PassedOver()
        """Files of the folders that are not among the images, by reason."""
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def note(self) -> str:
        """A line of what is passed over and why, with the number of images; empty where nothing is."""
        return f"{len(self):,} image{'s' if len(self) != 1 else ''}; {self.passed}" if self.passed else ""

    def fingerprint(self) -> str:
        """A hash of the files' names in their order, without their folders: a data set that moved keeps it."""
        digest = hashlib.sha256()
        for path in self:
            digest.update(os.fsencode(path.rpartition(os.sep)[2]) + b"\0")
        return digest.hexdigest()[:16]


def find_images(sources: str | Path | Sequence[str | Path]) -> PathList:
    """Every image file below the given folders, in files given by name, and in text files of paths.

    Folders are read to any depth and symbolic links are followed, a loop of links only once. Names that start with a
    dot, links to nothing and files with other endings are passed over and counted (`PathList.passed`). A text file
    (`.txt`) holds one path a line, relative to itself; blank lines and lines that start with # are passed over. A file
    found twice counts once. Of a folder without images the tar files (`.tar`) are taken, as `resim pack` writes them,
    and of these the images in them; tar files of a folder with images are passed over. No image is opened here.

    Raises:
        UserError: a source that does not exist or cannot be read, a listed file that is not there, a tar file that
            cannot be read or is not to be trusted, or no image at all.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise UserError("no images: name at least one folder, image or text file of paths")
    found: dict[str, str] = {}  # the file, whatever links lead to it: its path as it was found
    real: dict[str, str] = {}
    shards: dict[str, int] = {}
    passed = PassedOver()
    for source in sources:
        path = os.path.expanduser(os.fspath(source))  # noqa: PTH111 - strings throughout: a million Path objects are slow
        try:
            if os.path.isdir(path):  # noqa: PTH112
                here = PassedOver()
                files = sorted(walk_files(path, _is_read, here))
                images = [file for file in files if not is_shard(file[0])]
                if images:
                    here.repeats += _add(found, images, real)
                    here.tars = len(files) - len(images)
                for tar, _ in files if not images else ():
                    _add_shard(found, shards, tar)
                passed.add(here)
            elif not os.path.exists(path):  # noqa: PTH110
                raise UserError(f"{source}: there is no such folder or file")
            elif path.lower().endswith(".txt"):
                _add(found, _listed(path), real)
            elif is_shard(path):
                _add_shard(found, shards, path)
            elif _is_image(path):
                _add(found, [(path, os.path.islink(path))], real)  # noqa: PTH114
            else:
                raise UserError(f"{source}: neither a folder, nor an image, nor a .tar file, nor a .txt file of paths")
        except OSError as error:
            raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from None
    if not found:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise UserError(
            f"no images found in {', '.join(map(str, sources))}: files ending in {kinds} are read"
            + (f"; {passed}" if passed else "")
        )
    in_shards = sum(shards.values()) == len(found)
    return PathList(list(found.values()), list(shards.values()) if in_shards else (), passed)


def has_pictures(folder: str) -> bool:
    """Whether a picture lies below a folder, not counting those in tar files."""
    return next(walk_files(folder, _is_image, PassedOver()), None) is not None


def _is_image(name: str) -> bool:
    return ending_of(name) in EXTENSIONS


def _is_read(name: str) -> bool:
    return _is_image(name) or is_shard(name)


def _add(found: dict[str, str], files: Iterable[tuple[str, bool]], real: dict[str, str]) -> int:
    """Add files not found before, and count the others.

    `real` remembers where folders really are: to resolve every file would be slow.
    """
    repeats = 0
    for path, is_link in files:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        file = os.path.join(real[folder], name)  # noqa: PTH118
        key = os.path.realpath(file) if is_link else file
        repeats += key in found
        found.setdefault(key, path)
    return repeats


def _add_shard(found: dict[str, str], shards: dict[str, int], tar: str) -> None:
    file = os.path.realpath(tar)
    if file not in shards:
        members = [member_path(tar, member) for member in list_shard(tar, _is_image)]
        shards[file] = len(members)
        found.update((member, member) for member in members)


def _listed(path: str) -> Iterator[tuple[str, bool]]:
    folder = os.path.dirname(path)  # noqa: PTH120
    text = decode_text(Path(path).read_bytes())
    lines = re.split(r"\r\n|\r|\n", text)  # not splitlines, which splits at letters that a name may have
    for number, name in enumerate(lines, start=1):
        if not name.strip() or name.startswith("#"):
            continue
        written = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118
        forms = (unicodedata.normalize(form, written) for form in ("NFC", "NFD"))  # one name, in two forms of Unicode
        image = next((form for form in (written, *forms) if _is_there(form)), None)
        if image is None:
            raise UserError(f"{path}, line {number}: {name}: there is no such file{_nearest(written)}")
        yield image, os.path.islink(image)  # noqa: PTH114


def _is_there(image: str) -> bool:
    in_tar = split_member_path(image)
    return os.path.isfile(image if in_tar is None else in_tar[0])  # noqa: PTH113


def _nearest(image: str) -> str:
    """The image in a path's folder whose name is most like the path's, for a message; empty where none is."""
    folder, name = os.path.split(image)
    name = name.rpartition("\\")[2]  # a path of Windows
    try:
        there = {entry.lower(): entry for entry in sorted(os.listdir(folder)) if _is_image(entry)}  # noqa: PTH208
    except OSError:
        return ""
    near = difflib.get_close_matches(name.lower(), there, n=1, cutoff=0.75)
    return f'; the nearest in its folder is "{there[near[0]]}"' if near else ""
