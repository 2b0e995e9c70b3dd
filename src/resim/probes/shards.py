"""Labelled images in tar shards: classes from the `.cls` files of webdataset's layout, or from folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from resim.errors import UserError
from resim.views.folder import is_image
from resim.views.shards import Member, list_shard, member_path, read_member

_LONGEST_CLASS = 1024  # bytes that are read of a .cls file


@dataclass(frozen=True)
class TarImage:
    """An image in a tar."""

    shard: str
    name: str
    start: int
    """Position of its first byte in the tar."""
    size: int
    """Bytes."""

    @property
    def path(self) -> str:
        """The path of the image, as `Photo` reads it."""
        return member_path(self.shard, Member(self.name, self.start, self.size))


def read_shards(source: str, shards: Sequence[str]) -> tuple[list[TarImage], list[str] | None, str]:
    """Read the images of some tar files, their classes, and the source of the classes.

    Args:
        source: what the user has named, for messages.
        shards: paths of the tars.

    Returns:
        The images; the class of each, from a `.cls` file of the same stem or, if there are no such files, from its
        folder, or None; and "tar shards, .cls", "tar shards, folders" or "unlabelled".

    Raises:
        UserError: a tar cannot be read or is refused (see `views.shards`), there is no image, or an image has no class
            while others have one.
    """
    images: list[TarImage] = []
    keys: list[tuple[str, str]] = []  # of each image: its shard and webdataset key, the name up to its first dot
    classes: dict[tuple[str, str], str] = {}
    for shard in shards:
        for member in list_shard(shard, _is_read):
            parent, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = (shard, f"{parent}/{stem}")
            if extension.lower() == "cls":
                classes[key] = _read_class(shard, member)
            elif is_image(name):
                images.append(TarImage(shard, *member))
                keys.append(key)
    if not images:
        raise UserError(f"{source}: no images in {len(shards)} tar files")
    if classes:
        missing = next((i for i, key in enumerate(keys) if not classes.get(key)), None)
        if missing is not None:
            image = images[missing]
            raise UserError(f"{image.shard}: {image.name} has no class, {keys[missing][1].strip('/')}.cls is expected")
        return images, [classes[key] for key in keys], "tar shards, .cls"
    folders = [str(PurePosixPath(image.name).parent).lstrip("./").partition("/")[0] for image in images]
    if not all(folders) or len(set(folders)) < 2:
        return images, None, "unlabelled"
    return images, folders, "tar shards, folders"


def _is_read(name: str) -> bool:
    return is_image(name) or name.lower().endswith(".cls")


def _read_class(shard: str, member: Member) -> str:
    try:
        text = read_member(shard, member._replace(size=min(member.size, _LONGEST_CLASS)))
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or error})") from None
    return text.decode("utf-8", "surrogateescape").strip()
