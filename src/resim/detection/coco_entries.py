"""The entries of a COCO file under ids that agree: classes, images, and which annotations are whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from resim.detection.coco_values import as_id
from resim.detection.repair import Repairs
from resim.errors import UserError

Entry = dict[str, Any]
FILE_NAMES = ("file_name", "filename", "path")
CLASS_NAMES = ("category_name", "category", "class", "label", "name")


@dataclass(frozen=True, kw_only=True)
class Categories:
    """The classes of a file, by category id in ascending order.

    Attributes:
        names: of the classes.
        ids: of the classes, whole numbers.
        labels: label, from 1, by the id that an annotation may have; several ids of one class are among them.
        keypoint_names: K names, empty without keypoints.
        keypoint_labels: labels of the classes with keypoints.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    labels: dict[int | str, int]
    keypoint_names: tuple[str, ...]
    keypoint_labels: tuple[int, ...]

    def label_of(self, entry: Entry, repairs: Repairs, path: Path) -> int | None:
        """The label of an annotation; None, and noted, if it is of none of the classes."""
        note = partial(repairs.add, file=str(path), image_id=entry["image_id"], annotation_id=entry["id"])
        said = entry.get("category_id")
        number = as_id(said)
        if number in self.labels:
            return self.labels[number]
        if isinstance(number, str) and number in self.names:
            note("category-by-name", detail=f"category_id {said!r}")
            return self.names.index(number) + 1
        if said in (None, "") and len(self.names) == 1:
            note("only-category", detail="no category_id")
            return 1
        note("unknown-category", detail="no category_id" if said in (None, "") else f"category id {said!r}")
        return None


def read_categories(entries: Sequence[Entry], annotations: Sequence[Entry], path: Path, repairs: Repairs) -> Categories:
    """The classes of a file; without a list of them, those that its annotations name by id.

    Raises:
        UserError: there are none, or one id has two names.
    """
    note = partial(repairs.add, file=str(path))
    if not entries:
        entries = _categories_of(annotations, path)
        note("no-categories", detail=", ".join(str(entry["name"]) for entry in entries[:5]))
    used = {as_id(entry.get("category_id")) for entry in annotations}
    named = _numbered(_named(_without_parent(entries, used, note), path, note), note)
    keypoints = _keypoint_names([entry for _, _, entry in named], note)
    first: dict[str, int] = {}  # the lowest id of a name
    for number, _, entry in named:
        name = str(entry["name"])
        if name in first:
            note("same-name", detail=f"{name!r} is category {first[name]} and {number}")
        first.setdefault(name, number)
    label_of = {name: label for label, name in enumerate(first, start=1)}
    labels: dict[int | str, int] = {}
    for number, key, entry in named:
        labels[number] = labels[key] = label_of[entry["name"]]
    with_keypoints = {
        label_of[entry["name"]]
        for _, _, entry in named
        if keypoints and entry.get("keypoints") and isinstance(entry["keypoints"], list)
    }
    return Categories(
        names=tuple(first),
        ids=tuple(first.values()),
        labels=labels,
        keypoint_names=keypoints,
        keypoint_labels=tuple(sorted(with_keypoints)),
    )


def _categories_of(annotations: Sequence[Entry], path: Path) -> list[Entry]:
    """A list of categories for a file without one."""
    if not annotations:
        raise UserError(f"{path}: no categories and no annotations: name the file with the labels")
    found: dict[int | str, Entry] = {}
    for entry in annotations:
        key = as_id(entry.get("category_id"))
        if key is not None and key not in found:
            names = [entry[name] for name in CLASS_NAMES if isinstance(entry.get(name), str) and entry[name].strip()]
            found[key] = {"id": key, "name": names[0] if names else str(key)}
    return list(found.values()) or [{"id": 1, "name": "object"}]


def _without_parent(entries: Sequence[Entry], used: set[Any], note: Any) -> list[Entry]:
    """The entries without Roboflow's category 0, which is the parent of the others and of no annotation."""
    parents = [entry.get("supercategory") for entry in entries if as_id(entry.get("id")) != 0]
    kept = []
    for entry in entries:
        is_root = as_id(entry.get("id")) == 0 and entry.get("supercategory") == "none"
        if is_root and 0 not in used and entry.get("name") in parents:
            note("parent-category", detail=f"category 0, {entry.get('name')!r}")
        else:
            kept.append(entry)
    return kept


def _named(entries: Sequence[Entry], path: Path, note: Any) -> list[tuple[int | str, Entry]]:
    """Each category once, by its id, with a name."""
    found: dict[int | str, Entry] = {}
    for entry in entries:
        key = as_id(entry.get("id"))
        if key is None:
            note("bad-entry", detail=f"category {entry.get('name')!r} with the id {entry.get('id')!r}")
            continue
        said = entry.get("name")
        name = "" if said is None else str(said).strip()
        if not name:
            note("no-name", detail=f"category {key}")
            name = str(key)
        if key not in found:
            found[key] = {**entry, "name": name}
        elif found[key]["name"] == name:
            note("category-twice", detail=f"category {key}, {name!r}")
        else:
            raise UserError(
                f"{path}: category id {key} is there twice, as {found[key]['name']!r} and as {name!r}: which of "
                "the two an annotation means cannot be known; give them two ids"
            )
    if not found:
        raise UserError(f"{path}: no categories with an id")
    return list(found.items())


def _numbered(named: Sequence[tuple[int | str, Entry]], note: Any) -> list[tuple[int, int | str, Entry]]:
    """(number, id, entry), by number: ids that are no numbers get the next free ones, in their order."""
    taken = {key for key, _ in named if isinstance(key, int)}
    following = max(taken, default=0) + 1
    numbered = []
    for key, entry in named:
        number = key if isinstance(key, int) else following
        if isinstance(key, str):
            note("text-category", detail=f"category {key!r} becomes {number}")
            following += 1
        numbered.append((number, key, entry))
    return sorted(numbered, key=lambda one: one[0])


def _keypoint_names(entries: Sequence[Entry], note: Any) -> tuple[str, ...]:
    """The names that all classes with keypoints share; empty, and noted, if they differ."""
    found = {}
    for entry in entries:
        said = entry.get("keypoints")
        if not said:
            continue
        if isinstance(said, list):
            found[tuple(map(str, said))] = entry["name"]
        else:
            note("category-keypoints", detail=f"keypoints of {entry['name']!r} of type {type(said).__name__}")
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        detail = f"{len(first)} keypoints of {one!r} and {len(second)} others of {other!r}"
        note("category-keypoints", detail=detail)
        return ()
    return next(iter(found), ())


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
