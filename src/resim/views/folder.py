"""Find images in folders, files, shards and lists of paths, each once, in the same order on all processes."""

from __future__ import annotations

import glob
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resim.errors import UserError
from resim.reading import special_kind
from resim.views.listed_files import listed_files
from resim.views.listing_progress import ListingProgress
from resim.views.path_list import PathList
from resim.views.repeats import ResolvedPaths, find_repeats
from resim.views.shards import is_shard, list_shard, member_path
from resim.views.walk import PassedOver, ending_of, walk_files

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_HINTS: dict[str, str] = dict.fromkeys((".zip", ".7z", ".rar"), ": unpack it, and name its folder")
_HINTS |= dict.fromkeys((".csv", ".tsv", ".lst"), ": save its paths alone, one a line, as .txt")
_HINTS |= dict.fromkeys((".json", ".xml", ".yaml", ".yml"), ": name the folder of its images")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


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
    listing = _Listing()
    paths = PathList(listing.paths(sources))
    if not len(paths):
        kinds = ", ".join(sorted(EXTENSIONS))
        raise UserError(
            f"no images found in {', '.join(map(str, sources))}: files ending in {kinds} are read"
            + (f"; {listing.passed}" if listing.passed else "")
        )
    repeats = find_repeats(paths, listing.hashes)
    if len(repeats):
        for first, end in listing.in_folders:
            begin, stop = np.searchsorted(repeats, (first, end)).tolist()
            listing.passed.repeats += stop - begin
        kept = np.ones(len(paths), dtype=bool)
        kept[repeats] = False
        paths = PathList(itertools.compress(paths, kept))
    in_shards = sum(listing.shards.values()) == len(paths)
    paths.shards = tuple(listing.shards.values()) if in_shards else ()
    paths.passed = listing.passed
    return paths


@dataclass
class _Listing:
    """The images of sources one after the other, those with several paths repeatedly."""

    shards: dict[str, int] = field(default_factory=dict)
    """By the resolved path of each tar, the number of its images."""
    passed: PassedOver = field(default_factory=PassedOver)
    hashes: array[int] = field(default_factory=lambda: array("q"))
    """Of each image, the hash of the resolved path of its file."""
    in_folders: list[tuple[int, int]] = field(default_factory=list)
    """Of each folder, the index of its first image file and that after its last one."""
    resolved: ResolvedPaths = field(default_factory=ResolvedPaths)
    progress: ListingProgress = field(default_factory=ListingProgress)

    def paths(self, sources: Sequence[str | Path]) -> Iterator[str]:
        """Yield the path of each image, and keep the hash of its file."""
        for source in sources:
            path = os.path.expanduser(os.fspath(source))  # noqa: PTH111 - strings throughout: a million Path objects are slow
            try:
                for image, file in self._images(source, path):
                    self.hashes.append(hash(file))
                    self.progress.count()
                    yield image
            except OSError as error:
                raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from None

    def _images(self, source: str | Path, path: str) -> Iterator[tuple[str, str]]:
        """The images of a source, each with the path that its file has without links."""
        if os.path.isdir(path):  # noqa: PTH112
            yield from self._in_folder(path)
        elif not os.path.exists(path):  # noqa: PTH110
            raise UserError(f"{source}: there is no such folder or file")
        elif special_kind(path):
            raise UserError(f"{source}: is {special_kind(path)}, not a file: name a file or a folder")
        elif path.lower().endswith(".txt"):
            for image, is_link in listed_files(path, is_image, self.passed):
                yield image, self.resolved.path_of(image, is_link)
        elif is_shard(path):
            yield from self._in_shard(path)
        elif is_image(path):
            yield path, self.resolved.path_of(path, os.path.islink(path))  # noqa: PTH114
        else:
            hint = _HINTS.get(ending_of(path), "")
            raise UserError(
                f"{source}: neither a folder, nor an image, nor a .tar file, nor a .txt file of paths{hint}"
            )

    def _in_folder(self, folder: str) -> Iterator[tuple[str, str]]:
        tars: list[str] = []
        first, num_tars, has_images = len(self.hashes), 0, False
        for path, is_link in walk_files(folder, self._is_read, self.passed):
            if is_shard(path):
                num_tars += 1
                tars += [path] * (not has_images)
                continue
            if not has_images:
                has_images = True
                tars = []
            yield path, self.resolved.path_of(path, is_link)
        self.passed.tars += num_tars * has_images
        self.in_folders.append((first, len(self.hashes)))
        for tar in tars:
            yield from self._in_shard(tar)

    def _in_shard(self, tar: str) -> Iterator[tuple[str, str]]:
        file = os.path.realpath(tar)
        if file not in self.shards:
            members = list_shard(tar, is_image)
            self.shards[file] = len(members)
            for member in members:
                path = member_path(tar, member)
                yield path, path

    def _is_read(self, name: str) -> bool:
        self.progress.report()
        return is_image(name) or is_shard(name)


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
