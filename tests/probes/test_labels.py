"""Images with classes from class folders, CSV files and tar shards: the same images in every layout."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resim.errors import UserError
from resim.probes.labels import ProbeImages, read_images, read_sets, stratified
from resim.views.decode import BadImageError

CLASSES = ("ant", "bee", "cat")


def png(value: int) -> bytes:
    """An image of one gray value."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(file, format="png")
    return file.getvalue()


def value_of(images: ProbeImages, index: int) -> int:
    return int(np.asarray(images.open(index).decode())[0, 0, 0])


def check(images: ProbeImages) -> None:
    """Image of gray value 10 * class + i for i in 0, 1."""
    assert images.classes == CLASSES
    assert images.labels is not None
    values = {value_of(images, i): CLASSES[images.labels[i]] for i in range(len(images))}
    assert values == {10 * c + i: name for c, name in enumerate(CLASSES) for i in range(2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for c, name in enumerate(CLASSES):
        (tmp_path / "set" / name / "deep").mkdir(parents=True)
        for i in range(2):
            (tmp_path / "set" / name / ("deep" if i else "") / f"{i}.png").write_bytes(png(10 * c + i))
    return tmp_path / "set"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_class_folders(folder: Path) -> None:
    images = read_images(folder)
    assert images.kind == "class folders"
    check(images)


def test_a_csv_file_with_and_without_a_header(folder: Path) -> None:
    rows = [f"{name}/{'deep/' if i else ''}{i}.png,{name}" for name in CLASSES for i in range(2)]
    file = folder / "all.csv"
    for text in (
        "\n".join(rows),
        "path,label\n" + "\n\n".join(rows) + "\n",
        "\ufeffPath,Label\r\n" + "\r\n".join(rows),
    ):
        file.write_text(text, encoding="utf-8", newline="")
        check(read_images(file))
    assert read_images(file).kind == "CSV"


def test_tar_shards_in_webdataset_layout(tmp_path: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for c, name in enumerate(CLASSES):
            members[f"{c}.png"], members[f"{c}.cls"] = png(10 * c + shard), f"{name}\n".encode()
            members[f"{c}.json"] = b"{}"
        write_tar(tmp_path / f"shard-{shard}.tar", members)
    for source in (tmp_path, tmp_path / "shard-*.tar", str(tmp_path / "shard-[01].tar")):
        images = read_images(source)
        assert images.kind == "tar shards, .cls"
        check(images)
    assert images.name(0) == f"{tmp_path / 'shard-0.tar'}:0.png"


def test_tar_shards_of_class_folders(tmp_path: Path) -> None:
    members = {f"./{name}/{i}.png": png(10 * c + i) for c, name in enumerate(CLASSES) for i in range(2)}
    images = read_images(write_tar(tmp_path / "a.tar", members))
    assert images.kind == "tar shards, folders"
    check(images)


def test_a_key_ends_at_the_first_dot_of_its_name(tmp_path: Path) -> None:
    members = {"a.b/1.left.png": png(1), "a.b/1.cls": b"3", "a.b/2.left.png": png(2), "a.b/2.cls": b"20"}
    images = read_images(write_tar(tmp_path / "a.tar", members))
    assert images.classes == ("3", "20")  # numbers in the order of numbers
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]


def test_a_tar_with_a_path_upwards_or_a_link_is_refused(tmp_path: Path) -> None:
    """By the same rule as in pre-training, and before anything is read."""
    members = {"b.png": png(2), "b.cls": b"y", "../secret.png": png(1)}
    with pytest.raises(UserError, match=r"a\.tar: '\.\./secret\.png' leads out of the archive"):
        read_images(write_tar(tmp_path / "a.tar", members))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("c.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.cls"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"b\.tar: 'c\.cls' is a link"):
        read_images(tmp_path / "b.tar")


def test_images_without_classes(folder: Path, tmp_path: Path) -> None:
    flat = folder / "ant"
    (flat / "more.png").write_bytes(png(5))
    for source in (flat, folder / "ant" / "0.png"):
        images = read_images(source)
        assert images.labels is None
        assert images.kind == "unlabelled"
    assert read_images(folder, labelled=False).labels is None
    tar = write_tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2)})
    assert read_images(tar).labels is None


def test_train_and_val_of_a_folder_are_used(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    folder.rename(home / "train")
    (home / "val" / "cat").mkdir(parents=True)
    (home / "val" / "bee").mkdir()
    for name in ("cat", "bee"):
        (home / "val" / name / "9.png").write_bytes(png(9))
    train, test = read_sets(home)
    assert (len(train), len(test)) == (6, 2)
    assert test.classes == CLASSES
    assert test.labels is not None
    assert test.labels.tolist() == [1, 2]
    assert len(read_sets(home / "train", home / "val")[1]) == 2


def test_without_a_test_set_part_of_each_class_is_held_out(folder: Path) -> None:
    train, test = read_sets(folder)
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 2]
    assert not {train.name(i) for i in range(3)} & {test.name(i) for i in range(3)}
    again = read_sets(folder)[1]
    assert [again.name(i) for i in range(3)] == [test.name(i) for i in range(3)]


def test_a_stratified_share() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    chosen = stratified(labels, 0.2, seed=1)
    assert [int(chosen[labels == c].sum()) for c in range(4)] == [10, 2, 1, 0]
    assert not np.array_equal(chosen, stratified(labels, 0.2, seed=2))


def test_a_sample_has_distinct_images_in_their_order(folder: Path) -> None:
    images = read_images(folder)
    some = images.sample(4, seed=0)
    assert len(some) == 4
    assert some.labels is not None
    assert all(some.name(i).split("/")[-2 - ("deep" in some.name(i))] == CLASSES[some.labels[i]] for i in range(4))
    assert images.sample(0, seed=0) is images
    assert images.sample(6, seed=0) is images


def test_the_fingerprint_does_not_depend_on_the_folder(folder: Path, tmp_path: Path) -> None:
    before = read_images(folder).fingerprint()
    moved = folder.rename(tmp_path / "elsewhere")
    assert read_images(moved).fingerprint() == before
    (moved / "ant").rename(moved / "axolotl")
    assert read_images(moved).fingerprint() != before


# -- errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("ant/0.png\n", "line 1: expected path,label"),
        ("ant/0.png,\n", "line 1: expected path,label"),
        ("path,label\nant/0.png,ant\ngone.png,ant\n", "line 3: gone.png: there is no such file"),
        ("ant/0.png,ant\nbee/0.png,ant\n", "all 2 images are of one class, 'ant'"),
    ],
)
def test_csv_files_that_cannot_be_read(folder: Path, text: str, message: str) -> None:
    (folder / "all.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_images(folder / "all.csv")


def test_tars_that_cannot_be_read(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    for members, message in (
        ({"readme.md": b""}, "no images in 1 tar files"),
        ({"1.png": png(1), "1.cls": b"0", "2.png": png(2)}, "2.png has no class, 2.cls is expected"),
        ({"1.png": png(1), "1.cls": b"", "2.png": png(2), "2.cls": b"0"}, "1.png has no class"),
    ):
        with pytest.raises(UserError, match=message):
            read_images(write_tar(tar, members))
    for data in (b"", b"no tar at all" * 100):
        tar.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.tar: is not a readable tar file|no images in"):
            read_images(tar)
    whole = write_tar(tar, {"1.png": png(1) * 20, "1.cls": b"0"}).read_bytes()
    tar.write_bytes(whole[:700])
    with pytest.raises(UserError, match=r"a\.tar"):
        read_images(tar)
    with pytest.raises(UserError, match="there is no such file"):
        read_images(tmp_path / "gone.tar")
    with pytest.raises(UserError, match="images cannot be read from a compressed tar"):
        read_images(tmp_path / "a.tar.gz")


def test_a_test_set_with_other_classes_is_an_error(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("ant", "dog"):
        (other / name).mkdir(parents=True)
        (other / name / "0.png").write_bytes(png(0))
    with pytest.raises(UserError, match="class 'dog' is not among the 3 classes"):
        read_sets(folder, other)


def test_a_shard_that_no_longer_exists_is_a_bad_image(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2)})
    images = read_images(tar)
    tar.unlink()
    with pytest.raises(BadImageError, match="FileNotFoundError"):
        images.open(0)


def test_real_shards(shared: Path) -> None:
    images = read_images(shared / "data" / "places" / "scenes_val.tar")
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [15] * 100
    assert images.open(1499).decode().size == (128, 128)


# -- names as people give them


def write_classes(root: Path, images: dict[str, int], first: int = 0) -> Path:
    value = first
    for name, count in images.items():
        (root / name).mkdir(parents=True)
        for _ in range(count):
            (root / name / f"{value}.png").write_bytes(png(value))
            value += 1
    return root


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("train", "valid"), ("TRAINING", "Validation")])
def test_parts_of_any_case_are_no_classes(tmp_path: Path, train: str, test: str) -> None:
    write_classes(tmp_path / train, {"ant": 2, "bee": 2})
    write_classes(tmp_path / test, {"ant": 1, "bee": 1}, first=9)
    learned, tested = read_sets(tmp_path)
    assert (learned.classes, len(learned), len(tested)) == (("ant", "bee"), 4, 2)


def test_parts_under_other_names_are_refused_as_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train2017": 2, "val2017": 2})
    with pytest.raises(UserError, match=r"train2017 and val2017 are parts .* --test \S+val2017, or add --unlabelled"):
        read_sets(tmp_path)
    assert len(read_sets(tmp_path, labelled=False)[0]) == 4


def test_classes_that_differ_in_letter_case_are_one(tmp_path: Path) -> None:
    train = write_classes(tmp_path / "a", {"ant": 2, "bee": 2})
    tested = read_sets(train, write_classes(tmp_path / "b", {"Ant": 1, "BEE": 2}, first=9))[1]
    assert tested.labels is not None
    assert tested.labels.tolist() == [0, 1, 1]
    assert tested.note == "classes matched by name: Ant for ant, BEE for bee"
    with pytest.raises(UserError, match=r"class 'ants' is not among the 2 classes .*; the nearest is 'ant'"):
        read_sets(train, write_classes(tmp_path / "c", {"ants": 1, "bee": 2}, first=20))


def test_why_a_folder_gives_no_classes(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set" / "images", {"ant": 1, "bee": 1}).parent
    assert read_images(root).why.endswith(f"if its folders are the classes, name {root / 'images'}")
    (root / "overview.png").write_bytes(png(7))
    assert read_images(root).why.startswith("1 of 3 images lie in no class folder, such as overview.png")
    assert read_images(write_classes(tmp_path / "one", {"ant": 2})).why.startswith("all images lie in one folder, ant")


def test_a_class_without_test_images_is_named(tmp_path: Path) -> None:
    tested = read_sets(write_classes(tmp_path, {"ant": 4, "bee": 4, "eel": 1}))[1]
    assert tested.note == "no test image of 1 class: eel"


def test_training_images_are_no_test_images(tmp_path: Path) -> None:
    train = write_classes(tmp_path / "a", {"ant": 2, "bee": 2})
    with pytest.raises(UserError, match="4 of its images are training images too"):
        read_sets(train, train)
    copies = write_classes(tmp_path / "b", {"bee": 1, "ant": 1}, first=3)  # of 3 and 4, 3 is a training image
    assert "warning: 1 test image has the same bytes as a training image" in read_sets(train, copies)[1].note


@pytest.mark.parametrize(
    "text",
    [
        "filename,class\nant/0.png,ant\nbee/0.png,bee\n",
        "id,label,image\n7,ant,ant/0.png\n8,bee,bee/0.png\n",
        "ant/0.png;ant\nbee/0.png;bee\n",
        "path\tlabel\nant/0.png\tant\nbee/0.png\tbee\n",
        "ant\\0.png,ant\nbee\\0.png,bee\n",
        "ant/0.png,ant\nbee/0.png,bee\nant/0.png,ant\n",
    ],
)
def test_csv_files_of_other_programs(folder: Path, text: str) -> None:
    (folder / "all.csv").write_text(text)
    images = read_images(folder / "all.csv")
    assert images.labels is not None
    assert [images.classes[label] for label in images.labels] == ["ant", "bee"]
    assert images.note == (
        "1 row left out: the image is listed before, with the same class"
        if "ant/0.png,ant\nbee/0.png,bee\nant" in text
        else ""
    )


def test_csv_files_that_contradict_themselves(folder: Path) -> None:
    for text, reason in (
        ("ant/0.png,ant\nbee/0.png,bee\nant/0.png,bee\n", "line 3: .* of class 'bee', in line 1 of 'ant'"),
        ("ant,ant/0.png\n", "there is no such file; the path comes first, then the label"),
    ):
        (folder / "all.csv").write_text(text)
        with pytest.raises(UserError, match=reason):
            read_images(folder / "all.csv")
