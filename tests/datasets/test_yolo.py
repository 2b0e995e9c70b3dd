"""YOLO data sets: boxes and polygons of worked-out values, and every place where tools put images and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detection_data import H, W, detection, picture, thing, write_coco
from resim.datasets.layouts import is_data_set, read_detection
from resim.datasets.masks import decode_masks
from resim.datasets.records import DetectionData
from resim.datasets.yolo import read_yolo
from resim.detection.predict import _pictures
from resim.errors import UserError
from resim.scores.coco import coco_scores

# an image is 100 x 80 px: the box's centre is (30, 40), its size (40, 20)
BOX = "0 0.3 0.5 0.4 0.25\n"
CORNERS = [10, 30, 50, 50]
TRIANGLE = "1 0.1 0.1 0.5 0.1 0.1 0.6\n"  # (10, 8), (50, 8), (10, 48)
NAMES = "names: [cat, dog]\n"


def write(
    root: Path,
    labels: dict[str, str | None],
    yaml: str | None = NAMES + "train: images\n",
    *,
    images_in: str = "images",
    labels_in: str = "labels",
) -> Path:
    """Images and labels by their paths below `images` and `labels`; None: no label file."""
    for stem, text in labels.items():
        picture(root / images_in / f"{stem}.jpg")
        if text is not None:
            path = root / labels_in / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def names(data: DetectionData) -> list[int | str]:
    return [record.image_id for record in data.records]


# -- lines


def test_boxes_and_polygons(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": BOX + TRIANGLE, "b": BOX}))
    assert (data.classes, data.category_ids, data.kind) == (("cat", "dog"), (0, 1), "yolo")
    first, second = data.records
    assert (first.image_id, first.width, first.height) == ("images/a.jpg", W, H)
    assert first.boxes == pytest.approx(np.array([CORNERS, [10, 8, 50, 48]]), abs=1e-9)
    assert first.labels.tolist() == [1, 2]
    assert first.annotation_ids.tolist() == [1, 2]
    assert first.has_mask.tolist() == [False, True]
    assert first.areas == pytest.approx([800, 800], rel=0.03)  # the triangle's mask is of whole pixels
    assert decode_masks(first)[1].sum() == first.areas[1]
    assert second.boxes == pytest.approx(np.array([CORNERS]))
    assert data.repairs.counts == {}


def test_boxes_alone_have_no_masks(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": BOX}))
    assert not data.has_masks
    assert data.records[0].masks is None


@pytest.mark.parametrize(
    ("line", "corners"),
    [
        ("0 0.3 0.5 0.4 0.25 0.87", CORNERS),  # a confidence
        ("0 0.3 0.5 0.4 0.25 0.87 12", CORNERS),  # a confidence and a track
        ("1.0 0.3 0.5 0.4 0.25", CORNERS),
        ("dog\t0.3  0.5\t0.4 0.25", CORNERS),
        ("0, 0.3, 0.5, 0.4, 0.25", CORNERS),
        ("1 0.1 0.1 0.5 0.1 0.1 0.6 0.9", [10, 8, 50, 48]),  # a polygon and a confidence
        ("1 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6", [10, 8, 50, 48]),  # a turned box's four corners
        ("0 0.3 0.5 0.6002 0.25", [-0.01, 30, 60.01, 50]),  # rounding
    ],
)
def test_extra_numbers_of_a_line_are_ignored(tmp_path: Path, line: str, corners: list[float]) -> None:
    data = read_yolo(write(tmp_path, {"a": f"\n  \n{line}\n\n"}))
    assert data.records[0].boxes == pytest.approx(np.array([corners]), abs=1e-9)
    assert data.repairs.counts == {}


@pytest.mark.parametrize(
    ("line", "kind", "num_left"),
    [
        ("0 0.9 0.5 0.4 0.25", "overhang", 2),
        ("0 1.4 0.5 0.2 0.2", "outside", 1),
        ("0 30 40 40 20", "no-shares", 1),  # px
        ("0 0.3 0.5 0 0.25", "zero-area", 1),
        ("0 0.3 0.5 -0.2 0.25", "corners-reversed", 2),
        ("0 0.3 nan 0.4 0.25", "not-finite", 1),
        ("0 0.3 0.5 0.4", "not-finite", 1),
        ("0 0.3 0.5 0.4 wide", "not-finite", 1),
        ("2 0.3 0.5 0.4 0.25", "unknown-category", 1),
        ("-1 0.3 0.5 0.4 0.25", "unknown-category", 1),
        ("0.5 0.3 0.5 0.4 0.25", "unknown-category", 1),
        ("bird 0.3 0.5 0.4 0.25", "unknown-category", 1),
    ],
)
def test_a_faulty_line_is_counted(tmp_path: Path, line: str, kind: str, num_left: int) -> None:
    path = write(tmp_path, {"a": BOX + line + "\n"})
    data = read_yolo(path)
    assert data.repairs.counts == {kind: 1}
    assert len(data.records[0]) == num_left
    assert f"{tmp_path}/labels/a.txt, image images/a.jpg, annotation 2 (" in data.repairs.lines()[0]
    with pytest.raises(UserError, match=r"\(strict\)"):
        read_yolo(path, strict=True)


def test_a_polygon_outside_its_image_is_cut_at_the_edge(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": "0 -0.1 0.25 0.5 0.25 0.5 1.2\n"}))
    assert data.records[0].boxes == pytest.approx(np.array([[0, 20, 50, 80]]))


def test_keypoints_are_not_read_but_counted(tmp_path: Path) -> None:
    pose = NAMES + "train: images\nkpt_shape: [2, 3]\n"
    data = read_yolo(write(tmp_path, {"a": "0 0.3 0.5 0.4 0.25 0.3 0.5 2 0.4 0.5 1\n"}, pose))
    assert data.records[0].boxes == pytest.approx(np.array([CORNERS]))
    assert data.repairs.counts == {"keypoints-left-out": 1}


def test_images_without_labels_and_labels_without_images(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": BOX, "background": None, "empty": ""}))
    assert names(data) == ["images/a.jpg", "images/background.jpg", "images/empty.jpg"]
    assert [len(record) for record in data.records] == [1, 0, 0]
    (tmp_path / "labels" / "lost.txt").write_text(BOX)
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    data = read_yolo(tmp_path)
    assert data.repairs.counts == {"unknown-image": 1}
    assert "lost" in data.repairs.lines()[0]


def test_label_files_with_a_mark_or_in_utf_16(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": None, "b": None})
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_bytes(b"\xef\xbb\xbf" + BOX.encode())
    (root / "labels" / "b.txt").write_bytes(BOX.encode("utf-16"))
    assert [len(record) for record in read_yolo(root).records] == [1, 1]


# -- where things are


@pytest.mark.parametrize(
    ("images", "labels", "yaml"),
    [
        ("images/train", "labels/train", "train: images/train"),
        ("images/train", "labels/train", "path: .\ntrain: ./images/train/"),
        ("images/train", "labels/train", "path: /home/other/set\ntrain: images/train"),
        ("images/train", "labels/train", "path: ../datasets/set\ntrain: images/train"),
        ("images/train", "labels/train", "train: /home/other/set/images/train"),
        ("images/train", "labels/train", 'train: "D:\\\\set\\\\images\\\\train"'),
        ("images/train", "labels/train", "train: [images/train]"),
        ("train/images", "train/labels", "train: ../train/images"),  # Roboflow
        ("train/images", "train/labels", "train: train"),
        ("train", "train", "train: train"),  # labels next to the images
        ("photos", "labels", "train: photos"),
        ("images/a/images", "images/a/labels", "train: images/a/images"),  # the last `images` counts
    ],
)
@pytest.mark.parametrize("classes", [NAMES, "nc: 2\nnames:\n  0: cat\n  1: dog\n", "nc: 2\nnames: ['cat', 'dog']\n"])
def test_images_and_labels_are_matched(tmp_path: Path, images: str, labels: str, yaml: str, classes: str) -> None:
    root = write(tmp_path / "set", {"x": BOX, "y": None}, f"{classes}{yaml}\n", images_in=images, labels_in=labels)
    for path in (root, root / "data.yaml"):
        data = read_detection(path, "train")
        assert names(data) == [f"{images}/x.jpg", f"{images}/y.jpg"]
        assert data.classes == ("cat", "dog")
        assert data.num_objects == 1


def test_splits(tmp_path: Path) -> None:
    yaml = NAMES + "train: images/train\nval: [images/val, images/more]\ntest:\n"
    root = write(tmp_path, {"train/a": BOX, "val/b": BOX, "more/c": BOX}, yaml)
    assert names(read_detection(root)) == ["images/train/a.jpg"]
    for split in ("val", "valid"):
        assert names(read_detection(root, split)) == ["images/val/b.jpg", "images/more/c.jpg"]
    with pytest.raises(UserError, match=r"data\.yaml: no split 'test': name one of train, val with --split"):
        read_detection(root, "test")


def test_a_list_of_images(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": BOX, "b": BOX, "c": BOX}, NAMES + "train: train.txt\n")
    lines = ["./images/c.jpg", "", "# not this one", "/home/other/set/images/a.jpg", "images/gone.jpg"]
    (root / "train.txt").write_text("\r\n".join(lines))
    data = read_yolo(root)
    assert names(data) == ["images/c.jpg", "images/a.jpg"]
    assert data.repairs.counts == {"other-name": 1, "missing-image": 1}


def test_darknets_files_as_cvat_writes_them(tmp_path: Path) -> None:
    folder = "obj_train_data"
    root = write(tmp_path, {"a": BOX, "b": TRIANGLE}, None, images_in=folder, labels_in=folder)
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (root / "train.txt").write_text(f"data/{folder}/a.jpg\ndata/{folder}/b.jpg\n")
    for path in (root, root / "obj.data"):
        data = read_detection(path)
        assert names(data) == [f"{folder}/a.jpg", f"{folder}/b.jpg"]
        assert data.classes == ("cat", "dog")


def test_folders_without_a_description(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": BOX}, None)
    (root / "notes.json").write_text("{}")  # Label Studio's
    assert not is_data_set(root) or is_data_set(root / "notes.json")
    with pytest.raises(UserError, match=r"no class names .* name the classes with --classes"):
        read_detection(root)
    assert read_detection(root, classes=["cow", "pig"]).classes == ("cow", "pig")
    (root / "classes.txt").write_text("cat\ndog\n")
    data = read_detection(root)
    assert (names(data), data.classes) == (["images/a.jpg"], ("cat", "dog"))


def test_folders_a_split_without_a_description(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a": BOX, "valid/b": BOX}, None)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert names(read_detection(root)) == ["images/train/a.jpg"]
    assert names(read_detection(root, "val")) == ["images/valid/b.jpg"]


def test_coco_next_to_labels_of_yolo_is_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, [thing(1, 1, 3, (0, 0, 9, 9))])
    write(tmp_path, {"1": BOX}, None)
    assert read_detection(tmp_path).kind == "coco"


def test_predict_takes_the_images_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path, {"train/a": BOX, "val/b": BOX}, NAMES + "train: images/train\nval: images/val\n")
    assert _pictures([root / "data.yaml"]) == [str(root / "images" / "val" / "b.jpg")]
    assert "1 image of val" in capsys.readouterr().out


# -- faults


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat, dog\ntrain: images\n", r"data\.yaml: not a valid YAML file \("),
        ("names: [cat, dog]\n", "it needs names:, and train: or val:"),
        ("- a\n- b\n", "it needs names:, and train: or val:"),
        ("train: images\n", "no class names"),
        ("nc: 3\nnames: [cat, dog]\ntrain: images\n", "nc: is 3, but names: has 2 classes"),
        ("names: {one: cat}\ntrain: images\n", "must be an integer"),
        ("names: [cat]\ntrain: {a: b}\n", "train: is {'a': 'b'}, but must be a folder, a .txt list or a list of these"),
        ("names: [cat]\ntrain: nowhere\n", "train: 'nowhere' does not exist"),
    ],
)
def test_a_faulty_description_is_named(tmp_path: Path, yaml: str, message: str) -> None:
    write(tmp_path, {"a": BOX}, yaml)
    with pytest.raises(UserError, match=message) as caught:
        read_detection(tmp_path / "data.yaml")
    assert "\n" not in str(caught.value)


def test_a_data_set_without_labels_is_refused_with_the_expected_path(tmp_path: Path) -> None:
    write(tmp_path, {"a": None})
    with pytest.raises(UserError, match="no label file for its 1 image: images/NAME"):
        read_yolo(tmp_path)


def test_classes_without_a_name_keep_their_numbers(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": BOX}, "names: {0: cat, 7: dog}\ntrain: images\n"))
    assert data.category_ids == (0, 7)


# -- scores


def test_the_ground_truth_scores_one(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": BOX, "b": None}))
    results = [detection("images/a.jpg", 0, tuple(CORNERS), 0.9)]
    assert coco_scores(data, results)["bbox"].values["AP"] == pytest.approx(1.0)


# -- label files under another name, or in another place


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.jpg", "labels/A.txt"),
        ("images/a.jpg", "Labels/a.txt"),
        ("images/a.jpg", "labels/a.jpg.txt"),
        ("images/\u00fc.jpg", "labels/u\u0308.txt"),
        ("images/train/a.jpg", "LABELS/Train/a.TXT"),
    ],
)
def test_a_label_file_with_a_similar_name_is_matched(tmp_path: Path, image: str, label: str) -> None:
    picture(tmp_path / image)
    (tmp_path / label).parent.mkdir(parents=True)
    (tmp_path / label).write_text(BOX)
    (tmp_path / "data.yaml").write_text(NAMES + "train: images\n")
    data = read_yolo(tmp_path)
    assert data.records[0].boxes == pytest.approx(np.array([CORNERS]), abs=1e-9)
    (line,) = data.repairs.lines()
    assert line.startswith("1 file name that differs from the name of the file, matched to the only file that fits")
    assert f'{label}" is the label file of "{Path(image).name}"' in line


def test_a_label_file_of_another_image_is_not_matched(tmp_path: Path) -> None:
    for name in ("a", "A", "b"):
        picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "A.txt").write_text(BOX)
    (tmp_path / "data.yaml").write_text(NAMES + "train: images\n")
    data = read_yolo(tmp_path)
    assert {record.image_id: len(record) for record in data.records} == {
        "images/A.jpg": 1, "images/a.jpg": 0, "images/b.jpg": 0,
    }  # fmt: skip
    assert data.repairs.counts == {}


@pytest.mark.parametrize("listing", ["classes.txt", "obj.names", "_darknet.labels"])
def test_labels_next_to_the_images(tmp_path: Path, listing: str) -> None:
    """As LabelImg and Darknet keep them."""
    write(tmp_path, {"a": BOX, "b": None}, None, images_in=".", labels_in=".")
    (tmp_path / listing).write_text("cat\ndog\n")
    assert is_data_set(tmp_path)
    data = read_detection(tmp_path)
    assert data.classes == ("cat", "dog")
    assert {record.image_id: len(record) for record in data.records} == {"a.jpg": 1, "b.jpg": 0}


def test_labels_next_to_the_images_of_each_split(tmp_path: Path) -> None:
    """As Roboflow writes Darknet's form."""
    for part, stem in (("train", "a"), ("valid", "b")):
        write(tmp_path, {stem: BOX}, None, images_in=part, labels_in=part)
        (tmp_path / part / "_darknet.labels").write_text("cat\n")
    assert names(read_detection(tmp_path, "train")) == ["train/a.jpg"]
    assert names(read_detection(tmp_path, "val")) == ["valid/b.jpg"]


def test_captions_next_to_images_are_not_labels(tmp_path: Path) -> None:
    write(tmp_path, {"a": "a photo of 2 cats and 1 dog\n"}, None, images_in=".", labels_in=".")
    with pytest.raises(UserError, match="no detection data set"):
        read_detection(tmp_path)


def test_class_names_are_read_as_text(tmp_path: Path) -> None:
    """YAML takes no and yes for False and True."""
    data = read_yolo(write(tmp_path, {"a": BOX}, "names: [no, yes, 1.0]\ntrain: images\n"))
    assert data.classes == ("no", "yes", "1.0")
