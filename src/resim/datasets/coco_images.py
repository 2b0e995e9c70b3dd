"""The images of a COCO file by their ids, and the annotations of each image."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from resim.datasets.annotation_values import as_id
from resim.datasets.repairs import Repairs

Entry = dict[str, Any]
FILE_NAMES = ("file_name", "filename", "path")
_LARGE_ID = 2**53  # from which on a float may stand for several integers


def read_images(
    entries: Sequence[Entry], annotations: Sequence[Entry], path: Path, repairs: Repairs
) -> dict[int | str, Entry]:
    """Image entries by their id, each with a `file_name`.

    Files that share an id are all skipped, since their annotations cannot be assigned.

    Args:
        entries: of the file.
        annotations: of the file, which are counted for the faults of images.
        path: of the file.
        repairs: to which faults are added.
    """
    images: dict[int | str, Entry] = {}
    sharing: dict[int | str, list[str]] = {}
    first_ids: dict[str, int | str] = {}
    unnamed: list[int | str] = []
    count = _Counts(annotations).of
    for position, entry in enumerate(entries):
        image_id, name = _image_id(entry.get("id")), _file_name(entry)
        note = partial(repairs.add, file=str(path), image_id=image_id)
        if image_id is None or name is None:
            key = "id" if image_id is None else "file_name"
            value = entry.get(key)
            fault = f"no {key}" if value in (None, "") else f"{key} is {str(value)[:40]!r}"
            note("bad-image", detail=f"entry {position}: {fault}", num_objects=count(image_id))
            unnamed += [] if image_id is None else [image_id]
            continue
        if entry.get("file_name") != name:
            note("file-name", detail=name)
        if image_id not in images:
            if name in first_ids:
                note("file-twice", detail=f"{name}, also image {first_ids[name]}")
            first_ids.setdefault(name, image_id)
            entry |= {"id": image_id, "file_name": name}
            images[image_id] = entry
        elif images[image_id]["file_name"] == name:
            note("listed-twice", detail=name)
        else:
            sharing.setdefault(image_id, [images[image_id]["file_name"]]).append(name)
    for image_id, names in sharing.items():
        remaining = f" and {len(names) - 2} more" if len(names) > 2 else ""
        detail = f"{names[0]} and {names[1]}{remaining}"
        repairs.add("one-id", file=str(path), image_id=image_id, detail=detail, num_objects=count(image_id))
    # listed without content, so that their annotations do not count as those of unknown images
    return images | {
        image_id: {} for image_id in [*sharing, *unnamed] if not images.get(image_id) or image_id in sharing
    }


class _Counts:
    """The number of annotations by `image_id`, counted once there is a fault."""

    def __init__(self, annotations: Sequence[Entry]) -> None:
        self._annotations = annotations

    @functools.cached_property
    def _counts(self) -> Counter[Any]:
        return Counter(as_id(entry.get("image_id")) for entry in self._annotations)

    def of(self, image_id: int | str | None) -> int:
        """The number of annotations of an image; 0 without an id."""
        return 0 if image_id is None else self._counts[as_id(image_id)]


def group_annotations(
    annotations: Sequence[Entry], images: dict[int | str, Entry], path: Path, repairs: Repairs
) -> dict[int | str, list[Entry]]:
    """The annotations of each image, with an integer `id` and the `image_id` of their image.

    An `image_id` is matched exactly, then as a number (`"1"`, `1.0`), then as the name of a file.
    """
    image_ids = _ImageIds(images)
    groups: dict[int | str, list[Entry]] = {}
    for position, entry in enumerate(annotations, start=1):
        value, number = entry.get("image_id"), entry.get("id")
        if type(number) is int and -(2**63) < number < 2**63 and type(value) in (int, str) and value in images:
            groups.setdefault(value, []).append(entry)
            continue
        number = as_id(number)
        if not isinstance(number, int) or abs(number) >= 2**63:
            number = position  # some exporters omit it; it only identifies the annotation in messages
        image_id, kind = image_ids.match(value)
        note = partial(repairs.add, file=str(path), annotation_id=number)
        if image_id is None:
            is_missing = value in (None, "")
            detail = "no image_id" if is_missing else f"image_id {value!r} is not the id of an image in the file"
            note("unknown-image", image_id=None if is_missing else str(value), detail=detail)
            continue
        if kind:
            note(kind, image_id=image_id, detail=f"image_id {value!r}")
        entry |= {"id": number, "image_id": image_id}
        groups.setdefault(image_id, []).append(entry)
    return groups


class _ImageIds:
    """The ids of images, by number and by file; most files need neither."""

    def __init__(self, images: dict[int | str, Entry]) -> None:
        self._images = images

    @functools.cached_property
    def _by_number(self) -> dict[int | str, list[int | str]]:
        numbers: dict[int | str, list[int | str]] = {}
        for image_id in self._images:
            number = as_id(image_id)
            numbers.setdefault(image_id if number is None else number, []).append(image_id)
        return numbers

    @functools.cached_property
    def _by_float(self) -> dict[float, list[int | str]]:
        floats: dict[float, list[int | str]] = {}
        for number, image_ids in self._by_number.items():
            if isinstance(number, int) and _LARGE_ID <= abs(number) < 2**63:
                floats.setdefault(float(number), []).extend(image_ids)
        return floats

    @functools.cached_property
    def _by_file(self) -> dict[str, set[int | str]]:
        files: dict[str, set[int | str]] = {}
        for image_id, entry in self._images.items():
            for name in {entry["file_name"], PurePosixPath(entry["file_name"]).stem} if entry else ():
                files.setdefault(name, set()).add(image_id)
        return files

    def match(self, value: Any) -> tuple[int | str | None, str]:
        """The id of the image that an `image_id` means, and the kind of fault if it is not identical to that id."""
        if isinstance(value, int | str) and not isinstance(value, bool) and value in self._images:
            return value, ""
        number = as_id(value)
        if number is None:
            return None, ""
        if isinstance(value, float) and abs(value) >= _LARGE_ID:  # one float stands for several integers
            same = self._by_float.get(value, [])
        else:
            same = self._by_number.get(number, [])
        if len(same) == 1:
            return same[0], "image-id"
        named = self._by_file.get(str(value), set())
        return (next(iter(named)), "image-by-name") if len(named) == 1 and not same else (None, "")


def _image_id(value: Any) -> int | str | None:
    """The id of an image as in the file, since results refer to it; 1.0 is 1."""
    return value if isinstance(value, str) and value.strip() else as_id(value)


def _file_name(entry: Entry) -> str | None:
    for key in FILE_NAMES:
        if isinstance(entry.get(key), str) and entry[key].strip():
            return entry[key]
    url = entry.get("coco_url")  # LVIS: .../train2017/000000391895.jpg
    return "/".join(url.rsplit("/", 2)[-2:]) if isinstance(url, str) and url.count("/") >= 2 else None
