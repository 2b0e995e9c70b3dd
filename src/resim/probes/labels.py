"""Images of the probes, with their classes if they have any: class folders, CSV files, tar shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from resim.counts import counted
from resim.errors import UserError
from resim.probes.class_names import (
    GIVE_CLASSES,
    find_parts,
    match_classes,
    refuse_parts,
    similar_names,
    why_no_classes,
)
from resim.probes.label_table import read_table
from resim.probes.shards import TarImage, read_shards
from resim.reading import open_file, read_file
from resim.views.decode import Photo
from resim.views.folder import PathList, find_images, find_shards

_MOST_COMPARED = 20_000  # files whose bytes are compared at most


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
    """What of a folder is passed over, and why."""
    why: str = ""
    """Why there are no classes, and what gives some."""

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
        return Photo(ref if isinstance(ref, str) else ref.path)

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
            what = "unlabelled image" if self.kind == "unlabelled" else "image"
            return f"{counted(len(self), what)} of {self.source}"
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
        parts = find_parts(Path(data).expanduser())
        if parts is not None:
            data, test = parts
    train = read_images(data, labelled=labelled)
    if test is not None:
        tested = _in_classes_of(train, read_images(test, labelled=labelled))
        if train.labels is None or tested.labels is None:
            return train, tested
        return train, _noted(tested, _untested(tested), _copies(train, tested))
    if train.labels is None:
        return train, train
    held_out = stratified(train.labels, test_share, seed)
    if not held_out.any() or held_out.all():
        raise UserError(
            f"{data}: {counted(len(train), 'image')} cannot be split into two sets: name test images with --test"
        )
    rest, chosen = train.take(np.flatnonzero(~held_out)), train.take(np.flatnonzero(held_out))
    return rest, _noted(chosen, _untested(chosen), _copies(rest, chosen))


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
        found = _unlabelled(str(source), refs) if names is None else _labelled(str(source), kind, refs, names)
    elif path.lower().endswith(".csv"):
        found = _read_csv(path)
    else:
        found = _read_folder(path, labelled=labelled)
    if labelled or found.labels is None:
        return found
    return replace(found, labels=None, classes=(), kind="unlabelled")


def _in_classes_of(train: ProbeImages, test: ProbeImages) -> ProbeImages:
    if train.labels is None or test.labels is None:
        if train.labels is None:
            return test
        return replace(test, labels=None, classes=(), kind="unlabelled")
    taken, note = match_classes(test.source, test.classes, train.classes, train.source)
    place = {name: i for i, name in enumerate(train.classes)}
    moved = np.array([place[taken[name]] for name in test.classes], dtype=np.int64)
    return _noted(replace(test, labels=moved[test.labels], classes=train.classes), note)


def _noted(images: ProbeImages, *notes: str) -> ProbeImages:
    return replace(images, note="; ".join(note for note in (images.note, *notes) if note))


def _untested(test: ProbeImages) -> str:
    """Which classes have no test image."""
    assert test.labels is not None
    missing = [name for i, name in enumerate(test.classes) if not (test.labels == i).any()]
    shown = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
    return f"no test image of {counted(len(missing), 'class', 'classes')}: {shown}" if missing else ""


def _copies(train: ProbeImages, test: ProbeImages) -> str:
    """How many test images are byte for byte training images, where the sets are not too large to compare.

    Raises:
        UserError: images that are in both sets themselves.
    """
    places = {_place(ref) for ref in train.refs}
    shared = [i for i, ref in enumerate(test.refs) if _place(ref) in places]
    if shared:
        count = counted(len(shared), "of its images is a training image", "of its images are training images")
        raise UserError(f"{test.source}: {count} too, such as {test.name(shared[0])}: test on others")
    if len(train) + len(test) > _MOST_COMPARED:
        return ""
    sizes = {_size(ref) for ref in test.refs}
    known = {_digest(ref) for ref in train.refs if _size(ref) in sizes}
    copies = [i for i, ref in enumerate(test.refs) if known and _digest(ref) in known - {b""}]
    if not copies:
        return ""
    count = counted(len(copies), "test image has", "test images have")
    return f"warning: {count} the same bytes as a training image, such as {test.name(copies[0])}: scores are too high"


def _place(ref: str | TarImage) -> tuple[str, int]:
    return (os.path.realpath(ref), 0) if isinstance(ref, str) else (os.path.realpath(ref.shard), ref.start)


def _size(ref: str | TarImage) -> int:
    try:
        return Path(ref).stat().st_size if isinstance(ref, str) else ref.size
    except OSError:  # said where the image is opened
        return -1


def _digest(ref: str | TarImage) -> bytes:
    try:
        if isinstance(ref, str):
            return hashlib.sha256(read_file(ref)).digest()
        with open_file(ref.shard) as file:
            file.seek(ref.start)
            return hashlib.sha256(file.read(ref.size)).digest()
    except OSError:
        return b""


def _labelled(source: str, kind: str, refs: Sequence[str | TarImage], names: Sequence[str]) -> ProbeImages:
    numbers = all(name.isascii() and name.isdigit() for name in set(names))
    classes = sorted(set(names), key=int if numbers else None)
    if len(classes) < 2:
        raise UserError(f"{source}: all {len(refs)} images are of one class, {classes[0]!r}: at least two are needed")
    index = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((index[name] for name in names), dtype=np.int64, count=len(names))
    return ProbeImages(
        source=source, kind=kind, refs=refs, labels=labels, classes=tuple(classes), note=similar_names(classes)
    )


def _unlabelled(source: str, refs: Sequence[str | TarImage]) -> ProbeImages:
    return ProbeImages(source=source, kind="unlabelled", refs=refs, labels=None, classes=())


def _read_folder(path: str, *, labelled: bool) -> ProbeImages:
    paths = find_images(path)
    if not Path(path).is_dir():
        return replace(_unlabelled(path, paths), why=GIVE_CLASSES)
    return _noted(_by_class_folders(path, paths, labelled=labelled), paths.note())


def _by_class_folders(path: str, paths: PathList, *, labelled: bool) -> ProbeImages:
    below = [PurePath(os.path.relpath(name, path)) for name in paths]
    classes = sorted({inside.parts[0] for inside in below if len(inside.parts) > 1})
    if len(classes) < 2 or any(len(inside.parts) == 1 for inside in below):
        return replace(_unlabelled(path, paths), why=why_no_classes(path, below))
    if labelled:
        refuse_parts(path, classes)
    return _labelled(path, "class folders", paths, [inside.parts[0] for inside in below])


def _read_csv(path: str) -> ProbeImages:
    table = read_table(path)
    return _noted(_labelled(path, "CSV", PathList(table.paths), table.labels), table.note)
