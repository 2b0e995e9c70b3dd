"""What the demo works on: scenes that the package draws, some of them with labels, or one's own images.

In the labels all shapes are of one class: a detector has minutes to learn to find them, not to name them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resim.views.folder import find_images
from resim.views.scenes import write_scenes

SCENES, HELD_OUT, LABELLED, MOST_IMAGES = 512, 128, 64, 2048


@dataclass(frozen=True, kw_only=True)
class DemoImages:
    """What the demo works on."""

    train: Path
    """A list of the images that are trained on."""
    count: int
    held_out: Path
    """A list of the images that are measured on."""
    labelled: Path | None
    """COCO file of labelled scenes, some of those that are trained on; None: no labels."""
    val: Path | None
    """The same of the images that are measured on."""
    told: str
    """In words."""


def drawn_scenes(out: Path, seed: int) -> DemoImages:
    """Scenes to train on and others to measure on, drawn into `out`; the first few with their labels."""
    for name, count, scene_seed in (("train", SCENES, 2 * seed), ("held_out", HELD_OUT, 2 * seed + 1)):
        write_scenes(out / "scenes" / name, count, seed=scene_seed)
    train, held_out = (_listed(out / "scenes" / name, out / f"{name}.txt", 2**31) for name in ("train", "held_out"))
    return DemoImages(
        train=train[0], count=train[1], held_out=held_out[0],
        labelled=_shapes(out / "scenes" / "train", LABELLED), val=_shapes(out / "scenes" / "held_out", HELD_OUT),
        told=f"{train[1]} scenes drawn by the package, {LABELLED} of them with labels, {held_out[1]} held out",
    )  # fmt: skip


def own_images(data: Path, out: Path, seed: int) -> DemoImages:
    """Some of a folder's images, and some of these to measure on."""
    train, count, note = _listed(data, out / "train.txt", MOST_IMAGES, seed)
    held_out, *_ = _listed(train, out / "held_out.txt", HELD_OUT, seed)
    told = f"{count} images of {data}" + (", drawn at random" if count == MOST_IMAGES else "")
    told += f" ({note})" if note else ""
    return DemoImages(train=train, count=count, held_out=held_out, labelled=None, val=None, told=told)


def _shapes(folder: Path, count: int) -> Path:
    """The labels of a folder's first scenes with one class, `shape`, for all of their objects."""
    whole = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    images = whole["images"][:count]
    kept = {image["id"] for image in images}
    objects = [one | {"category_id": 1} for one in whole["annotations"] if one["image_id"] in kept]
    content = whole | {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "shape"}]}
    path = folder / "shapes.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _listed(source: Path, out: Path, most: int, seed: int = 0) -> tuple[Path, int, str]:
    """A list of at most so many of a folder's images, drawn at random; how many they are; what is passed over."""
    paths = find_images([source])
    chosen = np.sort(np.random.default_rng([5, seed]).permutation(len(paths))[:most])
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [str(Path(paths[int(i)]).resolve()) for i in chosen]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return out, len(lines), str(paths.passed) if paths.passed else ""
