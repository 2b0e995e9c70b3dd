"""The classes of a COCO file, with unique ids and names, whatever the form of its categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resim.datasets.annotation_values import as_id
from resim.datasets.repairs import Repairs
from resim.errors import UserError

Entry = dict[str, Any]
CLASS_NAMES = ("category_name", "category", "class", "label", "name")


@dataclass(frozen=True, kw_only=True)
class Categories:
    """The classes of a file, by category id in ascending order.

    Attributes:
        names: of the classes.
        ids: of the classes, whole numbers.
        labels: label from 1 by category id; several ids may belong to one class.
        keypoint_names: K names, empty without keypoints.
        keypoint_labels: labels of the classes with keypoints.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    labels: dict[int | str, int]
    keypoint_names: tuple[str, ...]
    keypoint_labels: tuple[int, ...]

    def label_of(self, entry: Entry, repairs: Repairs, path: Path) -> int | None:
        """The label of an annotation; None, with a fault in `repairs`, if it is of none of the classes."""
        category_id = entry.get("category_id")
        number = as_id(category_id)
        if number in self.labels:
            return self.labels[number]
        note = partial(repairs.add, file=str(path), image_id=entry["image_id"], annotation_id=entry["id"])
        if isinstance(number, str) and number in self.names:
            note("category-by-name", detail=f"category_id {category_id!r}")
            return self.names.index(number) + 1
        if category_id in (None, "") and len(self.names) == 1:
            note("only-category", detail="no category_id")
            return 1
        is_missing = category_id in (None, "")
        stated = next((entry[key] for key in CLASS_NAMES if is_missing and entry.get(key) in self.names), None)
        if stated is not None:
            note("category-by-name", detail=f"no category_id, but {stated!r}")
            return self.names.index(stated) + 1
        note("unknown-category", detail="no category_id" if is_missing else f"category_id {category_id!r}")
        return None


def read_categories(entries: Sequence[Entry], annotations: Sequence[Entry], path: Path, repairs: Repairs) -> Categories:
    """The classes of a file; if it has no list of categories, those of its annotations.

    Raises:
        UserError: there are none, or one id has two names.
    """
    note = partial(repairs.add, file=str(path))
    if not entries:
        entries = _annotated_categories(annotations, path)
        note("no-categories", detail=", ".join(str(entry["name"]) for entry in entries[:5]))
    named = _number_ids(_unique_entries(_without_parent(entries, annotations, note), path, note), note)
    keypoints = _keypoint_names([entry for _, _, entry in named], note)
    first: dict[str, int] = {}  # the smallest id of each name
    for number, _, entry in named:
        name = str(entry["name"])
        if name in first:
            note("same-name", detail=f"categories {first[name]} and {number} are both {name!r}")
        first.setdefault(name, number)
    spelled: dict[str, str] = {}
    for name in first:
        other = spelled.setdefault(name.casefold(), name)
        if other != name:
            note("similar-names", detail=f"{name!r} and {other!r}")
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


def _annotated_categories(annotations: Sequence[Entry], path: Path) -> list[Entry]:
    """The categories that annotations name, for a file without a list of them."""
    if not annotations:
        raise UserError(f"{path}: has no categories and no annotations: name the file that contains the labels")
    categories: dict[int | str, Entry] = {}
    for entry in annotations:
        key = as_id(entry.get("category_id"))
        if key is not None and key not in categories:
            names = [entry[name] for name in CLASS_NAMES if isinstance(entry.get(name), str) and entry[name].strip()]
            categories[key] = {"id": key, "name": names[0] if names else str(key)}
    return list(categories.values()) or [{"id": 1, "name": "object"}]


def _without_parent(entries: Sequence[Entry], annotations: Sequence[Entry], note: Any) -> list[Entry]:
    """The entries without category 0 of Roboflow: the parent of the others, which no annotation has."""
    parents = [entry.get("supercategory") for entry in entries if as_id(entry.get("id")) != 0]
    kept = []
    for entry in entries:
        is_root = as_id(entry.get("id")) == 0 and entry.get("supercategory") == "none"
        if is_root and entry.get("name") in parents and not _is_used(0, annotations):
            note("parent-category", detail=f"category 0, {entry.get('name')!r}")
        else:
            kept.append(entry)
    return kept


def _is_used(category_id: int, annotations: Sequence[Entry]) -> bool:
    return any(as_id(entry.get("category_id")) == category_id for entry in annotations)


def _unique_entries(entries: Sequence[Entry], path: Path, note: Any) -> list[tuple[int | str, Entry]]:
    """Each category once, by its id, with a name."""
    categories: dict[int | str, Entry] = {}
    for entry in entries:
        key = as_id(entry.get("id"))
        if key is None:
            note("bad-entry", detail=f"category {entry.get('name')!r} with the id {entry.get('id')!r}")
            continue
        name = "" if entry.get("name") is None else str(entry["name"]).strip()
        if not name:
            note("no-name", detail=f"category {key}")
            name = str(key)
        if key not in categories:
            categories[key] = {**entry, "name": name}
        elif categories[key]["name"] == name:
            note("category-twice", detail=f"category {key}, {name!r}")
        else:
            raise UserError(
                f"{path}: category id {key} is listed twice, as {categories[key]['name']!r} and as {name!r}, so that "
                "the class of an annotation is not certain: give each category an id of its own"
            )
    if not categories:
        raise UserError(f"{path}: none of its categories has an id: give each category an id")
    return list(categories.items())


def _number_ids(named: Sequence[tuple[int | str, Entry]], note: Any) -> list[tuple[int, int | str, Entry]]:
    """(number, id, entry), by number; ids that are text get the next free numbers, in their order."""
    taken = {key for key, _ in named if isinstance(key, int)}
    next_number = max(taken, default=0) + 1
    numbered = []
    for key, entry in named:
        number = key if isinstance(key, int) else next_number
        if isinstance(key, str):
            note("text-category", detail=f"category {key!r} becomes {number}")
            next_number += 1
        numbered.append((number, key, entry))
    return sorted(numbered, key=lambda row: row[0])


def _keypoint_names(entries: Sequence[Entry], note: Any) -> tuple[str, ...]:
    """The names that all classes with keypoints share; empty, with a fault, if they differ."""
    class_of = {}
    for entry in entries:
        names = entry.get("keypoints")
        if not names:
            continue
        if isinstance(names, list):
            class_of[tuple(map(str, names))] = entry["name"]
        else:
            note("category-keypoints", detail=f"keypoints of {entry['name']!r} of type {type(names).__name__}")
    if len(class_of) > 1:
        (first, first_class), (second, second_class) = list(class_of.items())[:2]
        detail = f"{len(first)} keypoints of {first_class!r} and {len(second)} others of {second_class!r}"
        note("category-keypoints", detail=detail)
        return ()
    return next(iter(class_of), ())
