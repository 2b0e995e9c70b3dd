"""Label maps as programs write them: palettes that differ between files, wide void values, files without an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resim.errors import UserError
from resim.probes.label_files import no_label_maps, read_values
from resim.probes.label_maps import load_label_maps
from resim.probes.label_palettes import Colour, Palettes
from resim.probes.segmentation_labels import read_labelled, read_labelled_sets

BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)
COLOURS: dict[Colour, int] = {BLACK: 0, RED: 1, GREEN: 2}


def labels(path: Path, indices: list[list[int]], *palette: Colour) -> Path:
    """A palette image of these indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(indices, np.uint8))
    image.putpalette([channel for colour in palette for channel in colour])
    image.save(path)
    return path


def photograph(path: Path, **options: Image.Exif) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (9, 99, 199)).save(path, None, **options)


def notes(root: Path) -> tuple[str, ...]:
    images = read_labelled(root)
    return load_label_maps(images, images, 2)[0].notes


def test_a_palette_with_known_colours_is_read_by_colour(tmp_path: Path) -> None:
    first = labels(tmp_path / "a.png", [[0, 1], [2, 2]], BLACK, RED, GREEN)
    second = labels(tmp_path / "b.png", [[2, 0], [1, 1]], RED, GREEN, BLACK)  # the same image
    for path in (first, second):
        assert read_values(str(path), COLOURS).tolist() == [[0, 1], [2, 2]]


def test_a_palette_with_an_unknown_colour_is_read_by_index(tmp_path: Path) -> None:
    path = labels(tmp_path / "a.png", [[0, 1], [2, 2]], BLACK, GREEN, (1, 2, 3))
    assert read_values(str(path), COLOURS).tolist() == [[0, 1], [2, 2]]
    assert read_values(str(path)).tolist() == [[0, 1], [2, 2]]


def test_a_colour_that_no_pixel_has_need_not_be_known(tmp_path: Path) -> None:
    path = labels(tmp_path / "a.png", [[0, 2], [2, 2]], BLACK, (1, 2, 3), RED)
    assert read_values(str(path), COLOURS).tolist() == [[0, 1], [1, 1]]


def test_palettes_conflict_by_colour_or_by_index() -> None:
    palettes = Palettes()
    palettes.add("a.png", {0: BLACK, 1: RED})
    palettes.add("b.png", {0: BLACK, 2: GREEN})
    palettes.add("c.png", {3: (7, 7, 7), 4: (7, 7, 7)})  # one colour for two classes: no evidence
    palettes.add("d.png", {4: (7, 7, 7)})
    assert palettes.conflict() == ""
    palettes.add("e.png", {2: RED})
    assert palettes.conflict() == "the colour (255, 0, 0) is 1 in a.png and 2 in e.png"
    other = Palettes()
    other.add("a.png", {1: RED})
    other.add("b.png", {1: GREEN})
    assert other.conflict() == "the index 1 is (255, 0, 0) in a.png and (0, 255, 0) in b.png"


def test_differing_palettes_without_names_of_colours_are_reported(tmp_path: Path) -> None:
    for name, palette in (("a", (BLACK, RED)), ("b", (BLACK, GREEN))):
        photograph(tmp_path / "images" / f"{name}.jpg")
        labels(tmp_path / "labels" / f"{name}.png", [[0, 1], [1, 1]], *palette)
    (note,) = notes(tmp_path)
    assert "the index 1 is (255, 0, 0) in a.png and (0, 255, 0) in b.png; they are read by index" in note
    (tmp_path / "labelmap.txt").write_text("ground:0,0,0::\ncat:255,0,0::\ndog:0,255,0::\n")
    images = read_labelled(tmp_path)
    (maps, _) = load_label_maps(images, images, 2)
    assert maps.notes == ()
    assert maps.labels.tolist() == [[[0, 1], [1, 1]], [[0, 2], [2, 2]]]


def test_the_void_value_of_sixteen_bits_has_a_remedy(tmp_path: Path) -> None:
    photograph(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.array([[0, 1], [65535, 1]], np.uint16)).save(tmp_path / "labels" / "a.png")
    assert notes(tmp_path) == (f"{tmp_path}: the value 65535 is read as a class: --void 255 65535 ignores it",)
    images = read_labelled(tmp_path)
    assert load_label_maps(images, images, 2, void=(255, 65535))[0].notes == ()


def test_label_maps_that_are_0_everywhere_are_not_said_to_hold_255(tmp_path: Path) -> None:
    photograph(tmp_path / "images" / "a.jpg")
    labels(tmp_path / "labels" / "a.png", [[0, 0], [0, 0]], BLACK)
    with pytest.raises(UserError, match="only one class, '0'"):
        notes(tmp_path)


def test_a_label_map_that_is_no_image_is_named_and_not_its_photograph(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", b"text")):
        photograph(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.png").write_bytes(content)
    with pytest.raises(UserError, match=r"2 label maps can be used \(.*labels/a.png: an empty file \(0 bytes\)\)"):
        notes(tmp_path)


@pytest.mark.parametrize(("orientation", "count"), [(1, 0), (3, 1), (6, 1)])  # the image is square
def test_an_image_turned_by_exif_with_a_label_map_of_its_shape_is_reported(
    tmp_path: Path, orientation: int, count: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(tmp_path / "images" / "a.jpg", exif=exif)
    labels(tmp_path / "labels" / "a.png", [[0, 1], [1, 1]], BLACK, RED)
    told = notes(tmp_path)
    assert len(told) == count
    assert all("turns or mirrors 1 image" in note and "a.jpg" in note for note in told)


def test_a_folder_without_label_maps_says_what_it_contains(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy", "c.txt"):
        (tmp_path / name).touch()
    assert no_label_maps(tmp_path).endswith("; it contains 2 .npy, 1 .txt: save label maps as PNG")


def test_masks_next_to_their_images_have_a_remedy(tmp_path: Path) -> None:
    photograph(tmp_path / "train" / "a.jpg")
    labels(tmp_path / "train" / "a_mask.png", [[0, 1], [1, 1]], BLACK, RED)
    with pytest.raises(UserError, match=r"next to their images, such as a_mask.png: .* mv \*_mask.png masks"):
        read_labelled_sets(tmp_path)
