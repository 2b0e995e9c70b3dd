"""Exports of labelling tools are recognised, and the command that the message names works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detection_data import picture, thing, write_coco, xml_object
from resim.datasets.layouts import read_detection
from resim.errors import UserError

OBJECT = thing(1, 1, 3, (0, 0, 9, 9))


def refusal(path: Path, split: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_detection(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "images", "tool"),
    [("_annotations.coco.json", ".", "Roboflow"), ("labels.json", "data", "FiftyOne"), ("annotations.json", ".", "a")],
)
def test_coco_files_in_the_folders_of_splits(tmp_path: Path, name: str, images: str, tool: str) -> None:
    for part in ("valid", "train"):
        folder = tmp_path / part
        write_coco(folder, [OBJECT]).rename(folder / name)
        (folder / "images").rename(folder / "moved")
        for image in (folder / "moved").iterdir():
            (folder / images).mkdir(exist_ok=True)
            image.rename(folder / images / image.name)
    message = refusal(tmp_path)
    assert f"this is an export of {tool}" in message
    assert f"train/{name}, valid/{name}" in message
    assert message.endswith(f"type resim detect train {tmp_path} --split train --val valid")
    for part in ("train", "valid"):
        data = read_detection(tmp_path, part)
        assert len(data) == 2
        assert data.repairs.counts == {}
    assert "no split 'test'; this is an export" in refusal(tmp_path, "test")


def test_xml_in_the_folders_of_splits(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        picture(tmp_path / part / "a.jpg")
        put(tmp_path / part / "a.xml", f"<annotation>{xml_object('dog', (1, 1, 9, 9))}</annotation>")
    assert refusal(tmp_path).endswith(
        f"train, valid: type resim detect train {tmp_path} --split train --val valid --classes NAME NAME ..."
    )
    assert len(read_detection(tmp_path, "train")) == 1


def test_several_coco_files_are_named(tmp_path: Path) -> None:
    for split in ("default", "train"):
        put(tmp_path / "annotations" / f"instances_{split}.json", {})
    assert refusal(tmp_path).endswith(f"type resim detect train {tmp_path} --split train --val default")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.json": {"shapes": [], "imagePath": "a.jpg"}, "b.json": {"shapes": [], "imagePath": "b.jpg"}}, "LabelMe"),
        ({"metadata.json": {}, "samples.json": {"samples": []}}, "a FiftyOne data set"),
        ({"annotations.xml": "<annotations><version>1.1</version></annotations>"}, "in CVAT format"),
    ],
)
def test_folders_of_another_format_are_named(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    for name, content in files.items():
        put(tmp_path / name, content)
    message = refusal(tmp_path)
    assert words in message
    assert "then type resim detect train" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"shapes": [], "imagePath": "a.jpg"}, "LabelMe"),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, "VIA"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
        ({"items": [], "categories": {}}, "Datumaro"),
        ({"samples": []}, "FiftyOne"),
        ([{"image_id": 1, "category_id": 1, "bbox": [], "score": 0.5}], "COCO results"),
        ([{"id": 1, "data": {}, "annotations": []}], "Label Studio"),
        ([{"image": "a.jpg", "annotations": []}], "CreateML"),
    ],
)
def test_files_of_another_format_are_named(tmp_path: Path, content: Any, words: str) -> None:
    message = refusal(put(tmp_path / "a.json", content))
    assert words in message
    assert "type resim detect" in message


@pytest.mark.parametrize("content", [{}, [], [1], "text", {"images": 1}])
def test_a_json_file_of_an_unknown_format_is_not_a_coco_file(tmp_path: Path, content: Any) -> None:
    assert "not a COCO file" in refusal(put(tmp_path / "a.json", json.dumps(content)))


def test_an_empty_folder_is_not_a_data_set(tmp_path: Path) -> None:
    assert "name a folder of COCO" in refusal(tmp_path)
    put(tmp_path / "annotations.xml", "no xml")
    assert "name a folder of COCO" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data.zip", "data.zip is an archive: unpack it"),
        ("boxes.csv", "boxes.csv is a table, which is not supported: export it as COCO"),
        ("export.ndjson", "export.ndjson has a JSON object in each line"),
        ("train.tfrecord", "is a TFRecord or Parquet file"),
    ],
)
def test_files_of_other_formats_are_named_alone_and_in_their_folder(tmp_path: Path, name: str, words: str) -> None:
    picture(tmp_path / "a.jpg")
    file = put(tmp_path / name, "x")
    assert words in refusal(file)
    assert words in refusal(tmp_path)


def test_the_format_of_supervisely_is_recognised(tmp_path: Path) -> None:
    picture(tmp_path / "ds" / "img" / "a.jpg")
    put(tmp_path / "ds" / "ann" / "a.jpg.json", {"size": {}, "objects": []})
    put(tmp_path / "meta.json", {"classes": []})
    for folder in (tmp_path, tmp_path / "ds"):
        assert "this is in Supervisely format" in refusal(folder)


def test_a_list_of_detectron2_is_recognised(tmp_path: Path) -> None:
    file = put(tmp_path / "d2.json", [{"file_name": "a.jpg", "image_id": 1, "annotations": []}])
    assert "a Detectron2 data set: convert it with convert_to_coco_json" in refusal(file)


def test_json_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"images": ["\u00e4"]}'.encode("cp1252"))
    assert refusal(tmp_path / "a.json").endswith(
        "not encoded in UTF-8, as JSON must be (byte 13 is 0xe4): save it as UTF-8"
    )


def test_files_in_the_folders_of_splits_are_named(tmp_path: Path) -> None:
    put(tmp_path / "train" / "_annotations.createml.json", [{"image": "a.jpg", "annotations": []}])
    assert "_annotations.createml.json is a CreateML file" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "tool"), [("label_2", "KITTI"), ("labelTxt", "DOTA")])
def test_folders_of_labels_are_recognised_by_name(tmp_path: Path, name: str, tool: str) -> None:
    put(tmp_path / name / "a.txt", "Car 0 0 0 1 1 9 9")
    assert f"this is in {tool} format (folder {name})" in refusal(tmp_path)


def test_json_files_with_the_names_of_splits(tmp_path: Path) -> None:
    for name in ("train.json", "val.json", "classes.json"):
        put(tmp_path / name, {"images": []})
    files = "choose one of classes.json, train.json, val.json: "
    assert refusal(tmp_path).endswith(f"{files}type resim detect train {tmp_path} --split train --val val")
    assert "no split 'dev'; choose one of" in refusal(tmp_path, "dev")
    (tmp_path / "train.json").rename(tmp_path / "a.json")
    (tmp_path / "val.json").rename(tmp_path / "b.json")
    assert refusal(tmp_path).endswith(
        "choose one of a.json, b.json, classes.json: name the split with --split, or the file itself"
    )


def test_xml_in_annotations_of_each_split(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "images" / "a.jpg")
    put(tmp_path / "train" / "Annotations" / "a.xml", f"<annotation>{xml_object('dog', (1, 1, 9, 9))}</annotation>")
    assert f"type resim detect train {tmp_path} --split train --classes" in refusal(tmp_path)
    assert len(read_detection(tmp_path, "train")) == 1


def test_a_link_to_itself_is_not_an_image(tmp_path: Path) -> None:
    write_coco(tmp_path, [OBJECT, thing(2, 2, 3, (0, 0, 9, 9))])
    image = next((tmp_path / "images").glob("2.*"))
    image.unlink()
    image.symlink_to(image)
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    data = read_detection(tmp_path)
    assert data.repairs.counts == {"missing-image": 1}
    put(tmp_path / "other.json", {"images": {"1": {}}})
    assert refusal(tmp_path / "other.json").endswith("an object whose `images` are of type dict, but must be a list")
