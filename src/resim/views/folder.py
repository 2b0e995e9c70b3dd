"""Images on disk: any folders, files, shards and lists of paths, found once and in an order all processes agree on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from resim.errors import UserError
from resim.views.shards import is_shard, list_shard, member_path, split_member_path

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})


class PathList(Sequence[str]):
    """Paths in one block of bytes: a million of them cost what their letters cost, also in every loader process."""

    def __init__(self, paths: Sequence[str], shards: Sequence[int] = ()) -> None:
        self.shards = tuple(shards)
        """Where all the images lie in shards: how many in each, one shard after the other."""
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

    def fingerprint(self) -> str:
        """A hash of the files' names in their order, without their folders: a data set that moved keeps it."""
        digest = hashlib.sha256()
        for path in self:
            digest.update(os.fsencode(path.rpartition(os.sep)[2]) + b"\0")
        return digest.hexdigest()[:16]


def find_images(sources: str | Path | Sequence[str | Path]) -> PathList:
    """Every image file below the given folders, in files given by name, and in text files of paths.

    Folders are read to any depth and symbolic links are followed, a loop of links only once. Names that start with a
    dot are passed over. A text file (`.txt`) holds one path a line, relative to itself; blank lines and lines that
    start with # are passed over. A file found twice counts once. Of a folder without images the tar files (`.tar`) are
    taken, as `resim pack` writes them, and of these the images in them. No image is opened here.

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
    for source in sources:
        path = os.path.expanduser(os.fspath(source))  # noqa: PTH111 - strings throughout: a million Path objects are slow
        try:
            if os.path.isdir(path):  # noqa: PTH112
                files = sorted(_walk(path, set()))
                images = [file for file in files if not is_shard(file[0])]
                if images:
                    _add(found, images, real)
                for tar, _ in files if not images else ():
                    _add_shard(found, shards, tar)
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
        raise UserError(f"no images found in {', '.join(map(str, sources))}: files ending in {kinds} are read")
    in_shards = sum(shards.values()) == len(found)
    return PathList(list(found.values()), list(shards.values()) if in_shards else ())


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def _add(found: dict[str, str], files: Iterable[tuple[str, bool]], real: dict[str, str]) -> None:
    """Add files not found before; `real` remembers where folders really are: to ask for every file would be slow."""
    for path, is_link in files:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        file = os.path.join(real[folder], name)  # noqa: PTH118
        found.setdefault(os.path.realpath(file) if is_link else file, path)


def _add_shard(found: dict[str, str], shards: dict[str, int], tar: str) -> None:
    file = os.path.realpath(tar)
    if file not in shards:
        members = [member_path(tar, member) for member in list_shard(tar, _is_image)]
        shards[file] = len(members)
        found.update((member, member) for member in members)


def _walk(folder: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Images and tars below `folder`, and whether they are links; `above`: folders on the way, so that a loop ends."""
    status = os.stat(folder)  # noqa: PTH116
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, above | {identity})
            elif (_is_image(entry.name) or is_shard(entry.name)) and entry.is_file():
                yield entry.path, entry.is_symlink()


def _listed(path: str) -> Iterator[tuple[str, bool]]:
    folder = os.path.dirname(path)  # noqa: PTH120
    with Path(path).open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            name = line.rstrip("\n\r")
            if not name.strip() or name.startswith("#"):
                continue
            image = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118
            in_tar = split_member_path(image)
            if not os.path.isfile(image if in_tar is None else in_tar[0]):  # noqa: PTH113
                raise UserError(f"{path}, line {number}: {name}: there is no such file")
            yield image, os.path.islink(image)  # noqa: PTH114
