"""Images are found at any depth, once, and in the same order on all processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from resim.errors import UserError
from resim.views.folder import PathList, find_images


def touch(folder: Path, *names: str) -> None:
    """Empty files: finding images opens none of them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder: Path, paths: Sequence[str]) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths]


def refusal(sources: Sequence[str | Path]) -> str:
    with pytest.raises(UserError) as caught:
        find_images(sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is read


def test_images_at_any_depth_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/c/d/e.png", "a/z.jpg", "c.jpg", "a/c/a.jpg")
    assert names(tmp_path, find_images([tmp_path])) == ["a/c/a.jpg", "a/c/d/e.png", "a/z.jpg", "b.jpg", "c.jpg"]


def test_the_order_does_not_depend_on_the_order_in_which_files_are_created(tmp_path: Path) -> None:
    letters = "qwertyuiop"
    for folder, written in (("one", letters), ("two", letters[::-1])):
        touch(tmp_path / folder, *(f"{letter}.jpg" for letter in written))
    paths = [names(tmp_path / folder, find_images([tmp_path / folder])) for folder in ("one", "two")]
    assert paths[0] == paths[1] == [f"{letter}.jpg" for letter in sorted(letters)]


def test_extensions_count_in_any_case_and_other_files_are_passed_over(tmp_path: Path) -> None:
    images = ["a.jpg", "b.JPG", "c.JpEg", "d.jpe", "e.jfif", "f.PNG", "g.webp", "h.bmp", "i.tif", "j.TIFF"]
    touch(tmp_path, *images, "notes.txt", "k.gif", "l.jpg.part", "jpg", "m.jpgx", "n")
    assert names(tmp_path, find_images([tmp_path])) == images


def test_names_that_start_with_a_dot_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.jpg", "._resource.jpg", ".thumbnails/a.jpg", "shown/.git/b.jpg", "shown/c.jpg")
    assert names(tmp_path, find_images([tmp_path])) == ["shown/c.jpg"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "odd.jpg/inside.jpg")
    assert names(tmp_path, find_images([tmp_path])) == ["odd.jpg/inside.jpg"]


def test_a_hidden_folder_is_read_when_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, ".data/a.jpg")
    assert names(tmp_path, find_images([tmp_path / ".data"])) == [".data/a.jpg"]


def test_one_image_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "only.JPG", "other.jpg")
    assert names(tmp_path, find_images([tmp_path / "only.JPG"])) == ["only.JPG"]


def test_sources_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "b/2.jpg", "a/3.jpg", "z.png")
    paths = find_images([tmp_path / "z.png", tmp_path / "b", tmp_path / "a"])
    assert names(tmp_path, paths) == ["z.png", "b/1.jpg", "b/2.jpg", "a/3.jpg"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(tmp_path, find_images(["~/photos"])) == ["photos/a.jpg"]


# -- links, and files with several paths


def test_links_to_files_and_folders_are_resolved(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a.jpg", "deep/b.jpg")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked.jpg").symlink_to(tmp_path / "store" / "a.jpg")
    (data / "folder").symlink_to(tmp_path / "store" / "deep", target_is_directory=True)
    (data / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert names(data, find_images([data])) == ["folder/b.jpg", "linked.jpg"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/x.jpg", "a/y.jpg")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    assert names(tmp_path, find_images([tmp_path])) == ["a/b/x.jpg", "a/y.jpg"]


def test_a_link_to_itself_is_passed_over_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    paths = find_images([tmp_path])
    assert names(tmp_path, paths) == ["a.jpg"]
    assert paths.note() == "1 image; passed over: 4 links to nothing or to themselves"


def test_a_file_with_several_links_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "m/x.jpg", "m/y.jpg")
    (tmp_path / "m" / "z.jpg").symlink_to(tmp_path / "m" / "x.jpg")
    (tmp_path / "n").symlink_to(tmp_path / "m", target_is_directory=True)
    assert names(tmp_path, find_images([tmp_path])) == ["m/x.jpg", "m/y.jpg"]


def test_a_file_in_several_sources_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "c.jpg")
    (tmp_path / "list.txt").write_text("a/1.jpg\n./c.jpg\na/b/../1.jpg\n")
    monkeypatch.chdir(tmp_path)
    sources = ["a/b", "a", tmp_path / "a", "./a/", "c.jpg", tmp_path / "list.txt", Path("a") / ".." / "c.jpg"]
    assert list(find_images(sources)) == ["a/b/2.jpg", "a/1.jpg", "c.jpg"]


def test_files_of_the_same_name_in_two_folders_are_two(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    assert names(tmp_path, find_images([tmp_path])) == ["a/1.jpg", "b/1.jpg"]


# -- what is passed over


def test_files_that_are_passed_over_are_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.png", "c.heic", "d/e.HEIC", "f.gif", "notes.txt", "d/readme", "x.tar", ".hidden.jpg")
    touch(tmp_path, ".git/config", ".DS_Store")
    (tmp_path / "d" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "d" / "again.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "d" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    paths = find_images([tmp_path])
    assert names(tmp_path, paths) == ["a.jpg", "b.png"]
    assert paths.note() == (
        "2 images; passed over: 2 .heic, 1 .gif (image formats that are not read), 1 without an ending, 1 .txt (no "
        "images by their endings), 1 .tar in a folder with image files (name them to read them), "
        "2 names that start with a dot, "
        "1 link to nothing or to itself, 1 link to a folder above it, 1 pipe, socket or device, 1 further path to the "
        "same file"
    )


def test_no_line_is_printed_if_no_file_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/c.png")
    paths = find_images([tmp_path])
    assert paths.note() == ""
    assert not paths.passed


def test_rare_endings_are_summed(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", *(f"{n}.txt" for n in range(1200)), *(f"x.{letter}{letter}" for letter in "bcdefghi"))
    assert find_images([tmp_path]).note() == (
        "1 image; passed over: 1,200 .txt, 1 .bb, 1 .cc, 1 .dd, 1 .ee, 1 .ff, 3 others (no images by their endings)"
    )


def test_the_error_of_an_empty_folder_counts_what_was_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.heic", "b.heic")
    assert refusal([tmp_path]).endswith("are read; passed over: 2 .heic (image formats that are not read)")


# -- lists of paths


def test_a_list_has_paths_relative_to_its_folder_and_absolute_ones(tmp_path: Path) -> None:
    touch(tmp_path, "data/b.jpg", "data/a.jpg", "far/c", "far/with space.jpg")
    lines = ["# chosen by hand", "", "b.jpg", "   ", str(tmp_path / "far" / "c"), "a.jpg", "../far/with space.jpg"]
    (tmp_path / "data" / "chosen.TXT").write_text("\r\n".join(lines))
    paths = find_images([tmp_path / "data" / "chosen.TXT"])
    assert names(tmp_path, [os.path.normpath(path) for path in paths]) == [
        "data/b.jpg",
        "far/c",
        "data/a.jpg",
        "far/with space.jpg",
    ]


def test_a_missing_file_of_a_list_is_reported_with_its_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text("# two images\n\na.jpg\ngone.jpg\n")
    assert refusal([listed]) == f"{listed}, line 4: gone.jpg: there is no such file"


def test_a_folder_in_a_list_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "inner/a.jpg")
    (tmp_path / "list.txt").write_text("inner\n")
    assert "line 1: inner: there is no such file" in refusal([tmp_path / "list.txt"])


def test_a_list_of_comments_has_no_image(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing yet\n\n")
    assert "no images found" in refusal([tmp_path / "list.txt"])


# -- errors, in one line


def test_no_source_at_all() -> None:
    assert "name at least one folder" in refusal([])


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    missing = tmp_path / "missing"
    assert refusal([tmp_path, missing]) == f"{missing}: there is no such folder or file"


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "table.csv")
    assert "neither a folder, nor an image, nor a .tar file, nor a .txt file of paths" in refusal(
        [tmp_path / "table.csv"]
    )


def test_a_folder_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "readme.md", "deeper/table.csv")
    message = refusal([tmp_path])
    assert str(tmp_path) in message
    assert ".jpeg" in message


@pytest.mark.skipif(
    os.geteuid() == 0, reason="not verified: a folder without permission is named: root reads everything"
)
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    locked = tmp_path / "locked"
    locked.chmod(0)
    try:
        assert refusal([tmp_path]) == f"{locked}: cannot be read (Permission denied)"
    finally:
        locked.chmod(0o700)


def test_a_folder_whose_reading_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal([tmp_path]) == f"{tmp_path / 'locked'}: cannot be read (Permission denied)"


# -- the list of paths


def test_a_name_that_is_not_utf_8_is_kept_byte_for_byte(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 \xff.jpg"
    with open(raw, "wb"):  # noqa: PTH123 - a name in bytes
        pass
    (path,) = find_images([tmp_path])
    assert os.fsencode(path) == raw
    (tmp_path / "list.txt").write_bytes(b"caf\xe9 \xff.jpg\n")
    assert list(find_images([tmp_path / "list.txt"])) == [path]


def test_a_path_list_is_indexed_from_0_to_its_length() -> None:
    paths = PathList(["a.jpg", "folder/longer name.png", "", "ü.jpg"])
    assert len(paths) == 4
    assert [paths[i] for i in range(4)] == ["a.jpg", "folder/longer name.png", "", "ü.jpg"]
    assert list(paths) == ["a.jpg", "folder/longer name.png", "", "ü.jpg"]
    for index in (4, -1):
        with pytest.raises(IndexError, match=f"path {index} of 4"):
            paths[index]


def test_the_fingerprint_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for place in ("here", "there/deeper"):
        touch(tmp_path / place, "x/1.jpg", "x/2.jpg", "y/3.jpg")
    here, there = find_images([tmp_path / "here"]), find_images([tmp_path / "there" / "deeper"])
    assert list(here) != list(there)
    assert here.fingerprint() == there.fingerprint()


def test_the_fingerprint_changes_with_names_files_and_their_order() -> None:
    prints = [
        PathList(paths).fingerprint()
        for paths in (["d/a.jpg", "d/b.jpg"], ["d/a.jpg", "d/c.jpg"], ["d/a.jpg"], ["d/b.jpg", "d/a.jpg"])
    ]
    assert len(set(prints)) == 4
    # names are message apart where they end: "ab" + "c" is not "a" + "bc"
    assert PathList(["ab", "c"]).fingerprint() != PathList(["a", "bc"]).fingerprint()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_list_in_the_encodings_of_windows(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_bytes("a.jpg\r\nb.jpg\r\n".encode(encoding))
    assert [Path(path).name for path in find_images(tmp_path / "list.txt")] == ["a.jpg", "b.jpg"]


def test_a_list_with_names_in_the_other_form_of_unicode(tmp_path: Path) -> None:
    touch(tmp_path, "\u00fc.jpg", "o\u0308.jpg")
    (tmp_path / "list.txt").write_text("u\u0308.jpg\n\u00f6.jpg\n", encoding="utf-8")
    assert len(find_images(tmp_path / "list.txt")) == 2


def test_the_most_similar_name_is_suggested_for_a_missing_file_of_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "photo_1.jpg")
    (tmp_path / "list.txt").write_text("C:\\mine\\Photo_1.jpg\n")
    assert refusal([tmp_path / "list.txt"]).endswith(
        'line 1: C:\\mine\\Photo_1.jpg: there is no such file; the nearest in its folder is "photo_1.jpg"'
    )
