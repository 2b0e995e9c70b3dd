"""Validation images that are trained on are counted, whatever their paths."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from PIL import Image

from detection_data import BOX, H, W, thing, write_coco
from resim.datasets.coco import read_coco
from resim.detection.shared_images import shared_images


def test_images_of_both_sets_are_counted_by_path_and_by_bytes(tmp_path: Path) -> None:
    train = read_coco(write_coco(tmp_path / "train", [thing(1, 1, 3, BOX)], num_images=1))
    folder = tmp_path / "val"
    folder.mkdir()
    path = write_coco(folder, [thing(n, n, 3, BOX) for n in (1, 2, 3)], num_images=3)
    Image.new("RGB", (W, H), (1, 2, 3)).save(folder / "images" / "1.png")
    (folder / "images" / "2.png").unlink()
    (folder / "images" / "2.png").symlink_to(tmp_path / "train" / "images" / "1.png")
    val = read_coco(path)  # 1: another image; 2: a link to the training image; 3: a copy of it
    (line,) = shared_images(train, val)
    assert line.startswith("2 of 3 validation images are training images too, such as")
    only = dataclasses.replace(val, records=val.records[:1])
    assert shared_images(train, only) == []
    assert "1 of 1 validation image is a training image too" in shared_images(only, only)[0]


def test_images_of_equal_size_and_other_bytes_are_not_shared(tmp_path: Path) -> None:
    sets = []
    for name, colour in (("train", (1, 2, 3)), ("val", (3, 2, 1))):
        path = write_coco(tmp_path / name, [thing(1, 1, 3, BOX)], num_images=1)
        Image.new("RGB", (W, H), colour).save(tmp_path / name / "images" / "1.png", compress_level=0)
        sets.append(read_coco(path))
    assert shared_images(*sets) == []
