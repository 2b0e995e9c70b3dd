"""Three layouts, one form: boxes, classes, masks, keypoints, crowd and difficult as the data sets mean them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from detection_data import (
    H,
    W,
    corners,
    picture,
    polygons,
    rectangle,
    thing,
    write_cityscapes,
    write_coco,
    write_voc,
    xml_object,
)
from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.layouts import read_detection
from resim.datasets.masks import decode_masks
from resim.datasets.records import subset
from resim.datasets.voc import read_voc
from resim.errors import UserError
from resim.scenes.scenes import draw_scene, write_scenes

# -- COCO


def test_coco_boxes_labels_and_masks(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(5, 1, 7, (10, 20, 30, 60)), thing(6, 1, 3, (0, 0, 4, 4))]))
    assert data.classes == ("cat", "dog")  # by category id: 3, 7
    assert data.category_ids == (3, 7)
    first, second = data.records
    assert first.boxes.tolist() == [[10, 20, 30, 60], [0, 0, 4, 4]]
    assert first.boxes.dtype == np.float64
    assert first.labels.tolist() == [2, 1]
    assert first.annotation_ids.tolist() == [5, 6]
    assert first.areas.tolist() == [800, 16]
    assert (first.width, first.height, first.image_id) == (W, H, 1)
    assert len(second) == 0
    assert second.boxes.shape == (0, 4)
    assert data.repairs.counts == {}
    masks = decode_masks(first)
    assert masks.shape == (2, H, W)
    assert masks.dtype == bool
    assert masks[0, 20:60, 10:30].all()
    assert masks.sum(axis=(1, 2)).tolist() == [800, 16]


def test_polygons_of_one_object_are_united_and_both_kinds_of_rle_decoded(tmp_path: Path) -> None:
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[5:9, 2:4] = 1
    packed = rle.encode(np.asfortranarray(mask))
    compressed = {"size": [H, W], "counts": packed["counts"].decode()}  # type: ignore[union-attr]
    # down the columns: two columns of 80 and 5 pixels, 4 of the object, 76, 4, the rest
    counts = [2 * H + 5, 4, H - 4, 4, H * W - 2 * H - 5 - 4 - (H - 4) - 4]
    two = [rectangle(0, 0, 2, 2), rectangle(10, 10, 13, 12)]
    data = read_coco(
        write_coco(
            tmp_path,
            [
                thing(1, 1, 3, (0, 0, 13, 12), segmentation=two),
                thing(2, 1, 3, (2, 5, 4, 9), segmentation=compressed),
                thing(3, 1, 3, (2, 5, 4, 9), segmentation={"size": [H, W], "counts": counts}, iscrowd=1),
            ],
        )
    )
    masks = decode_masks(data.records[0])
    assert masks[0].sum() == 4 + 6
    assert np.array_equal(masks[1], mask.astype(bool))
    assert np.array_equal(masks[2], mask.astype(bool))
    assert data.records[0].crowd.tolist() == [False, False, True]
    assert data.records[0].has_mask.all()


def test_a_missing_box_or_area_comes_from_the_mask(tmp_path: Path) -> None:
    annotation = thing(1, 1, 3, (10, 20, 30, 60))
    del annotation["bbox"], annotation["area"]
    record = read_coco(write_coco(tmp_path, [annotation])).records[0]
    assert record.boxes.tolist() == [[10, 20, 30, 60]]
    assert record.areas.tolist() == [800]


def test_boxes_do_not_need_masks(tmp_path: Path) -> None:
    annotation = thing(1, 1, 3, (10, 20, 30, 60), segmentation=[])
    data = read_coco(write_coco(tmp_path, [annotation]))
    assert not data.has_masks
    assert data.records[0].masks is None
    assert data.repairs.counts == {}


def test_keypoints_are_kept_in_cocos_form(tmp_path: Path) -> None:
    person = {"id": 1, "name": "person", "keypoints": ["nose", "tail"]}
    data = read_coco(
        write_coco(
            tmp_path,
            [thing(1, 1, 1, (0, 0, 9, 9), keypoints=[1, 2, 2, 0, 0, 0]), thing(2, 1, 2, (0, 0, 5, 5))],
            categories=[person, {"id": 2, "name": "stone"}],
        )
    )
    assert data.keypoint_names == ("nose", "tail")
    assert data.keypoint_labels == (1,)
    assert data.records[0].keypoints is not None
    assert data.records[0].keypoints.tolist() == [[[1, 2, 2], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_images_are_found_in_subfolders(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))], num_images=1)
    elsewhere = tmp_path / "elsewhere" / "deep" / "down"
    elsewhere.mkdir(parents=True)
    (tmp_path / "images" / "1.png").rename(elsewhere / "1.png")
    assert read_coco(path, tmp_path / "elsewhere").records[0].image == str(elsewhere / "1.png")
    assert read_coco(path, [tmp_path / "images", tmp_path / "elsewhere"]).records[0].image == str(elsewhere / "1.png")


def test_of_two_images_with_one_name_neither_is_chosen(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))], num_images=1)
    picture(tmp_path / "other" / "a" / "1.png")
    picture(tmp_path / "other" / "b" / "1.png")
    with pytest.raises(UserError, match="2 files have this name"):
        read_coco(path, tmp_path / "other")


def test_a_name_with_a_folder_is_not_matched_in_another_folder(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))], num_images=1)
    path.write_text(path.read_text().replace("1.png", "train/1.png"))
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "images" / "1.png").rename(tmp_path / "photos" / "val" / "1.png")
    with pytest.raises(UserError, match="1 image file not found"):
        read_coco(path, tmp_path / "photos")
    (tmp_path / "photos" / "val").rename(tmp_path / "photos" / "train")
    for folder in (tmp_path / "photos", tmp_path / "photos" / "train"):
        assert read_coco(path, folder).records[0].image == str(tmp_path / "photos" / "train" / "1.png")


def test_the_folders_of_coco_are_searched(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))], num_images=1)
    (tmp_path / "annotations").mkdir()
    path.rename(tmp_path / "annotations" / "instances_val2017.json")
    (tmp_path / "images").rename(tmp_path / "val2017")
    data = read_detection(tmp_path, "val2017")
    assert data.records[0].image == str(tmp_path / "val2017" / "1.png")


def test_drawn_scenes_load_with_their_masks(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2, seed=3, width=64, height=48)
    data = read_detection(tmp_path / "scenes")
    scene = draw_scene(3, 1, width=64, height=48)
    assert data.repairs.counts == {}
    assert np.array_equal(data.records[1].boxes, scene.boxes)
    assert np.array_equal(data.records[1].labels, scene.labels + 1)
    assert np.array_equal(decode_masks(data.records[1]), scene.masks)


@pytest.mark.parametrize(("split", "num_images", "num_objects"), [("train", 408, 3542), ("val", 135, 1033)])
def test_real_coco_photographs_load(shared: Path, split: str, num_images: int, num_objects: int) -> None:
    data = read_detection(shared / "data" / "coco543", split)
    assert (len(data), data.num_objects, len(data.classes)) == (num_images, num_objects, 80)
    assert data.repairs.counts == {}
    assert data.has_masks


# -- VOC


def test_voc_corners_are_pixels_from_one(tmp_path: Path) -> None:
    whole = xml_object("dog", (1, 1, W, H))
    one_pixel = xml_object("aeroplane", (5, 7, 5, 7), difficult=1)
    write_voc(tmp_path, "2007", {"trainval": ["000001"]}, {"000001": [whole, one_pixel]})
    data = read_voc(tmp_path)
    record = data.records[0]
    assert record.boxes.tolist() == [[0, 0, W, H], [4, 6, 5, 7]]
    assert record.labels.tolist() == [12, 1]
    assert record.difficult.tolist() == [False, True]
    assert record.annotation_ids.tolist() == [1, 2]
    assert record.areas.tolist() == [W * H, 1]
    assert record.image_id == "000001"
    assert record.masks is None
    assert len(data.classes) == 20


def test_several_years_together(tmp_path: Path) -> None:
    box = [xml_object("dog", (1, 1, 9, 9))]
    root = tmp_path / "VOCdevkit"
    write_voc(root, "2007", {"trainval": ["000001", "000002"], "test": ["000003"]}, {f"00000{n}": box for n in (1, 2)})
    write_voc(root, "2012", {"trainval": ["2008_000001"]}, {"2008_000001": box})
    expected = ["000001", "000002", "2008_000001"]
    for path in (tmp_path, root):
        data = read_detection(path, "2007 trainval+2012 trainval")
        assert [record.image_id for record in data.records] == expected
    assert len(read_detection(root / "VOC2012", "trainval")) == 1
    with pytest.raises(UserError, match=r"several years.*write 2007 trainval"):
        read_voc(root, "trainval")
    with pytest.raises(UserError, match=r"has no year 2010: name one of 2007, 2012"):
        read_voc(root, "2010 trainval")
    with pytest.raises(UserError, match=r"val\.txt: no such list: name one of test, trainval with --split"):
        read_voc(root, "2007 val")


def test_other_classes_in_vocs_layout(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": [xml_object("screw", (1, 1, 9, 9))]})
    data = read_detection(tmp_path, classes=["nail", "screw"])
    assert data.records[0].labels.tolist() == [2]
    with pytest.raises(UserError, match="no object of 20 classes in its 1 image; it has screw: name them"):
        read_detection(tmp_path)


def test_real_voc_photographs_load(shared: Path) -> None:
    root = shared / "data" / "voc100"
    train, test = read_detection(root, "2007 trainval"), read_detection(root / "VOCdevkit", "test")
    assert (len(train), len(test)) == (70, 30)
    assert train.repairs.counts == test.repairs.counts == {}
    assert any(record.difficult.any() for record in train.records)
    record = read_voc(root, "2007 trainval+2007 test").records
    sofa = next(one for one in record if one.image_id == "000003")
    assert sofa.boxes[0].tolist() == [122, 154, 215, 195]  # 123, 155, 215, 195 in the file
    assert sofa.labels.tolist() == [18, 9]


# -- Cityscapes

SCENE = polygons(
    [
        ("road", corners(0, 40, 99, 79)),
        ("car", corners(10, 30, 39, 49)),
        ("car", corners(50, 30, 69, 49)),
        ("pole", corners(20, 0, 24, 79)),  # in front of the first car
        ("persongroup", corners(80, 10, 89, 19)),
        ("license plate", corners(52, 40, 55, 43)),  # not drawn
        ("caravan", corners(0, 0, 5, 5)),
        ("rider", corners(90, 30, 94, 39)),
    ]
)


def test_later_polygons_of_cityscapes_cover_earlier_ones(tmp_path: Path) -> None:
    data = read_detection(write_cityscapes(tmp_path, {"ulm_000000_000019": SCENE}), "val")
    record = data.records[0]
    assert data.kind == "cityscapes"
    assert data.classes == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert data.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert record.annotation_ids.tolist() == [24, 25000, 26000, 26001]
    assert record.labels.tolist() == [1, 2, 3, 3]
    assert record.crowd.tolist() == [True, False, False, False]
    assert record.boxes.tolist() == [[80, 10, 90, 20], [90, 30, 95, 40], [10, 30, 40, 50], [50, 30, 70, 50]]
    masks = decode_masks(record)
    assert masks[2].sum() == 30 * 20 - 5 * 20 == record.areas[2]
    assert not masks[2, :, 20:25].any()
    assert masks[3].sum() == 20 * 20
    assert record.image_id == "ulm_000000_000019"


def test_instance_ids_take_precedence_over_polygons_and_agree_with_them(tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "a", {"ulm_000000_000019": SCENE})
    write_cityscapes(tmp_path / "b", {"ulm_000000_000019": {**SCENE, "objects": []}})
    ids = np.full((H, W), 7, dtype=np.int32)  # road
    ids[30:50, 10:40] = 26000
    ids[30:50, 50:70] = 26001
    ids[:, 20:25] = 17  # pole
    ids[10:20, 80:90] = 24
    ids[0:6, 0:6] = 29000
    ids[30:40, 90:95] = 25000
    name = "gtFine/val/ulm/ulm_000000_000019_gtFine_instanceIds.png"
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "b" / name)
    one, other = (read_cityscapes(tmp_path / folder, "val").records[0] for folder in "ab")
    assert np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.annotation_ids, other.annotation_ids)
    assert np.array_equal(decode_masks(one), decode_masks(other))


def test_invalid_polygons_are_dropped_and_reported(tmp_path: Path) -> None:
    car = ("car", corners(10, 30, 39, 49))
    wrong = [("car", [(1, 1), (5, 5)]), ("car", [(1, 1), (5, 5), (float("nan"), 7)])]
    write_cityscapes(tmp_path, {"ulm_000000_000019": polygons([wrong[0], car, wrong[1]])})
    data = read_cityscapes(tmp_path, "val")
    assert data.records[0].annotation_ids.tolist() == [26000]
    assert data.records[0].areas.tolist() == [600]
    assert data.repairs.counts == {"short-polygon": 1, "bad-mask": 1}
    assert ", image ulm_000000_000019, annotation 1 (car: 2 points)" in data.repairs.lines()[0]
    assert ", image ulm_000000_000019, annotation 3 (car: not finite x, y pairs)" in data.repairs.lines()[1]


def test_an_empty_cityscapes_split_is_an_error(tmp_path: Path) -> None:
    nothing = polygons([("road", corners(0, 0, 9, 9))])
    write_cityscapes(tmp_path, {"ulm_000000_000019": nothing})
    with pytest.raises(UserError, match="no object in its 1 image"):
        read_cityscapes(tmp_path, "val")
    with pytest.raises(UserError, match=r"gtFine/train: no such folder: name the folder that contains gtFine"):
        read_cityscapes(tmp_path, "train")


def test_missing_files_of_cityscapes_are_named(tmp_path: Path) -> None:
    names = [f"ulm_000000_00000{n}" for n in range(3)]
    write_cityscapes(tmp_path, dict.fromkeys(names, SCENE))
    (tmp_path / "leftImg8bit" / "val" / "ulm" / f"{names[0]}_leftImg8bit.png").unlink()
    (tmp_path / "gtFine" / "val" / "ulm" / f"{names[1]}_gtFine_polygons.json").unlink()
    data = read_cityscapes(tmp_path, "val")
    assert [record.image_id for record in data.records] == names[2:]
    assert data.repairs.counts == {"missing-image": 1, "missing-annotation": 1}
    with pytest.raises(UserError, match=f"1 image file not found.*{names[0]}"):
        read_cityscapes(tmp_path, "val", strict=True)


# -- any layout


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name a folder of COCO .* VOC .* Cityscapes .* or YOLO") as raised:
        read_detection(tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no such file or folder: name a COCO JSON file"):
        read_detection(tmp_path / "nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a\.txt: not a \.json file"):
        read_detection(tmp_path / "a.txt")


def test_several_json_files_need_a_split(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))])
    assert len(read_detection(tmp_path)) == len(read_detection(path)) == 2
    (tmp_path / "instances_train.json").write_bytes(path.read_bytes())
    there = r"choose one of instances_train\.json, instances_val\.json"
    with pytest.raises(UserError, match=rf"2 JSON files: {there}: type resim .* --split train --val val"):
        read_detection(tmp_path)
    assert len(read_detection(tmp_path, "train")) == 2


def test_options_of_another_layout_are_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": [xml_object("dog", (1, 1, 9, 9))]})
    with pytest.raises(UserError, match="applies only to COCO files"):
        read_detection(tmp_path, images=tmp_path)
    write_coco(tmp_path / "coco", [thing(1, 1, 3, (0, 0, 9, 9))])
    with pytest.raises(UserError, match="applies only to VOC and YOLO data sets"):
        read_detection(tmp_path / "coco", classes=["dog"])


# -- shares


def test_a_share_is_the_same_each_time_and_within_a_larger_one(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))], num_images=20))

    def ids(fraction: float, seed: int) -> list[int | str]:
        return [record.image_id for record in subset(data, fraction, seed).records]

    assert ids(0.25, 1) == ids(0.25, 1) == sorted(ids(0.25, 1), key=int)
    assert len(ids(0.25, 1)) == 5
    assert set(ids(0.25, 1)) < set(ids(0.5, 1))
    assert ids(0.5, 1) != ids(0.5, 2)
    assert ids(1, 1) == list(range(1, 21))
    assert len(ids(0.001, 0)) == 1
    assert subset(data, 0.5).classes == data.classes


@pytest.mark.parametrize(("fraction", "seed"), [(0, 0), (1.5, 0), (float("nan"), 0), (0.5, -1)])
def test_a_share_out_of_range_is_an_error(tmp_path: Path, fraction: float, seed: int) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))]))
    with pytest.raises(UserError, match="must be"):
        subset(data, fraction, seed)


def test_missing_sizes_are_read_from_the_files(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))])
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    path.write_text(json.dumps(content))
    assert [(record.width, record.height) for record in read_coco(path).records] == [(W, H), (W, H)]
