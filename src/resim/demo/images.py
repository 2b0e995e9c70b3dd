"""What the demo works on: scenes that the package draws, some of them with labels, or one's own images.

In the labels all shapes are of one class: a detector has minutes to learn to find them, not to name them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resim.counts import counted
from resim.demo.sizes import Sizes
from resim.scenes.scenes import write_scenes
from resim.views.folder import find_images


@dataclass(frozen=True, kw_only=True)
class DemoImages:
    """What the demo works on."""

    train: Path
    """A list of the images that are trained on."""
    count: int
    held_out: Path
    """A list of the images that are measured on."""
    labelled: Path | None = None
    """COCO file of labelled scenes, some of those that are trained on; None: no labels."""
    val: Path | None = None
    """The same of the images that are measured on."""
    num_labelled: int = 0
    """Scenes with labels to learn from."""
    num_evaluated: int = 0
    """Held-out scenes that detectors are evaluated on."""
    words: str
    """What they are."""


def drawn_scenes(out: Path, seed: int, sizes: Sizes | None = None) -> DemoImages:
    """Scenes to train on and others to measure on, drawn into `out`; the first few with their labels."""
    sizes = sizes or Sizes()
    for name, count, scene_seed in (("train", sizes.scenes, 2 * seed), ("held_out", sizes.held_out, 2 * seed + 1)):
        write_scenes(out / "scenes" / name, count, seed=scene_seed)
    train, held_out = (_listed(out / "scenes" / name, out / f"{name}.txt", 2**31) for name in ("train", "held_out"))
    num_labelled = min(sizes.labelled, train[1])
    return DemoImages(
        train=train[0], count=train[1], held_out=held_out[0],
        labelled=_shapes(out / "scenes" / "train", num_labelled),
        val=_shapes(out / "scenes" / "held_out", held_out[1]),
        num_labelled=num_labelled, num_evaluated=min(sizes.evaluated, held_out[1]),
        words=f"{train[1]} scenes drawn by the package, {num_labelled} of them with labels, {held_out[1]} held out",
    )  # fmt: skip


def own_images(data: Path, out: Path, seed: int, sizes: Sizes | None = None) -> DemoImages:
    """Some of a folder's images, and some of these to measure on."""
    sizes = sizes or Sizes()
    train, count, note = _listed(data, out / "train.txt", sizes.most_images, seed)
    held_out, *_ = _listed(train, out / "held_out.txt", sizes.held_out, seed)
    words = f"{counted(count, 'image')} of {data}" + (", drawn at random" if count == sizes.most_images else "")
    words += f" ({note})" if note else ""
    return DemoImages(train=train, count=count, held_out=held_out, words=words)


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
