"""The classes of a COCO file: ids and names that agree, whatever the list of categories looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resim.datasets.coco_values import as_id
from resim.datasets.repair import Repairs
from resim.errors import UserError

Entry = dict[str, Any]
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
