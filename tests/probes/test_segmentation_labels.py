"""Label maps of COCO masks, VOC folders and folder pairs: equal labels in every layout; omitted files are counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resim.errors import UserError
from resim.probes.label_files import pair_files, read_values, voc_colours
from resim.probes.label_maps import VOID, LabelMaps, load_label_maps, paint_record, resize_nearest
from resim.probes.labelled_images import LabelledImages
from resim.probes.segmentation_labels import has_label_maps, read_labelled, read_labelled_sets
from resim.views.decode import BadImageError

GRID = np.array([[0, 0, 12, 12], [0, 8, 8, 255]], dtype=np.uint8)


def save(path: Path, values: np.ndarray, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray(values, mode=None)
        image.putpalette([channel for colour in voc_colours() for channel in colour])
    image.save(path)
    return path


def photograph(path: Path, width: int = 4, height: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 99, 199)).save(path)
    return path


def pair(root: Path, names: Sequence[str], labels: str = "segmentation", values: np.ndarray = GRID) -> Path:
    for name in names:
        photograph(root / "images" / f"{name}.jpg")
        save(root / labels / f"{name}.png", values)
    return root


def load(train: LabelledImages, test: LabelledImages, size: int = 4, **settings: Any) -> tuple[LabelMaps, LabelMaps]:
    return load_label_maps(train, test, size, **settings)


# -- values of a file


def test_palette_gray_sixteen_bits_and_colours_give_the_same_values(tmp_path: Path) -> None:
    for mode in ("L", "P"):
        assert (read_values(str(save(tmp_path / f"{mode}.png", GRID, mode))) == GRID).all()
    wide = save(tmp_path / "wide.png", GRID.astype(np.uint16) * 200)
    assert (read_values(str(wide)) == GRID.astype(np.int32) * 200).all()
    colour = {value: key for key, value in voc_colours().items()}
    rgb = np.array([[colour[int(value)] for value in row] for row in GRID], dtype=np.uint8)
    path = str(save(tmp_path / "rgb.png", rgb))
    assert (read_values(path, voc_colours()) == GRID).all()
    with pytest.raises(BadImageError, match="colour image: save labels"):
        read_values(path)
    with pytest.raises(BadImageError, match=r"colour \(64, 0, 0\) has no class"):
        read_values(path, {(0, 0, 0): 0, (64, 0, 128): 12, (224, 224, 192): 255})
    gray = save(tmp_path / "gray.png", np.repeat(GRID[..., None], 3, axis=2))
    assert (read_values(str(gray)) == GRID).all()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadImageError):
        read_values(str(tmp_path / "broken.png"))


def test_the_palette_is_vocs() -> None:
    colours = {value: key for key, value in voc_colours().items()}
    assert len(colours) == 256
    assert [colours[value] for value in (0, 1, 8, 15, 20, 255)] == [
        (0, 0, 0), (128, 0, 0), (64, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192),
    ]  # fmt: skip


def test_resizing_takes_the_pixel_at_the_centre() -> None:
    values = np.arange(6).reshape(1, 6)
    assert resize_nearest(values, 3).tolist() == [[1, 3, 5]] * 3
    assert resize_nearest(values, 12)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


# -- folders of images and label maps


def test_a_pair_of_folders_and_its_void_pixels(tmp_path: Path) -> None:
    root = pair(tmp_path, ["a", "b", "c", "d", "e"])
    assert has_label_maps(root)
    train, test = read_labelled_sets(root)
    assert (len(train), len(test)) == (4, 1)
    assert not set(train.images) & set(test.images)
    one, two = load(train, test)
    assert one.classes == two.classes == ("0", "8", "12")
    assert one.background == 0
    assert one.labels[0].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [0, 1, 1, VOID], [0, 1, 1, VOID]]


def test_void_values_background_and_classes_are_options(tmp_path: Path) -> None:
    train, test = read_labelled_sets(pair(tmp_path, ["a", "b"]))
    one, _ = load(train, test, void=(0,), background=None)
    assert (one.classes, one.background) == (("8", "12", "255"), None)
    one, _ = load(train, test, only=["12"])
    assert one.classes == ("0", "12")
    assert one.labels[0, 2].tolist() == [0, VOID, VOID, VOID]
    with pytest.raises(UserError, match=r"--classes 7: .* has the classes 0, 8, 12"):
        load(train, test, only=["7"])
    with pytest.raises(UserError, match=r"--background 77: no label map of .* has this value; it has 0, 8, 12"):
        load(train, test, background=77)


def test_names_of_classes_come_from_a_file(tmp_path: Path) -> None:
    root = pair(tmp_path, ["a", "b"], values=np.array([[0, 1], [1, 2]], dtype=np.uint8).repeat(1, axis=0))
    for name in ("a", "b"):
        photograph(root / "images" / f"{name}.jpg", 2, 2)
    (root / "classes.txt").write_text("nothing\ncat\ndog\n")
    one, _ = load(*read_labelled_sets(root))
    assert one.classes == ("nothing", "cat", "dog")


def test_colours_of_a_labelmap(tmp_path: Path) -> None:
    rgb = np.array([[[0, 0, 0], [9, 8, 7]], [[9, 8, 7], [1, 2, 3]]], dtype=np.uint8)
    for name in ("a", "b"):
        photograph(tmp_path / "images" / f"{name}.jpg", 2, 2)
        save(tmp_path / "masks" / f"{name}.png", rgb)
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:9,8,7::\ndog:1,2,3::\n"
    )
    one, _ = load(*read_labelled_sets(tmp_path), size=2)
    assert one.classes == ("background", "cat", "dog")
    assert one.labels[0].tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("layout", ["{part}/images {part}/segmentation", "images/{part} labels/{part}"])
def test_train_and_val_of_a_folder_are_used(tmp_path: Path, layout: str) -> None:
    for part, names in (("train", "abc"), ("val", "xy")):
        images, labels = (tmp_path / path.format(part=part) for path in layout.split())
        for name in names:
            photograph(images / f"{name}.jpg")
            save(labels / f"{name}.png", GRID)
    train, test = read_labelled_sets(tmp_path)
    assert [Path(path).stem for path in train.images] == ["a", "b", "c"]
    assert [Path(path).stem for path in test.images] == ["x", "y"]
    assert has_label_maps(tmp_path)


def test_names_match_without_regard_to_case_accents_and_marks(tmp_path: Path) -> None:
    images = [str(photograph(tmp_path / "images" / name)) for name in ("A.JPG", "e\u0301.jpg", "c.jpg", "deep/d.jpg")]
    for name in ("a.png", "\u00e9.png", "c_mask.png", "d.png", "nobody.png"):
        save(tmp_path / "labels" / name, GRID)
    pairs = pair_files(images, tmp_path / "images", tmp_path / "labels")
    assert len(pairs.images) == 4
    assert [Path(path).name for path in pairs.without_image] == ["nobody.png"]


def test_two_label_maps_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    images = [str(photograph(tmp_path / "images" / name)) for name in ("a.jpg", "b.jpg")]
    for name in ("x/a.png", "y/a.png", "b.png"):
        save(tmp_path / "labels" / name, GRID)
    pairs = pair_files(images, tmp_path / "images", tmp_path / "labels")
    assert [Path(path).name for path in pairs.without_label] == ["a.jpg"]


def test_omitted_files_are_counted_with_the_reason(tmp_path: Path) -> None:
    root = pair(tmp_path, ["a", "b", "c", "d"])
    photograph(root / "images" / "alone.jpg")
    save(root / "segmentation" / "stray.png", GRID)
    photograph(root / "images" / "c.jpg", 5, 2)
    (root / "segmentation" / "d.png").write_bytes(b"no image")
    labelled = read_labelled(root)
    assert labelled.notes == (
        "left out: 1 image without a label map: alone.jpg",
        "left out: 1 label map without an image: stray.png",
    )
    one, _ = load(labelled, labelled)
    assert len(one) == 2
    assert [Path(one.images.name(i)).name for i in range(2)] == ["a.jpg", "b.jpg"]
    assert one.notes[2].startswith("left out: 2 images whose label map cannot be used: ")
    assert "c.jpg: the label map is 4 x 2, the image 5 x 2" in one.notes[2]


def test_labels_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    root = pair(tmp_path / "pair", ["a", "b"])
    for (data, *labels), reason in (
        ((tmp_path / "gone",), "gone: there is no such folder or file"),
        ((empty,), "no label maps: name a COCO .json, a VOC folder"),
        ((root / "images", tmp_path / "gone"), "--labels .*gone: there is no such folder or file"),
        ((root / "images", empty), "empty: contains no label maps"),
        ((root / "images", root / "images"), "contains both images and label maps"),
    ):
        with pytest.raises(UserError, match=reason):
            read_labelled(data, labels[0] if labels else None)
    Image.new("L", (4, 2)).save(empty / "a.jpg")
    with pytest.raises(UserError, match=r"a.jpg is a JPEG, which alters label values"):
        read_labelled(root / "images", empty)
    save(root / "masks" / "a.png", GRID)
    with pytest.raises(UserError, match="segmentation and masks contain PNGs: name one with --labels"):
        read_labelled(root)
    binary = pair(tmp_path / "binary", ["a", "b"], values=np.array([[0, 0, 255, 255]] * 2, dtype=np.uint8))
    with pytest.raises(UserError, match=r"only 0 and 255, and 255 is void: .* --void without a value"):
        load(*read_labelled_sets(binary))
    assert load(*read_labelled_sets(binary), void=())[0].classes == ("0", "255")
    with pytest.raises(UserError, match="2 of its images are training images too"):
        read_labelled_sets(
            root / "images", root / "images", labels=root / "segmentation", test_labels=root / "segmentation"
        )
    with pytest.raises(UserError, match="cannot be split into two sets"):
        read_labelled_sets(pair(tmp_path / "one", ["a"]))


# -- VOC


def voc(root: Path, lists: dict[str, str], year: str = "VOC2012") -> Path:
    folder = root / "VOCdevkit" / year
    for name in ("a", "b", "c", "name with space"):
        photograph(folder / "JPEGImages" / f"{name}.jpg")
    for name in ("a", "b", "name with space"):
        save(folder / "SegmentationClass" / f"{name}.png", GRID, "P")
    for part, text in lists.items():
        path = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8-sig")
    return root


def test_the_lists_and_class_names_of_voc(tmp_path: Path) -> None:
    root = voc(tmp_path, {"train": "a\nc\nname with space\n", "val": "/JPEGImages/b.jpg /SegmentationClass/b.png\n"})
    for place in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        train, test = read_labelled_sets(place)
        assert ([Path(path).stem for path in train.images], len(test)) == (["a", "name with space"], 1)
        assert train.notes == ("left out: 1 listed image without picture or mask: c",)
    one, two = load(train, test)
    assert len(one.classes) == 21
    assert [one.classes[k] for k in (0, 8, 12)] == ["background", "cat", "dog"]
    assert two.labels[0, 3].tolist() == [0, 8, 8, VOID]
    with pytest.raises(UserError, match=r"no such list: name two of train, val with --split"):
        read_labelled_sets(root, split=("train", "test"))


def test_of_several_years_of_voc_one_is_named(tmp_path: Path) -> None:
    root = voc(tmp_path, {"train": "a\n", "val": "b\n"})
    voc(tmp_path, {"train": "a\n", "val": "b\n"}, "VOC2007")
    with pytest.raises(UserError, match="several years"):
        read_labelled_sets(root)
    train, _ = read_labelled_sets(root, split=("2012 train+2007 train", "2012 val"))
    assert len(train) == 2


def test_voc_without_lists_is_split_at_random(tmp_path: Path) -> None:
    train, test = read_labelled_sets(voc(tmp_path, {}))
    assert (len(train), len(test)) == (2, 1)


# -- COCO


def square(x: int, y: int, side: int) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def coco(
    root: Path, annotations: Sequence[dict[str, Any]], name: str = "train", classes: Sequence[str] = ("cat", "dog")
) -> Path:
    images = [{"id": i, "file_name": f"{name}{i}.png", "width": 8, "height": 8} for i in (1, 2)]
    for image in images:
        photograph(root / name / image["file_name"], 8, 8)
    entries = [
        {"id": i, "image_id": 1, "iscrowd": 0, "bbox": [0, 0, 8, 8], "area": 1} | one
        for i, one in enumerate(annotations, start=1)
    ]
    categories = [{"id": 10 * (i + 1), "name": each} for i, each in enumerate(classes)]
    path = root / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return path


def test_the_smaller_of_two_objects_lies_on_top(tmp_path: Path) -> None:
    small = {"category_id": 20, "segmentation": square(2, 2, 2)}
    large = {"category_id": 10, "segmentation": square(0, 0, 4)}
    for order in ((small, large), (large, small)):
        labelled = read_labelled(coco(tmp_path, order))
        record: Any = labelled.labels[0]
        painted = paint_record(record)
        assert painted[:5, :5].tolist() == [
            [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 2, 2, 0], [1, 1, 2, 2, 0], [0, 0, 0, 0, 0],
        ]  # fmt: skip


def test_crowds_and_boxes_without_a_mask_are_void_where_no_object_covers_them(tmp_path: Path) -> None:
    counts = [0, 16, 48]  # the first two columns
    path = coco(
        tmp_path,
        [
            {"category_id": 10, "segmentation": square(0, 0, 1), "bbox": [0, 0, 1, 1]},
            {"category_id": 20, "segmentation": {"size": [8, 8], "counts": counts}, "iscrowd": 1},
            {"category_id": 20, "bbox": [4, 0, 2, 1]},
        ],
    )
    labelled = read_labelled(path)
    record: Any = labelled.labels[0]
    assert paint_record(record)[0].tolist() == [1, -1, 0, 0, -1, -1, 0, 0]
    assert paint_record(record)[1].tolist() == [-1, -1, 0, 0, 0, 0, 0, 0]
    assert f"{path}: no mask for 1 object: pixels of their boxes that no mask covers are void" in labelled.notes
    assert f"{path}: 1 crowd region: their pixels that no object covers are void" in labelled.notes
    one, _ = load(labelled, labelled, size=8)
    assert (one.classes, one.background) == (("background", "cat", "dog"), 0)
    assert not one.labels[1].any()  # an image without an object is background


def test_a_coco_file_for_a_folder_of_images_and_one_without_masks(tmp_path: Path) -> None:
    path = coco(tmp_path, [{"category_id": 10, "segmentation": square(0, 0, 4)}])
    assert len(read_labelled(tmp_path / "train", path)) == 2
    with pytest.raises(UserError, match="leave --labels out"):
        read_labelled(path, tmp_path / "train")
    with pytest.raises(UserError, match="has boxes, but no masks"):
        read_labelled(coco(tmp_path, [{"category_id": 10}]))


def test_classes_of_the_test_file_are_matched_by_name(tmp_path: Path) -> None:
    mask = square(0, 0, 8)
    train = coco(tmp_path, [{"category_id": 10, "segmentation": mask}])
    test = coco(tmp_path, [{"category_id": 10, "segmentation": mask}], "val", ("dog", "cat"))
    one, two = load(*read_labelled_sets(train, test))
    assert (int(one.labels[0, 0, 0]), int(two.labels[0, 0, 0])) == (1, 2)
    other = coco(tmp_path, [{"category_id": 10, "segmentation": mask}], "other", ("cow", "cat"))
    with pytest.raises(UserError, match="class 'cow' is not among the 3 classes of"):
        load(*read_labelled_sets(train, other))


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.jpg", "a-mask.png"), ("a.jpg", "mask_a.png"), ("a.jpg", "a.jpg.png"), ("a.jpg", "A_labelIds.png"),
        ("a_leftImg8bit.png", "a_gtFine_labelIds.png"),
    ],
)  # fmt: skip
def test_names_of_other_programs_match(tmp_path: Path, image: str, label: str) -> None:
    photograph(tmp_path / "Images" / image)
    save(tmp_path / "Masks" / label, GRID)
    assert [Path(str(path)).name for path in read_labelled(tmp_path).labels] == [label]


def test_folders_of_lossy_label_maps_are_named(tmp_path: Path) -> None:
    photograph(tmp_path / "images" / "a.jpg")
    photograph(tmp_path / "labels" / "a.jpg")
    with pytest.raises(
        UserError, match=r"labels: contains no label maps .*a\.jpg is a JPEG, which alters label values"
    ):
        read_labelled(tmp_path)


def test_values_of_a_smoothed_mask_are_warned_of(tmp_path: Path) -> None:
    wide = np.arange(40, dtype=np.uint8).reshape(5, 8)
    photograph(tmp_path / "b" / "images" / "b.jpg", 8, 5)
    save(tmp_path / "b" / "labels" / "b.png", wide)
    maps = load(read_labelled(tmp_path / "b"), read_labelled(tmp_path / "b"), size=40)
    assert maps[0].notes[0].startswith(f"warning: {tmp_path / 'b'}: 40 different values without names (0, 1, 2, 3, 4, ")


def test_only_void_is_said_as_it_is(tmp_path: Path) -> None:
    images = read_labelled(pair(tmp_path, ["a"], values=np.full_like(GRID, 255)))
    with pytest.raises(UserError, match="hold only 255, which is void"):
        load(images, images)
