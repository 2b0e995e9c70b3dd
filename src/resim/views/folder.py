"""Find images in folders, files, shards and lists of paths, each once, in the same order on all processes."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from resim.errors import UserError
from resim.reading import read_file, special_kind
from resim.views.shards import is_shard, list_shard, member_path, split_member_path
from resim.views.text import decode_text
from resim.views.walk import PassedOver, ending_of, walk_files

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class PathList(Sequence[str]):
    """Paths in one block of bytes, to save memory in every loader process."""

    def __init__(self, paths: Iterable[str], shards: Sequence[int] = (), passed: PassedOver | None = None) -> None:
        self.shards = tuple(shards)
        """Number of images in each shard, in order; empty unless all images are in shards."""
        self.passed = passed or PassedOver()
        """Files in the folders that are not images, counted by reason."""
        joined, ends = bytearray(), array("q")
        for path in paths:
            joined += os.fsencode(path)
            ends.append(len(joined))
        self._bytes = np.frombuffer(bytes(joined), dtype=np.uint8)
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def note(self) -> str:
        """One line with the number of images and of files passed over, by reason; empty if none was passed over."""
        return f"{len(self):,} image{'s' if len(self) != 1 else ''}; {self.passed}" if self.passed else ""

    def fingerprint(self) -> str:
        """A hash of the file names in their order, without folders: it does not change if a data set is moved."""
        digest = hashlib.sha256()
        for path in self:
            digest.update(os.fsencode(path.rpartition(os.sep)[2]) + b"\0")
        return digest.hexdigest()[:16]


def find_images(sources: str | Path | Sequence[str | Path]) -> PathList:
    """Find all images in folders, image files, tar files and text files of paths.

    Folders are searched to any depth, through symbolic links, and a loop of links is entered once. Names that start
    with a dot, broken links and files with other endings are passed over and counted (`PathList.passed`). A text file
    (`.txt`) has one path per line, relative to its folder; blank lines and lines that start with # are skipped. A file
    that is reached twice counts once. In a folder without image files, the images in its tar files (`.tar`) are used,
    as `resim pack` writes them; in a folder with image files, tar files are passed over, and pipes, sockets and devices
    in folders and lists. No image is opened.

    Raises:
        UserError: a source does not exist or cannot be read, a listed file does not exist, a tar file cannot be read or
            is refused (see `views.shards`), or there is no image.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise UserError("no images: name at least one folder, image or text file of paths")
    images: dict[str, str] = {}  # by the resolved path of each file, the path that led to it first
    real: dict[str, str] = {}
    shards: dict[str, int] = {}
    passed = PassedOver()
    for source in sources:
        path = os.path.expanduser(os.fspath(source))  # noqa: PTH111 - strings throughout: a million Path objects are slow
        try:
            if os.path.isdir(path):  # noqa: PTH112
                here = PassedOver()
                files = sorted(walk_files(path, _is_read, here))
                image_files = [file for file in files if not is_shard(file[0])]
                if image_files:
                    here.repeats += _add(images, image_files, real)
                    here.tars = len(files) - len(image_files)
                for tar, _ in files if not image_files else ():
                    _add_shard(images, shards, tar)
                passed.add(here)
            elif not os.path.exists(path):  # noqa: PTH110
                raise UserError(f"{source}: there is no such folder or file")
            elif special_kind(path):
                raise UserError(f"{source}: is {special_kind(path)}, not a file: name a file or a folder")
            elif path.lower().endswith(".txt"):
                _add(images, _listed(path, passed), real)
            elif is_shard(path):
                _add_shard(images, shards, path)
            elif is_image(path):
                _add(images, [(path, os.path.islink(path))], real)  # noqa: PTH114
            else:
                raise UserError(f"{source}: neither a folder, nor an image, nor a .tar file, nor a .txt file of paths")
        except OSError as error:
            raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from None
    if not images:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise UserError(
            f"no images found in {', '.join(map(str, sources))}: files ending in {kinds} are read"
            + (f"; {passed}" if passed else "")
        )
    in_shards = sum(shards.values()) == len(images)
    return PathList(images.values(), list(shards.values()) if in_shards else (), passed)


def find_shards(source: str) -> list[str]:
    """The tar files that a path, a folder or a pattern names, sorted; empty for a source of another kind.

    A folder names the tars in it, unless there are image files below it: then it names these, as in `find_images`.

    Raises:
        UserError: the tar does not exist, or is compressed.
    """
    if source.lower().endswith(_COMPRESSED):
        raise UserError(f"{source}: images cannot be read from a compressed tar: decompress it to a .tar")
    if Path(source).is_dir():
        tars = sorted(str(file) for file in Path(source).glob("*.tar"))
        has_images = bool(tars) and next(walk_files(source, is_image, PassedOver()), None) is not None
        return [] if has_images else tars
    if is_shard(source):
        tars = [source] if Path(source).exists() else sorted(glob.glob(source))  # noqa: PTH207
        if not tars:
            raise UserError(f"{source}: there is no such file")
        return tars
    return []


def is_image(name: str) -> bool:
    """Whether a file name has the ending of an image that is read."""
    return ending_of(name) in EXTENSIONS


def _is_read(name: str) -> bool:
    return is_image(name) or is_shard(name)


def _add(images: dict[str, str], files: Iterable[tuple[str, bool]], real: dict[str, str]) -> int:
    """Add the files that `images` does not contain, and count the others.

    `real` caches the resolved paths of folders, because resolving each file is slow.
    """
    repeats = 0
    for path, is_link in files:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        file = os.path.join(real[folder], name)  # noqa: PTH118
        key = os.path.realpath(file) if is_link else file
        repeats += key in images
        images.setdefault(key, key if key == path else path)  # one text of each path in memory, not two
    return repeats


def _add_shard(images: dict[str, str], shards: dict[str, int], tar: str) -> None:
    file = os.path.realpath(tar)
    if file not in shards:
        members = [member_path(tar, member) for member in list_shard(tar, is_image)]
        shards[file] = len(members)
        images.update((member, member) for member in members)


def _listed(path: str, passed: PassedOver) -> Iterator[tuple[str, bool]]:
    folder = os.path.dirname(path)  # noqa: PTH120
    text = decode_text(read_file(path))
    lines = re.split(r"\r\n|\r|\n", text)  # not splitlines, which also splits at characters that a name may have
    for number, name in enumerate(lines, start=1):
        if not name.strip() or name.startswith("#"):
            continue
        written = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118
        forms = (unicodedata.normalize(form, written) for form in ("NFC", "NFD"))  # a name has two forms in Unicode
        image = next((form for form in (written, *forms) if _is_there(form)), None)
        if image is None and special_kind(written):
            passed.special += 1
            continue
        if image is None:
            raise UserError(f"{path}, line {number}: {name}: there is no such file{_nearest(written)}")
        yield image, os.path.islink(image)  # noqa: PTH114


def _is_there(image: str) -> bool:
    in_tar = split_member_path(image)
    return os.path.isfile(image if in_tar is None else in_tar[0])  # noqa: PTH113


def _nearest(image: str) -> str:
    """For a message: the image with the most similar name in the folder of a path; empty if none is similar."""
    folder, name = os.path.split(image)
    name = name.rpartition("\\")[2]  # of a Windows path
    try:
        names = {entry.lower(): entry for entry in sorted(os.listdir(folder)) if is_image(entry)}  # noqa: PTH208
    except OSError:
        return ""
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
    return f'; the nearest in its folder is "{names[near[0]]}"' if near else ""
