"""The images of a COCO file under ids that agree, and which annotations are whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from resim.datasets.coco_values import as_id
from resim.datasets.repair import Repairs

Entry = dict[str, Any]
FILE_NAMES = ("file_name", "filename", "path")


def read_images(entries: Sequence[Entry], counts: Counter[Any], path: Path, repairs: Repairs) -> dict[int | str, Entry]:
    """Image entries by their id, each with a `file_name`.

    Two files under one id are both left out: whose an annotation is cannot be known.

    Args:
        entries: of the file.
        counts: annotations by the id that they name.
        path: of the file.
        repairs: where faults are noted.
    """
    found: dict[int | str, Entry] = {}
    several: dict[int | str, list[str]] = {}
    files: dict[str, int | str] = {}
    nameless: list[int | str] = []
    for position, entry in enumerate(entries):
        image_id, name = _image_id(entry.get("id")), _file_name(entry)
        note = partial(repairs.add, file=str(path), image_id=image_id)
        if image_id is None or name is None:
            lacking = "id" if image_id is None else "file_name"
            said = entry.get(lacking)
            what = f"no {lacking}" if said in (None, "") else f"{str(said)[:40]!r} for {lacking}"
            note("bad-image", detail=f"entry {position}: {what}", num_objects=_count(counts, image_id))
            nameless += [] if image_id is None else [image_id]
            continue
        if entry.get("file_name") != name:
            note("file-name", detail=name)
        if image_id not in found:
            if name in files:
                note("file-twice", detail=f"{name}, also image {files[name]}")
            files.setdefault(name, image_id)
            entry |= {"id": image_id, "file_name": name}
            found[image_id] = entry
        elif found[image_id]["file_name"] == name:
            note("listed-twice", detail=name)
        else:
            several.setdefault(image_id, [found[image_id]["file_name"]]).append(name)
    for image_id, names in several.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        detail = f"{names[0]} and {names[1]}{more}"
        repairs.add("one-id", file=str(path), image_id=image_id, detail=detail, num_objects=_count(counts, image_id))
    # their annotations are known, and of no image that can be used
    return found | {
        image_id: {} for image_id in [*several, *nameless] if not found.get(image_id) or image_id in several
    }


def _count(counts: Counter[Any], image_id: int | str | None) -> int:
    return 0 if image_id is None else counts[as_id(image_id)]


def annotations_by_image(
    annotations: Sequence[Entry], images: dict[int | str, Entry], path: Path, repairs: Repairs
) -> dict[int | str, list[Entry]]:
    """The annotations of each image, with whole `id` and the `image_id` of their image.

    An id is matched as it is, then as the number that it is (`"1"`, `1.0`), then as the name of a file.
    """
    numbers: dict[int | str, list[int | str]] = {}
    for image_id in images:
        numbers.setdefault(as_id(image_id) or image_id, []).append(image_id)
    files: dict[str, set[int | str]] = {}
    for image_id, entry in images.items():
        for name in {entry["file_name"], PurePosixPath(entry["file_name"]).stem} if entry else ():
            files.setdefault(name, set()).add(image_id)
    found: dict[int | str, list[Entry]] = {}
    for position, entry in enumerate(annotations, start=1):
        number = as_id(entry.get("id"))
        if not isinstance(number, int) or abs(number) >= 2**63:
            number = position  # some exporters leave it out; it only names the annotation in messages
        said = entry.get("image_id")
        image_id, how = _match(said, images, numbers, files)
        note = partial(repairs.add, file=str(path), annotation_id=number)
        if image_id is None:
            detail = "no image_id" if said in (None, "") else f"image_id {said!r} is no id of an image in the file"
            note("unknown-image", image_id=None if said in (None, "") else str(said), detail=detail)
            continue
        if how:
            note(how, image_id=image_id, detail=f"image_id {said!r}")
        entry |= {"id": number, "image_id": image_id}
        found.setdefault(image_id, []).append(entry)
    return found


def _match(
    said: Any,
    images: dict[int | str, Entry],
    numbers: dict[int | str, list[int | str]],
    files: dict[str, set[int | str]],
) -> tuple[int | str | None, str]:
    """The image's id, and the kind of note if it is not written as in the list of images."""
    if isinstance(said, int | str) and not isinstance(said, bool) and said in images:
        return said, ""
    number = as_id(said)
    if number is None:
        return None, ""
    same = numbers.get(number, [])
    if len(same) == 1:
        return same[0], "image-id"
    named = files.get(str(said), set())
    return (next(iter(named)), "image-by-name") if len(named) == 1 and not same else (None, "")


def _image_id(value: Any) -> int | str | None:
    """An image's id as the file writes it, for results refer to it; 1.0 is 1."""
    return value if isinstance(value, str) and value.strip() else as_id(value)


def _file_name(entry: Entry) -> str | None:
    for key in FILE_NAMES:
        if isinstance(entry.get(key), str) and entry[key].strip():
            return entry[key]
    url = entry.get("coco_url")  # LVIS: .../train2017/000000391895.jpg
    return "/".join(url.rsplit("/", 2)[-2:]) if isinstance(url, str) and url.count("/") >= 2 else None
