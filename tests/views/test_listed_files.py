"""Lines of a list of paths that are written otherwise than the file's path."""

from __future__ import annotations

from pathlib import Path

import pytest

from resim.errors import UserError
from resim.views.folder import find_images


@pytest.mark.parametrize(
    "line",
    [
        "images/b c.jpg",
        "images/b c.jpg \t",
        '"images/b c.jpg"',
        "'images/b c.jpg'",
        "images\\b c.jpg",
        '"images\\b c.jpg" ',
    ],
)
def test_a_line_may_have_spaces_quotes_and_backslashes(tmp_path: Path, line: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b c.jpg").touch()
    (tmp_path / "list.txt").write_text(f"{line}\r\n")
    assert [Path(path).name for path in find_images(tmp_path / "list.txt")] == ["b c.jpg"]


def test_a_file_whose_name_has_quotes_is_taken_as_it_stands(tmp_path: Path) -> None:
    for name in ('"a".jpg', "a.jpg", " a.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text('"a".jpg\n a.jpg\n')
    assert [Path(path).name for path in find_images(tmp_path / "list.txt")] == ['"a".jpg', " a.jpg"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.zip", "unpack it, and name its folder"),
        ("a.csv", "save its paths alone, one a line, as .txt"),
        ("a.json", "name the folder of its images"),
    ],
)
def test_a_source_of_another_kind_has_a_remedy(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"nor a .txt file of paths: {hint}$"):
        find_images(tmp_path / name)


def test_a_folder_in_a_list_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "list.txt").write_text("inner\n")
    with pytest.raises(UserError, match="inner: there is no such file; it is a folder: name it instead of the list"):
        find_images(tmp_path / "list.txt")
