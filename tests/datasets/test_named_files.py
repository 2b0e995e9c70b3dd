"""A name is matched to the only file that fits, never to one of several or to one outside the folders."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from detection_data import thing, write_coco
from resim.datasets.coco import read_coco
from resim.datasets.named_files import locate_files
from resim.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def located(folder: Path, *names: str) -> list[str | None]:
    """Of each name the path below `folder`, or None."""
    places = locate_files(names, [folder])
    return [None if (path := places[name].path) is None else os.path.relpath(path, folder) for name in names]


def fault(folder: Path, name: str) -> str:
    place = locate_files([name], [folder])[name]
    assert place.path is None
    return place.fault


# -- one file fits


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\a1.jpg", "images/a1.jpg"),
        ("..\\images\\a1.jpg", "images/a1.jpg"),
        ("C:\\Users\\me\\data\\a1.jpg", "images/a1.jpg"),
        ("../../label-studio/media/upload/4/a1.jpg", "images/a1.jpg"),
        ("/home/other/data/a1.jpg", "images/a1.jpg"),
        ("gone/a1.jpg", "images/a1.jpg"),
        ("file:///home/other/a1.jpg", "images/a1.jpg"),
        ("https://host.org/set/a1.jpg?size=full#top", "images/a1.jpg"),
        ("s3://bucket/set/a1.jpg", "images/a1.jpg"),
        ("/data/local-files/?d=set/a1.jpg", "images/a1.jpg"),
        ("0a1b2c3d-a1.jpg", "images/a1.jpg"),
        ("A1.JPG", "images/a1.jpg"),
        ("a1.jpg ", "images/a1.jpg"),
        ("a1.png", "images/a1.jpg"),
        ("a1.heic", "images/a1.jpg"),
        ("a1", "images/a1.jpg"),
        ("a1.JPG", "a1.jpg.png"),
        ("Stra%C3%9Fe%201.jpg", "Straße 1.jpg"),
        ("my+photo.jpg", "my photo.jpg"),
        ("my photo.jpg", "my%20photo.jpg"),
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
    ],
)
def test_a_similar_name_is_matched_and_reported(tmp_path: Path, name: str, file: str) -> None:
    touch(tmp_path, file, "zzz.jpg")
    place = locate_files([name], [tmp_path])[name]
    assert place.path is not None
    assert os.path.relpath(place.path, tmp_path) == file
    assert place.note == f'"{name}" is "{file}"'


def test_an_existing_path_is_matched_without_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg", "odd\\name.jpg", "a..b.jpg", "100%.jpg")
    absolute = str(tmp_path / "sub" / "b.jpg")
    names = ["a.jpg", "./sub/b.jpg", "sub/../a.jpg", "odd\\name.jpg", "a..b.jpg", "100%.jpg", absolute]
    assert all(place.path and not place.note for place in locate_files(names, [tmp_path]).values())


def test_a_name_without_folders_is_matched_below_without_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "x/y/b.jpg")
    place = locate_files(["b.jpg"], [tmp_path])["b.jpg"]
    assert (place.path, place.note) == (str(tmp_path / "x" / "y" / "b.jpg"), "")


def test_the_folders_of_a_name_choose_among_files_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "cam1/a.jpg", "cam2/a.jpg", "cam2/far/a.jpg")
    assert located(tmp_path, "D:\\set\\cam1\\a.jpg", "/data/cam2/a.jpg") == ["cam1/a.jpg", "cam2/a.jpg"]


# -- none fits, or several


def test_an_ambiguous_name_is_not_matched(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "b.jpg", "b.webp")
    assert fault(tmp_path, "/gone/a.jpg").startswith('"/gone/a.jpg": 2 files fit, ')
    assert fault(tmp_path, "a.jpg").startswith('"a.jpg": 2 files have this name, ')
    assert fault(tmp_path, "b.png").startswith('"b.png": 2 files fit, ')


def test_a_file_of_another_name_is_not_matched(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "c.jpg")
    assert located(tmp_path, "a.jpg", "gone/a.jpg") == ["a.jpg", None]
    assert located(tmp_path, "C.JPG", "c.png") == [None, None]
    assert locate_files(["C.JPG", "c.png"], [tmp_path])["c.png"].fault == '"c.png": "c.jpg" also fits "C.JPG"'


def test_train_is_not_val(tmp_path: Path) -> None:
    touch(tmp_path, "val/1.jpg", "test2017/2.jpg")
    assert located(tmp_path, "train/1.jpg", "C:\\set\\train2017\\2.jpg") == [None, None]
    assert located(tmp_path / "val", "train/1.jpg") == [None]


def test_a_mask_is_not_matched_as_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "masks/a.png", "SegmentationClass/b.png")
    assert located(tmp_path, "a.jpg", "images/b.jpg", "old/masks/a.png") == [None, None, "masks/a.png"]


def test_the_most_similar_name_is_quoted(tmp_path: Path) -> None:
    touch(tmp_path, "deep/img_0012.jpg", "other.png", "img_0001.jpg")
    places = locate_files(["img_0001.jpg", "img_012.jpg", "nothing like it"], [tmp_path])
    assert places["img_012.jpg"].fault == '"img_012.jpg"; the most similar name is "deep/img_0012.jpg"'
    assert places["nothing like it"].fault == '"nothing like it"'


@pytest.mark.parametrize("name", ["../secret.jpg", "..\\secret.jpg", "a/../../secret.jpg", "", ".", "..", "/", "\\"])
def test_no_file_outside_the_folder_is_matched(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "secret.jpg", "photos/a/b.jpg")
    assert located(tmp_path / "photos", name) == [None]
    assert located(tmp_path / "photos", str(tmp_path / "secret.jpg")) == [None]


def test_the_folders_are_not_walked_if_every_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg")
    walks: list[str] = []
    scandir = os.scandir

    def record_walk(folder: str) -> object:
        walks.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", record_walk)
    assert located(tmp_path, "a.jpg") == ["a.jpg"]
    assert walks == []
    located(tmp_path, *(f"gone/{number}.jpg" for number in range(50)))
    assert walks == [str(tmp_path)]


def test_a_file_in_two_of_the_folders_is_one(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    folders = [tmp_path / "images", tmp_path, tmp_path / "loop"]
    assert locate_files(["A.jpg"], folders)["A.jpg"].note == '"A.jpg" is "images/a.jpg"'


# -- in a COCO file


def test_coco_files_with_similar_names_are_read_and_reported(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9)), thing(2, 2, 3, (0, 0, 9, 9))])
    path.write_text(path.read_text().replace('"1.png"', '"C:\\\\set\\\\1.png"'))
    data = read_coco(path)
    assert [Path(record.image).name for record in data.records] == ["1.png", "2.png"]
    assert data.repairs.lines() == [
        "1 file name that differs from the name of the file, matched to the only file that fits: "
        f'{path}, image 1 ("C:\\set\\1.png" is "images/1.png")'
    ]
    with pytest.raises(UserError, match="1 file name that differs"):
        read_coco(path, strict=True)


def test_the_error_names_each_folder_once_and_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))], num_images=1)
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "mine").mkdir()
    path = path.rename(tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_coco("mine.json")
    assert "(searched in mine, images, .; name the folder of the images with --images-in)" in str(caught.value)
