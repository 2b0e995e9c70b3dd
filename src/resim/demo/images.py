"""The demo's images: scenes that the package makes, some of them with labels, or the user's images.

In the labels all shapes are of one class: in minutes a detector learns to find them, not to name them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resim.counts import counted
from resim.demo.sizes import Sizes
from resim.reading import read_json
from resim.runs.checkpoints import write_atomically
from resim.scenes.scenes import write_scenes
from resim.views.folder import find_images


@dataclass(frozen=True, kw_only=True)
class DemoImages:
    """The demo's images."""

    train: Path
    """A list of the training images."""
    count: int
    """Number of training images."""
    held_out: Path
    """A list of the images for the probes, and of the scenes for evaluations."""
    labelled: Path | None = None
    """COCO file of the training scenes that have labels; None: no labels."""
    val: Path | None = None
    """COCO file of the held-out scenes; None: no labels."""
    num_labelled: int = 0
    """Training scenes with labels."""
    num_evaluated: int = 0
    """Held-out scenes on which detectors are evaluated."""
    description: str
    """The images in words."""


def make_scenes(out: Path, seed: int, sizes: Sizes | None = None) -> DemoImages:
    """Write scenes to train on and others to evaluate on into `out`; the first few training scenes have labels."""
    sizes = sizes or Sizes()
    for name, count, scene_seed in (("train", sizes.scenes, 2 * seed), ("held_out", sizes.held_out, 2 * seed + 1)):
        write_scenes(out / "scenes" / name, count, seed=scene_seed)
    train, held_out = (_write_list(out / "scenes" / name, out / f"{name}.txt", 2**31) for name in ("train", "held_out"))
    num_labelled = min(sizes.labelled, train[1])
    return DemoImages(
        train=train[0], count=train[1], held_out=held_out[0],
        labelled=_write_shapes(out / "scenes" / "train", num_labelled),
        val=_write_shapes(out / "scenes" / "held_out", held_out[1]),
        num_labelled=num_labelled, num_evaluated=min(sizes.evaluated, held_out[1]),
        description=f"{train[1]} scenes made by the package, {num_labelled} with labels, {held_out[1]} held out",
    )  # fmt: skip


def sample_images(data: Path, out: Path, seed: int, sizes: Sizes | None = None) -> DemoImages:
    """Sample a folder's images to train on, and some of these for the probes."""
    sizes = sizes or Sizes()
    train, count, note = _write_list(data, out / "train.txt", sizes.most_images, seed)
    held_out, *_ = _write_list(train, out / "held_out.txt", sizes.held_out, seed)
    description = f"{counted(count, 'image')} of {data}" + (", sampled at random" if count == sizes.most_images else "")
    description += f" ({note})" if note else ""
    return DemoImages(train=train, count=count, held_out=held_out, description=description)


def _write_shapes(folder: Path, count: int) -> Path:
    """Write the labels of a folder's first scenes, with the class `shape` for all objects."""
    scenes = read_json(folder / "instances.json")
    images = scenes["images"][:count]
    ids = {image["id"] for image in images}
    objects = [one | {"category_id": 1} for one in scenes["annotations"] if one["image_id"] in ids]
    content = scenes | {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "shape"}]}
    path = folder / "shapes.json"
    text = json.dumps(content)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _write_list(source: Path, out: Path, most: int, seed: int = 0) -> tuple[Path, int, str]:
    """Write a list of at most `most` random images of a folder; returns its path, length and what is passed over."""
    paths = find_images([source])
    chosen = np.sort(np.random.default_rng([5, seed]).permutation(len(paths))[:most])
    lines = [str(Path(paths[int(i)]).resolve()) for i in chosen]
    text = "\n".join(lines) + "\n"
    write_atomically(out, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
    return out, len(lines), str(paths.passed) if paths.passed else ""
