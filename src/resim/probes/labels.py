"""Images of the probes, with their classes if they have any: class folders, CSV files, tar shards."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from resim.counts import counted
from resim.errors import UserError
from resim.probes.shards import TarImage, find_shards, read_shards
from resim.views.decode import BadImageError, Photo
from resim.views.folder import PathList, find_images

_TRAIN, _TEST = ("train", "training"), ("val", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class ProbeImages:
    """N images, with or without classes."""

    source: str
    """The folder, file or pattern that the user named."""
    kind: str
    """"class folders", "CSV", "tar shards", or "unlabelled"."""
    refs: Sequence[str | TarImage]
    labels: np.ndarray | None
    """(N,) int64, indices into `classes`; None: the images have no classes."""
    classes: tuple[str, ...]
    note: str = ""
    """Which files of a folder are skipped, and why."""

    def __len__(self) -> int:
        return len(self.refs)

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        ref = self.refs[index]
        return ref if isinstance(ref, str) else f"{ref.shard}:{ref.name}"

    def open(self, index: int) -> Photo:
        """Open an image.

        Raises:
            BadImageError: it cannot be opened.
        """
        ref = self.refs[index]
        if isinstance(ref, str):
            return Photo(ref)
        try:
            with Path(ref.shard).open("rb") as file:
                file.seek(ref.start)
                return Photo(io.BytesIO(file.read(ref.size)))
        except OSError as error:
            raise BadImageError(f"{type(error).__name__}: {error}") from None

    def take(self, indices: Sequence[int] | np.ndarray) -> ProbeImages:
        """Select images by index, in the order of the indices; `classes` is kept."""
        labels = None if self.labels is None else self.labels[np.asarray(indices, dtype=np.int64)]
        return replace(self, refs=[self.refs[int(i)] for i in indices], labels=labels)

    def sample(self, most: int, seed: int) -> ProbeImages:
        """Sample at most `most` images (0: all) at random; their order is kept."""
        if most <= 0 or len(self) <= most:
            return self
        return self.take(np.sort(np.random.default_rng([7, seed]).permutation(len(self))[:most]))

    def fingerprint(self) -> str:
        """A hash of the names and classes of the images in their order, without their folders."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            ref = self.refs[i]
            name = ref.rpartition(os.sep)[2] if isinstance(ref, str) else ref.name
            label = "" if self.labels is None else self.classes[self.labels[i]]
            digest.update(os.fsencode(name) + b"\0" + os.fsencode(label) + b"\0")
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        if self.labels is None:
            return f"{len(self)} unlabelled images of {self.source}"
        return f"{counted(len(self), 'image')} of {len(self.classes)} classes ({self.kind}) of {self.source}"


def read_sets(
    data: str | Path, test: str | Path | None = None, *, labelled: bool = True, test_share: float = 0.2, seed: int = 0
) -> tuple[ProbeImages, ProbeImages]:
    """Read the training images and the test images.

    Without `test`, the subfolders `train` and `val` (or `test`) of a folder are read; if there are none, `test_share`
    of each class is held out at random. Images without classes are all in both sets.

    Raises:
        UserError: there are no images, or the test set has other classes.
    """
    if test is None:
        parts = _split_folders(Path(data).expanduser())
        if parts is not None:
            data, test = parts
    train = read_images(data, labelled=labelled)
    if test is not None:
        return train, _in_classes_of(train, read_images(test, labelled=labelled))
    if train.labels is None:
        return train, train
    held_out = stratified(train.labels, test_share, seed)
    if not held_out.any() or held_out.all():
        raise UserError(
            f"{data}: {counted(len(train), 'image')} cannot be split into two sets: name test images with --test"
        )
    return train.take(np.flatnonzero(~held_out)), train.take(np.flatnonzero(held_out))


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sample about `share` of each class at random; of two images or more, at least one in and one out: (N,) bool."""
    chosen = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng([8, seed])
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        chosen[indices[:count]] = True
    return chosen


def read_images(source: str | Path, *, labelled: bool = True) -> ProbeImages:
    """Read the images of a folder, a CSV file (path,label), tar shards, or a .txt file of paths, with their classes.

    A folder has classes if all its images lie in two or more subfolders. Shards have classes if their images have
    `.cls` files, or else lie in folders. `labelled=False` ignores classes.

    Raises:
        UserError: there is nothing to read, or a line of the CSV file cannot be read.
    """
    path = os.path.expanduser(os.fspath(source))  # noqa: PTH111
    shards = find_shards(path)
    if shards:
        refs, names, kind = read_shards(str(source), shards)
        images = _unlabelled(str(source), refs) if names is None else _labelled(str(source), kind, refs, names)
    elif path.lower().endswith(".csv"):
        images = _read_csv(path)
    else:
        images = _read_folder(path)
    if labelled or images.labels is None:
        return images
    return replace(images, labels=None, classes=(), kind="unlabelled")


def _split_folders(folder: Path) -> tuple[Path, Path] | None:
    train = next((folder / name for name in _TRAIN if (folder / name).is_dir()), None)
    test = next((folder / name for name in _TEST if (folder / name).is_dir()), None)
    return None if train is None or test is None else (train, test)


def _in_classes_of(train: ProbeImages, test: ProbeImages) -> ProbeImages:
    if train.labels is None or test.labels is None:
        return test if train.labels is None else replace(test, labels=None, classes=())
    index = {name: i for i, name in enumerate(train.classes)}
    unknown = [name for name in test.classes if name not in index]
    if unknown:
        raise UserError(
            f"{test.source}: class {unknown[0]!r} is not among the {len(train.classes)} classes of {train.source}"
            + (f", nor are {len(unknown) - 1} others" if unknown[1:] else "")
        )
    new_labels = np.array([index[name] for name in test.classes], dtype=np.int64)
    return replace(test, labels=new_labels[test.labels], classes=train.classes)


def _labelled(source: str, kind: str, refs: Sequence[str | TarImage], names: Sequence[str]) -> ProbeImages:
    numbers = all(name.isascii() and name.isdigit() for name in set(names))
    classes = sorted(set(names), key=int if numbers else None)
    if len(classes) < 2:
        raise UserError(f"{source}: all {len(refs)} images are of one class, {classes[0]!r}: at least two are needed")
    index = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((index[name] for name in names), dtype=np.int64, count=len(names))
    return ProbeImages(source=source, kind=kind, refs=refs, labels=labels, classes=tuple(classes))


def _unlabelled(source: str, refs: Sequence[str | TarImage]) -> ProbeImages:
    return ProbeImages(source=source, kind="unlabelled", refs=refs, labels=None, classes=())


def _read_folder(path: str) -> ProbeImages:
    paths = find_images(path)
    if not Path(path).is_dir():
        return _unlabelled(path, paths)
    return replace(_by_class_folders(path, paths), note=paths.note())


def _by_class_folders(path: str, paths: PathList) -> ProbeImages:
    relative = [PurePath(os.path.relpath(name, path)).parts for name in paths]
    if any(len(parts) == 1 for parts in relative) or len({parts[0] for parts in relative}) < 2:
        return _unlabelled(path, paths)
    return _labelled(path, "class folders", paths, [parts[0] for parts in relative])


def _read_csv(path: str) -> ProbeImages:
    folder = Path(path).parent
    refs, names = [], []
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for row in (reader := csv.reader(file)):
                if not row or not any(cell.strip() for cell in row):
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(row) < 2 or not row[1].strip():
                    raise UserError(f"{where}: expected path,label, not {','.join(row)!r}")
                if not refs and [cell.strip().lower() for cell in row[:2]] == ["path", "label"]:
                    continue
                image = folder / Path(row[0].strip()).expanduser()
                if not image.is_file():
                    raise UserError(f"{where}: {row[0].strip()}: there is no such file")
                refs.append(str(image))
                names.append(row[1].strip())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except csv.Error as error:
        raise UserError(f"{path}: is not a CSV file ({error})") from None
    if not refs:
        raise UserError(f"{path}: has no rows: write a row path,label for each image")
    return _labelled(path, "CSV", PathList(refs), names)
