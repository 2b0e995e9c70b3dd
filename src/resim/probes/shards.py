"""Images in uncompressed tar files, found without unpacking: webdataset's layout, or class folders.

An image is read from where it lies, so that names and links in a foreign tar lead nowhere.
"""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resim.errors import UserError
from resim.views.folder import EXTENSIONS, has_pictures

_LONGEST_CLASS = 1024  # bytes of a .cls file


@dataclass(frozen=True)
class TarImage:
    """An image as it lies in an uncompressed tar."""

    shard: str
    name: str
    start: int
    """First byte of its data."""
    size: int
    """Bytes."""


def find_shards(path: str) -> list[str]:
    """The tar files that a path, a folder or a pattern stands for; none if it stands for something else.

    A folder with pictures in it stands for these, as in `find_images`.

    Raises:
        UserError: a tar that is not there, or a compressed one.
    """
    if path.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise UserError(f"{path}: a compressed tar cannot be read at random: unpack it to a .tar")
    if Path(path).is_dir():
        tars = sorted(str(file) for file in Path(path).glob("*.tar"))
        return [] if tars and has_pictures(path) else tars
    if path.lower().endswith(".tar"):
        found = [path] if Path(path).exists() else sorted(glob.glob(path))  # noqa: PTH207
        if not found:
            raise UserError(f"{path}: there is no such file")
        return found
    return []


def read_shards(source: str, shards: Sequence[str]) -> tuple[list[TarImage], list[str] | None, str]:
    """Every image in some tar files, its class, and how the classes are told.

    Returns:
        The images; a class each, of `.cls` files beside the images or, where there are none, of the folders that they
        lie in, or None; and "tar shards, .cls", "tar shards, folders" or "unlabelled".

    Raises:
        UserError: a file that is no tar or is cut off, no image, or an image without a class where others have one.
    """
    refs: list[TarImage] = []
    keys: list[tuple[str, str]] = []  # of each image: its shard and webdataset key, the name up to its first dot
    classes: dict[tuple[str, str], str] = {}
    for shard in shards:
        try:
            length = Path(shard).stat().st_size
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    parent, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    key = (shard, f"{parent}/{stem}")
                    if not member.isfile() or name.startswith("."):
                        continue
                    if member.offset_data + member.size > length:
                        raise UserError(f"{shard}: is cut off in {member.name}")
                    if extension.lower() == "cls":
                        file = tar.extractfile(member)
                        assert file is not None
                        classes[key] = file.read(_LONGEST_CLASS).decode("utf-8", "surrogateescape").strip()
                    elif PurePosixPath(name).suffix.lower() in EXTENSIONS:
                        refs.append(TarImage(shard, member.name, member.offset_data, member.size))
                        keys.append(key)
        except OSError as error:
            raise UserError(f"{shard}: cannot be read ({error.strerror or error})") from None
        except tarfile.TarError as error:
            raise UserError(f"{shard}: damaged, or no tar file ({error})") from None
    if not refs:
        raise UserError(f"{source}: no images in {len(shards)} tar files")
    if classes:
        missing = next((i for i, key in enumerate(keys) if not classes.get(key)), None)
        if missing is not None:
            ref = refs[missing]
            raise UserError(f"{ref.shard}: {ref.name} has no class, {keys[missing][1].strip('/')}.cls is expected")
        return refs, [classes[key] for key in keys], "tar shards, .cls"
    folders = [str(PurePosixPath(ref.name).parent).lstrip("./").partition("/")[0] for ref in refs]
    if not all(folders) or len(set(folders)) < 2:
        return refs, None, "unlabelled"
    return refs, folders, "tar shards, folders"
