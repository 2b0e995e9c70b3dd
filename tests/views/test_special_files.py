"""Pipes, sockets and devices in the place of images and labels: refused, or counted with the reason; nothing blocks."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resim.datasets.layouts import read_detection
from resim.errors import UserError
from resim.probes.labels import read_images
from resim.views.config import ViewsConfig
from resim.views.decode import BadImageError, Photo
from resim.views.folder import find_images
from resim.views.loader import BadFile, PairDataset
from resim.views.pack import PackConfig, pack
from resim.views.shards import Member, member_path

BOX = {"bbox": [1, 2, 3, 4], "category_id": 1}


def save(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.tar", "a.txt"])
def test_a_pipe_as_the_only_source_is_a_users_error(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is a named pipe, not a file"):
        find_images(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is a named pipe, not a file"):
        find_images([save(tmp_path / "b.jpg"), tmp_path / name])


def test_pipes_and_devices_among_images_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg")
    os.mkfifo(tmp_path / "images" / "b.jpg")
    os.mkfifo(tmp_path / "images" / "c.tar")
    (tmp_path / "images" / "d.png").symlink_to("/dev/zero")
    paths = find_images(tmp_path / "images")
    assert list(paths) == [str(tmp_path / "images" / "a.jpg")]
    assert paths.note() == "1 image; passed over: 3 pipes, sockets or devices"


def test_pipes_and_devices_in_a_list_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n/dev/zero\n")
    paths = find_images(tmp_path / "list.txt")
    assert list(paths) == [str(tmp_path / "a.jpg")]
    assert paths.note() == "1 image; passed over: 2 pipes, sockets or devices"
    (tmp_path / "list.txt").write_text("b.jpg\n")
    with pytest.raises(UserError, match=r"no images found in .*passed over: 1 pipe, socket or device"):
        find_images(tmp_path / "list.txt")


def test_an_image_that_becomes_a_pipe_after_the_listing_counts_as_one_that_cannot_be_decoded(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / f"{i}.png")) for i in range(2)]
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    *_, index, bad = PairDataset(paths, ViewsConfig(image_size=32), seed=0)[(0, 0)]
    assert index == 1
    assert set(bad) == {BadFile(paths[0], "a named pipe, not a file")}


def test_a_tar_that_becomes_a_pipe_after_the_listing_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(BadImageError, match="a named pipe, not a file"):
        Photo(member_path(str(tmp_path / "a.tar"), Member("a.jpg", 512, 10)))


def test_packing_lists_a_pipe_as_bad(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / "a.png")), str(tmp_path / "b.png")]
    os.mkfifo(tmp_path / "b.png")
    packed = pack(paths, tmp_path / "out", PackConfig())
    assert packed.images == 1
    assert packed.bad == [BadFile(paths[1], "a named pipe, not a file")]


def test_a_pipe_in_a_coco_file_is_named_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    images = [{"id": i, "file_name": f"{name}.png", "width": 40, "height": 30} for i, name in enumerate("ab", start=1)]
    content = {"images": images, "categories": [{"id": 1, "name": "x"}]}
    content["annotations"] = [{"id": i, "image_id": i} | BOX for i in (1, 2)]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    data = read_detection(tmp_path / "coco.json")
    assert [record.image_id for record in data.records] == [1]
    assert data.repairs.counts["missing-image"] == 1
    assert any('"b.png" is a named pipe, not a file' in line for line in data.repairs.lines())


@pytest.mark.parametrize("name", ["coco.json", "data.yaml"])
def test_a_pipe_in_place_of_a_label_file_is_a_users_error(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=name):
        read_detection(tmp_path / name)
    with pytest.raises(UserError):
        read_detection(tmp_path)


def test_pipes_among_the_files_of_a_folder_do_not_block_the_recognition_of_its_format(tmp_path: Path) -> None:
    for name in ("annotations.xml", "classes.txt", "a.csv", "a.txt", "obj.data", "labels.json"):
        os.mkfifo(tmp_path / name)
    save(tmp_path / "a.jpg")
    with pytest.raises(UserError):
        read_detection(tmp_path)


def test_a_pipe_in_place_of_labels_of_classes_is_a_users_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(UserError, match="a named pipe, not a file"):
        read_images(tmp_path / "labels.csv")


def test_a_file_with_the_name_of_an_image_in_a_tar_is_a_picture(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.tar!0+10!b.jpg", (50, 20))
    with tarfile.open(tmp_path / "images" / "a.tar", "w") as tar:
        tar.add(save(tmp_path / "c.png"), "c.png")
    (path,) = find_images(tmp_path / "images")
    photo = Photo(path)
    assert (photo.width, photo.height) == (50, 20)
    assert np.abs(photo.pixels().reshape(-1, 3).mean(axis=0) - (200, 100, 50)).max() < 2
    (path,) = find_images(tmp_path / "images" / "a.tar")  # and the image in the tar is still that
    photo = Photo(path)
    assert (photo.width, photo.height) == (40, 30)
    photo.close()
