"""CSV files of images and classes as spreadsheets save them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from resim.errors import UserError
from resim.probes.label_table import read_table
from resim.probes.labels import read_images


def images(folder: Path, count: int = 4) -> Path:
    for index in range(count):
        Image.new("RGB", (4, 3)).save(folder / f"{index}.jpg")
    return folder / "labels.csv"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
def test_a_table_in_any_unicode_encoding_is_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    path = images(tmp_path)
    text = "path,label\r\n0.jpg,été\r\n1.jpg,hiver\r\n".replace(",", delimiter)
    path.write_bytes(text.encode(encoding))
    assert read_table(str(path)).labels == ["été", "hiver"]


def test_classes_in_another_encoding_are_refused_with_their_line(tmp_path: Path) -> None:
    path = images(tmp_path)
    path.write_bytes("path,label\n0.jpg,hiver\n1.jpg,été\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"labels.csv, line 3: a class that is not in UTF-8: save the file as UTF-8"):
        read_table(str(path))


def test_classes_that_differ_in_letter_case_are_reported(tmp_path: Path) -> None:
    path = images(tmp_path)
    path.write_text("path,label\n0.jpg,Dog\n1.jpg,dog\n2.jpg,cat\n3.jpg,cat \n")
    found = read_images(path)
    assert found.classes == ("Dog", "cat", "dog")
    assert found.note == "classes whose names differ only in letter case: Dog and dog"
