"""Pack images into tar shards in the webdataset layout, in a random order."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from resim.counts import counted
from resim.errors import UserError
from resim.fields import AtLeast, AtMost, Seed, check_fields
from resim.views.decode import BadImageError, Photo
from resim.views.loader import BadFile
from resim.views.shards import INDEX, open_image
from resim.views.workers import report_killed_workers, start_worker


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How images are packed."""

    shard_mb: Annotated[int, AtLeast(1), AtMost(2**20)] = 512
    """Size at which a shard is complete, MB."""
    resize: Annotated[int, AtLeast(0), AtMost(2**16)] = 0
    """Reduce images to this length of their shorter side, if it is longer, px; 0: copy all files unchanged."""
    quality: Annotated[int, AtLeast(1), AtMost(100)] = 92
    """JPEG quality of reduced images."""
    seed: Seed = 0
    """Seed of the random order."""
    workers: Annotated[int, AtLeast(0), AtMost(512)] = 0
    """Worker processes that read and reduce images; 0: this process does."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Packed:
    """The result of `pack`."""

    images: int
    shards: int
    bad: Sequence[BadFile]
    """Files that could not be read."""


@dataclass(frozen=True)
class _Content:
    """The content of one file of a shard."""

    path: str
    data: bytes
    ending: str


class _Files(Dataset[_Content | BadFile]):
    """The content of each image, in the order of the shards."""

    def __init__(self, paths: Sequence[str], order: np.ndarray, config: PackConfig) -> None:
        self.paths, self.order, self.config = paths, order, config

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> _Content | BadFile:
        path = self.paths[int(self.order[place])]
        try:
            return _Content(path, *_content(path, self.config))
        except (BadImageError, OSError) as error:
            return BadFile(path, str(error))


def _content(path: str, config: PackConfig) -> tuple[bytes, str]:
    photo = Photo(path)
    short = min(photo.width, photo.height)
    if not config.resize or short <= config.resize:
        photo.close()
        with open_image(path) as file:
            data = file.read()
        return data, os.path.splitext(path)[1].lower()  # noqa: PTH122
    scale = config.resize / short
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    image = photo.decode(max(1.0, 1 / scale / 2))  # at least twice the final size
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(out, format="jpeg", quality=config.quality)
    return out.getvalue(), ".jpg"


def pack(
    paths: Sequence[str], out: Path, config: PackConfig, progress: Callable[[int], object] = lambda done: None
) -> Packed:
    """Write images to OUT/shard-000000.tar and so on, with an index of their positions.

    The name of a file is its number and its former stem: 000000012-IMG_3.jpg. Everything is written into a temporary
    folder next to `out`, and moved to `out` at the end.

    Args:
        paths: paths of the images.
        out: a folder that does not exist or is empty.
        config: sizes, quality, order and workers.
        progress: called with the number of images done, every 64 images and at the end.

    Raises:
        UserError: `out` is not empty or cannot be written, the disk is full, no image can be read, or a worker process
            was killed.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - does not resolve links
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is not empty: name a folder that does not exist")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # not a name with the number of this process: a container gives it to the next one too
        unfinished = tempfile.TemporaryDirectory(
            prefix=f".{out.name}.unfinished-", dir=out.parent, ignore_cleanup_errors=True
        )
        with unfinished as folder, report_killed_workers():
            shards = Path(folder, "shards")  # with the permissions of new folders, unlike the one around it
            shards.mkdir()
            packed = _write(paths, shards, config, progress)
            if out.exists():
                out.rmdir()
            shards.rename(out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from None
    return packed


def _write(paths: Sequence[str], folder: Path, config: PackConfig, progress: Callable[[int], object]) -> Packed:
    order = np.random.default_rng([6, config.seed]).permutation(len(paths))
    loader: DataLoader[Any] = DataLoader(
        _Files(paths, order, config),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=16 if config.workers else None,
        multiprocessing_context="fork" if config.workers and sys.platform == "linux" else None,
        worker_init_fn=start_worker if config.workers else None,
    )
    bad: list[BadFile] = []
    index: dict[str, dict[str, Any]] = {}
    shard: _Shard | None = None
    images = 0
    item: _Content | BadFile
    try:
        for done, item in enumerate(loader, start=1):
            if isinstance(item, BadFile):
                bad.append(item)
            else:
                if shard is None:
                    shard = _Shard(folder / f"shard-{len(index):06d}.tar")
                shard.add(images, item)
                images += 1
                if shard.size >= config.shard_mb * 1_000_000:
                    index[shard.path.name] = shard.close()
                    shard = None
            if done % 64 == 0 or done == len(paths):
                progress(done)
        if shard is not None:
            index[shard.path.name] = shard.close()
    except BaseException:
        if shard is not None:
            shard.abandon()
        raise
    if not images:
        raise UserError(
            f"none of {counted(len(paths), 'image')} can be read, for example {bad[0].path} ({bad[0].reason})"
        )
    (folder / INDEX).write_text(json.dumps({"images": images, "shards": index}), encoding="utf-8")
    if bad:
        listed = "".join(f"{file.path}\t{file.reason}\n" for file in bad)
        (folder / "bad_files.txt").write_bytes(os.fsencode(listed))
    return Packed(images, len(index), bad)


class _Shard:
    """A tar file being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `close`
        self._members: list[tuple[str, int, int]] = []
        self.size = 0

    def add(self, number: int, image: _Content) -> None:
        """Add an image, without dots in its stem, because a key of webdataset ends at the first dot."""
        stem = os.path.splitext(image.path.rpartition("/")[2])[0]  # noqa: PTH122
        stem = "".join(letter if letter.isprintable() and letter not in "./\\" else "_" for letter in stem)[-80:]
        entry = tarfile.TarInfo(f"{number:09d}-{stem}{image.ending}")
        entry.size, entry.mode = len(image.data), 0o644
        self._tar.addfile(entry, io.BytesIO(image.data))
        end = self._tar.offset  # of the padded data
        start = end - -(-len(image.data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self._members.append((entry.name, start, len(image.data)))
        self.size = end

    def close(self) -> dict[str, Any]:
        """Close the file and return its entry for the index."""
        self._tar.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return {"bytes": self.path.stat().st_size, "members": self._members}

    def abandon(self) -> None:
        """Close the file as it is, which is removed: a full disk may refuse what is still to be written."""
        if self._tar.fileobj is not None:
            with contextlib.suppress(OSError):
                self._tar.fileobj.close()
