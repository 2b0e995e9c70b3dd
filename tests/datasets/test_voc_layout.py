"""VOC's files as tools write them: lists and XML in any encoding, images with any ending, odd values."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from detection_data import picture, xml_object
from resim.datasets.layouts import read_detection
from resim.datasets.voc import read_voc
from resim.datasets.voc_layout import read_ids
from resim.datasets.voc_xml import parse_xml, read_flag
from resim.errors import UserError

DOG = xml_object("dog", (11, 21, 50, 60))


def year(root: Path, listing: bytes, *stems: str, ending: str = ".jpg") -> Path:
    """One year with a list `train` and a dog in every image, without <size>."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(listing)
    for stem in stems:
        picture(root / "JPEGImages" / f"{stem}{ending}")
        annotate(root, stem)
    return root


def annotate(root: Path, stem: str, things: str = DOG, filename: str = "") -> None:
    text = f"<annotation><filename>{filename}</filename>{things}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")


def images(root: Path) -> list[str]:
    return [Path(record.image).name for record in read_voc(root, "train").records]


# -- lists


@pytest.mark.parametrize(
    ("listing", "ids"),
    [
        (b"p1\np2\n", ["p1", "p2"]),
        (b"\xef\xbb\xbfp1\r\np2\r\n", ["p1", "p2"]),
        ("p1\r\np2".encode("utf-16"), ["p1", "p2"]),
        ("p1\np2".encode("utf-16-be"), ["p1", "p2"]),
        ("p1\np2".encode("utf-16-le"), ["p1", "p2"]),
        (b"p1.jpg\np2.PNG\n", ["p1", "p2"]),
        (b"p1.xml\np2.heic\n", ["p1", "p2"]),
        (b"  p1  \n\n \t\np2\t\n", ["p1", "p2"]),
        (b"p1 -1\np2  1\n", ["p1", "p2"]),
        (b"p1 0\np2\t-1\n", ["p1", "p2"]),
        (b"JPEGImages/p1.jpg\n/home/other/VOC2007/JPEGImages/p2.jpg 1\n", ["p1", "p2"]),
        (b"JPEGImages\\p1.jpg\nC:\\VOC\\p2.jpg\n", ["p1", "p2"]),
        (b"IMG 001\nIMG 002\n", ["IMG 001", "IMG 002"]),
        (b"IMG 001 1\nIMG 002.jpg -1\n", ["IMG 001", "IMG 002"]),
        (b"take 1\ntake 1 0\n", ["take 1", "take 1"]),  # an id that ends like a flag
        (b"a.b.jpg\nsub/p3\n", ["a.b", "sub/p3"]),
        ("照片\n".encode("gb2312"), ["照片"]),
        ("café\n".encode("latin-1"), ["café"]),
        (b"gone 1\ngone.jpg\n", ["gone", "gone"]),
    ],
)
def test_the_ids_of_a_list(tmp_path: Path, listing: bytes, ids: list[str]) -> None:
    there = {"p1", "p2", "IMG 001", "IMG 002", "take 1", "a.b", "sub/p3", "照片", "café"}
    (tmp_path / "list.txt").write_bytes(listing)
    assert read_ids(tmp_path / "list.txt", there.__contains__) == ids


# -- images


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG", ".png", ".PNG", ".webp", ".bmp", ".tif"])
def test_an_image_has_its_ids_name_with_any_ending(tmp_path: Path, ending: str) -> None:
    data = read_voc(year(tmp_path, b"p1\np2\n", "p1", "p2", ending=ending), "train")
    assert [Path(record.image).name for record in data.records] == [f"p1{ending}", f"p2{ending}"]
    assert data.repairs.counts == {}
    assert data.records[0].boxes.tolist() == [[10, 20, 50, 60]]


def test_filename_decides_if_the_id_does_not(tmp_path: Path) -> None:
    year(tmp_path, b"a\nb\nc\nd\ne\n", "a", "b")
    annotate(tmp_path, "a", filename="renamed.jpg")  # no such file: the id's is taken
    annotate(tmp_path, "b", filename="a.jpg")  # another image: that of the id is used, and reported
    annotate(tmp_path, "c", filename="other name")
    picture(tmp_path / "JPEGImages" / "other name.png")
    annotate(tmp_path, "d", filename="a.jpg")  # the picture of another XML file
    annotate(tmp_path, "e", filename="../../secret.jpg")
    picture(tmp_path.parent / "secret.jpg")
    data = read_voc(tmp_path, "train")
    assert [Path(record.image).name for record in data.records] == ["a.jpg", "b.jpg", "other name.png"]
    assert data.repairs.counts == {"other-name": 2, "missing-image": 2}
    line = data.repairs.lines()[0]
    assert '<filename> is "a.jpg", but "b.jpg" is used' in line
    assert '"c" is "other name.png" by its <filename>' in line


def test_names_differ_in_case_and_normal_form(tmp_path: Path) -> None:
    year(tmp_path, b"IMG_1\n", "img_1")
    data = read_voc(tmp_path, "train")
    assert [record.image_id for record in data.records] == ["IMG_1"]
    assert data.repairs.counts == {"other-name": 1}


# -- XML


@pytest.mark.parametrize(
    "data",
    [
        '<?xml version="1.0" encoding="GB2312"?><a>小狗</a>'.encode("gb2312"),
        '<?xml version="1.0" encoding="gbk"?><a>小狗</a>'.encode("gbk"),
        '<?xml version="1.0" encoding="big5"?><a>小狗</a>'.encode("big5"),
        "<?xml version='1.0' encoding='Shift_JIS'?><a>小狗</a>".encode("shift_jis"),
        '<?xml version="1.0" encoding="utf-16"?><a>小狗</a>'.encode("utf-16"),
        '<?xml version="1.0" encoding="utf-8"?><a>小狗</a>'.encode("utf-16"),  # it declares another encoding
        '<?xml version="1.0" encoding="utf-16"?><a>小狗</a>'.encode(),
        '<?xml version="1.0" encoding="utf-8"?><a>小狗</a>'.encode("gb2312"),
        '\ufeff<?xml version="1.0"?><a>小狗</a>'.encode(),
        '\r\n<?xml version="1.0"?><a>小狗</a>'.encode(),
        '<?xml version="1.0" encoding="nonsense"?><a>小狗</a>'.encode(),
        "<a>小狗</a>".encode(),
    ],
)
def test_xml_in_any_encoding(data: bytes) -> None:
    assert parse_xml(data).text == "小狗"


def test_latin_1_without_a_declaration() -> None:
    assert parse_xml("<a>café</a>".encode("latin-1")).text == "café"
    assert parse_xml('<?xml version="1.0" encoding="latin-1"?><a>café</a>'.encode("latin-1")).text == "café"


@pytest.mark.parametrize("data", [b"", b"<a>", b"no xml", b"\xff\xfe", b'<?xml encoding="gb2312"?><a>'])
def test_other_data_than_xml_are_refused(data: bytes) -> None:
    with pytest.raises(ElementTree.ParseError):
        parse_xml(data)


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        *((word, True) for word in ("1", "True", "yes", " y ", "1.0", "2")),
        *((word, False) for word in ("0", "false", "No", "", None, "Unspecified", "0.0")),
        *((word, None) for word in ("maybe", "O")),
    ],
)
def test_flags(text: str | None, flag: bool | None) -> None:
    assert read_flag(text) is flag


def test_unusual_values_are_read_or_counted(tmp_path: Path) -> None:
    year(tmp_path, b"a\n", "a")
    objects = (
        xml_object("dog", (10.5, 20.25, 50.75, 60)),
        xml_object("dog", (50, 60, 11, 21)),
        DOG.replace("<difficult>0", "<difficult>True"),
        DOG.replace("<difficult>0", "<difficult>perhaps"),
        DOG.replace("<difficult>0</difficult>", ""),
    )
    annotate(tmp_path, "a", "".join(objects))
    data = read_voc(tmp_path, "train")
    (record,) = data.records
    assert record.boxes.tolist() == [[9.5, 19.25, 50.75, 60], *[[10, 20, 50, 60]] * 4]
    assert record.difficult.tolist() == [False, False, True, False, False]
    assert data.repairs.counts == {"corners-reversed": 1, "odd-flag": 1}
    assert "annotation 4 (difficult 'perhaps')" in data.repairs.lines()[1]


# -- without lists


@pytest.mark.parametrize(("xml", "pictures"), [("", ""), ("Annotations", "JPEGImages"), ("labels", "data")])
def test_xml_without_lists(tmp_path: Path, xml: str, pictures: str) -> None:
    for stem in ("a", "b"):
        picture(tmp_path / "set" / pictures / f"{stem}.png")
        (tmp_path / "set" / xml).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / xml / f"{stem}.xml").write_text(f"<annotation>{DOG}</annotation>")
    for path, split in ((tmp_path / "set", None), (tmp_path, "set")):
        data = read_detection(path, split)
        assert [Path(record.image).name for record in data.records] == ["a.png", "b.png"]
        assert data.kind == "voc"


def test_an_unknown_list_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    year(tmp_path, b"a\n", "a")
    with pytest.raises(UserError, match=r"trainval\.txt: no such list: name one of train with --split"):
        read_voc(tmp_path)


def test_the_encoding_of_a_list_is_the_one_whose_ids_exist(tmp_path: Path) -> None:
    listing = "\u732b\n".encode("gb18030")  # a cat; its bytes are an accented e in UTF-8
    assert listing.decode() == "\u00e8\n"
    assert images(year(tmp_path, listing, "\u732b")) == ["\u732b.jpg"]


def test_names_in_a_namespace_are_read(tmp_path: Path) -> None:
    root = year(tmp_path, b"a\n", "a")
    (root / "Annotations" / "a.xml").write_text(f'<annotation xmlns="http://x.org">{DOG}</annotation>')
    assert read_voc(root, "train").records[0].boxes.tolist() == [[10, 20, 50, 60]]


def test_an_object_without_a_box_is_reported(tmp_path: Path) -> None:
    root = year(tmp_path, b"a\n", "a")
    annotate(root, "a", DOG + "<object><name>dog</name><polygon><x1>3</x1></polygon></object>")
    (line,) = read_voc(root, "train").repairs.lines()
    assert line.startswith("1 annotation with neither a bbox of four numbers nor a mask")
    assert line.endswith("annotation 2 (no bndbox)")


def test_exchanged_width_and_height_are_repaired_if_the_boxes_prove_it(tmp_path: Path) -> None:
    size = "<size><width>80</width><height>100</height></size>"  # the file is 100 x 80
    root = year(tmp_path, b"a\nb\n", "a", "b")
    annotate(root, "a", size + xml_object("dog", (11, 21, 95, 60)))  # wider than 80
    annotate(root, "b", size + DOG)
    data = read_voc(root, "train")
    assert [record.boxes.tolist() for record in data.records] == [[[10, 20, 95, 60]], [[10, 20, 50, 60]]]
    (line,) = data.repairs.lines()
    assert line.startswith(
        "2 images with width and height exchanged in their annotations, read with the size of the file"
    )
    annotate(root, "a", size + xml_object("dog", (11, 21, 50, 95)))  # higher than 80: of an image that was turned
    with pytest.raises(UserError, match=r"2 image files whose sizes differ .*, skipped with 2 annotations"):
        read_voc(root, "train")
    annotate(root, "a", size + DOG)  # which it was cannot be known
    with pytest.raises(UserError, match="2 image files whose sizes differ"):
        read_voc(root, "train")
