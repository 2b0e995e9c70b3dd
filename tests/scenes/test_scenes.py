"""Synthetic scenes are a function of their arguments, and their annotations are exact to the pixel."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from resim.errors import UserError
from resim.scenes.scenes import CLASSES, MIN_VISIBLE, Scene, draw_scene, write_scenes
from resim.scenes.shapes import SHAPES
from resim.scenes.textures import PATTERNS, paint, value_noise


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, index) for index in range(50)]


def grid(size: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Places x, y (size, size) float32 from -reach to reach."""
    line = np.linspace(-reach, reach, size, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_a_scene_has_the_documented_shapes_and_types() -> None:
    scene = draw_scene(0, 0, width=96, height=64)
    n = len(scene.labels)
    assert n > 0
    assert (scene.image.shape, scene.image.dtype) == ((64, 96, 3), np.uint8)
    assert (scene.boxes.shape, scene.boxes.dtype) == ((n, 4), np.float64)
    assert (scene.labels.shape, scene.labels.dtype) == ((n,), np.int64)
    assert (scene.masks.shape, scene.masks.dtype) == ((n, 64, 96), np.bool_)


@pytest.mark.parametrize("seed", range(8))
def test_the_smallest_scenes_can_be_drawn(seed: int) -> None:
    scene = draw_scene(seed, 0, width=32, height=32)
    assert scene.masks.shape == (len(scene.boxes), 32, 32)


def test_a_scene_depends_on_its_seed_and_index() -> None:
    image = draw_scene(3, 5, width=64, height=48).image
    assert np.array_equal(image, draw_scene(3, 5, width=64, height=48).image)
    for seed, index in ((4, 5), (3, 6), (5, 3)):
        assert not np.array_equal(image, draw_scene(seed, index, width=64, height=48).image)


@pytest.mark.slow
def test_no_pixel_belongs_to_two_objects(scenes: list[Scene]) -> None:
    assert all(scene.masks.sum(axis=0).max() == 1 for scene in scenes)


def test_boxes_are_tight_on_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        for (x0, y0, x1, y1), mask in zip(scene.boxes.astype(int), scene.masks, strict=True):
            assert mask.sum() == mask[y0:y1, x0:x1].sum() >= MIN_VISIBLE
            inside = mask[y0:y1, x0:x1]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_every_class_occurs_and_sizes_spread(scenes: list[Scene]) -> None:
    labels = np.concatenate([scene.labels for scene in scenes])
    assert np.bincount(labels, minlength=len(CLASSES)).min() > len(labels) / len(CLASSES) / 2
    boxes = np.concatenate([scene.boxes for scene in scenes])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert np.quantile(longer, 0.1) < 0.12 * 240
    assert np.quantile(longer, 0.9) > 0.4 * 240
    assert longer.max() <= 0.6 * 240 + 2
    assert 8 <= np.mean([len(scene.labels) for scene in scenes]) <= 20


def test_objects_overlap(scenes: list[Scene]) -> None:
    x0, y0, x1, y1 = scenes[0].boxes.T
    across = np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)
    down = np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)
    assert ((across > 0) & (down > 0)).sum() > len(x0)


def test_a_texture_drifts_even_where_its_pattern_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    # the pattern that repeats most is the constant one; over the whole patch its values still differ
    monkeypatch.setattr("resim.scenes.textures.PATTERNS", (lambda rng, x, y, pixel: np.zeros_like(x),))
    x, y = grid(96, 48)
    colour = paint(np.random.default_rng(0), x, y, size=96, contrast=0.7)
    assert (colour.shape, colour.dtype) == ((96, 96, 3), np.float32)
    assert colour.std(axis=(0, 1)).max() > 0.02


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_fits_the_unit_disk_and_nearly_reaches_its_edge(name: str) -> None:
    u, v = grid(401, 1.5)
    reach = np.hypot(u, v)[SHAPES[name](u, v) < 0].max()
    assert 0.97 < reach <= 1.001


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("disk", np.pi),
        ("square", 2.0),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("star", 10 * 0.5 * 0.45 * np.sin(np.pi / 5)),
        ("cross", 4 * (2 * 0.95 * 0.6 - 0.6 * 0.3) * 0.5),
        ("ring", np.pi * (1 - 0.56**2)),
        ("heart", (4 + np.pi) * 0.53**2),
    ],
)
def test_the_area_of_a_class_is_that_of_its_outline(name: str, area: float) -> None:
    u, v = grid(801, 1.0)
    assert (SHAPES[name](u, v) < 0).mean() * 4 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__.strip("_"))
def test_a_pattern_returns_float32_tones_from_0_to_1_and_is_not_constant(pattern) -> None:
    x, y = grid(128, 6)
    tone = pattern(np.random.default_rng(0), x, y, 12 / 127)
    assert tone.dtype == np.float32
    assert tone.min() >= 0
    assert tone.max() <= 1
    assert tone.std() > 0.1


def test_noise_equals_its_table_at_integer_coordinates() -> None:
    table = np.random.default_rng(7).random((64, 64), dtype=np.float32)
    x, y = np.array([[0, 1, 63, 64, -1]], np.float32), np.array([[0, 2, 5, 0, 3]], np.float32)
    expected = [[table[0, 0], table[2, 1], table[5, 63], table[0, 0], table[3, 63]]]
    assert np.array_equal(value_noise(np.random.default_rng(7), x, y), expected)
    halfway = value_noise(np.random.default_rng(7), x[:, :1] + 0.5, y[:, :1])
    assert halfway.item() == pytest.approx((table[0, 0] + table[0, 1]) / 2)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, count, seed in (("a", 3, 1), ("b", 3, 1), ("fewer", 2, 1), ("other", 3, 2)):
        path = write_scenes(tmp_path / name, count, seed=seed, width=96, height=64)
        assert path == tmp_path / name / "instances.json"
    a, fewer, other = (content(tmp_path / name) for name in ("a", "fewer", "other"))
    assert sorted(a) == ["images/000000.jpg", "images/000001.jpg", "images/000002.jpg", "instances.json"]
    assert a == content(tmp_path / "b")
    assert all(a[f"images/{index:06d}.jpg"] == fewer[f"images/{index:06d}.jpg"] for index in range(2))
    assert all(a[name] != other[name] for name in a)


# pycocotools 2.0.11 decodes with an __array__ that does not know numpy 2's `copy`
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_pycocotools_reads_back_what_was_drawn(tmp_path: Path) -> None:
    coco = load(write_scenes(tmp_path, 4, seed=2, width=160, height=120))
    assert [category["name"] for category in coco.loadCats(range(1, len(CLASSES) + 1))] == list(CLASSES)
    assert len(coco.getAnnIds()) == len(set(coco.getAnnIds()))
    assert min(coco.getAnnIds()) == 1
    for index, record in enumerate(coco.loadImgs(sorted(coco.getImgIds()))):
        scene = draw_scene(2, index, width=160, height=120)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[record["id"]]))
        assert len(annotations) == len(scene.labels)
        for number, annotation in enumerate(annotations):
            x, y, w, h = annotation["bbox"]
            assert [x, y, x + w, y + h] == scene.boxes[number].tolist()
            assert annotation["category_id"] == scene.labels[number] + 1
            assert annotation["area"] == scene.masks[number].sum()
            assert annotation["iscrowd"] == 0
            assert np.array_equal(coco.annToMask(annotation), scene.masks[number])
        with Image.open(tmp_path / "images" / record["file_name"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (160, 120))
            far = np.abs(np.asarray(image, np.float32) - scene.image)
        assert far.mean() < 10


def test_a_complete_folder_is_not_changed(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "out", 2, width=64, height=48)
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    before = {file: file.stat().st_mtime_ns for file in files}
    (tmp_path / "out" / "images" / "000001.jpg").write_bytes(b"still the same, as far as instances.json says")
    assert write_scenes(tmp_path / "out", 2, width=64, height=48) == path
    assert b"still" in (tmp_path / "out" / "images" / "000001.jpg").read_bytes()
    assert path.stat().st_mtime_ns == before[path]
    assert sorted(files) == sorted(file for file in path.parent.rglob("*") if file.is_file())


def test_an_interrupted_folder_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, index: int, *, width: int, height: int) -> Scene:
        if index == 2:
            raise KeyboardInterrupt
        return draw_scene(seed, index, width=width, height=height)

    with monkeypatch.context() as patch:
        patch.setattr("resim.scenes.scenes.draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "out", 3, width=64, height=48)
    assert not (tmp_path / "out" / "instances.json").exists()
    write_scenes(tmp_path / "out", 1, width=64, height=48)
    write_scenes(tmp_path / "whole", 1, width=64, height=48)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count 0: must be 1 or more"),
        ({"seed": -1}, "seed -1: must be 0 or more"),
        ({"width": 31}, "width 31: must be 32 or more"),
        ({"height": 8}, "height 8: must be 32 or more"),
        ({"quality": 96}, "quality 96: must be 1 to 95"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_scenes(tmp_path / "out", **{"count": 1, **change})
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    note = tmp_path / "instances.json"
    for text in ("", "[]", "{}", '{"info": 3}', '{"info": {"description": "COCO 2017"}}'):
        note.write_text(text)
        with pytest.raises(UserError, match="contains other files, not 1 scenes of seed 0, 320x240") as caught:
            write_scenes(tmp_path, 1)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert content(tmp_path) == {"instances.json": text.encode()}


@pytest.mark.parametrize("change", [{"count": 2}, {"seed": 1}, {"width": 65}, {"height": 49}, {"quality": 80}])
def test_a_folder_of_other_scenes_is_refused_and_kept(tmp_path: Path, change) -> None:
    asked = {"count": 1, "seed": 0, "width": 64, "height": 48, "quality": 90}
    write_scenes(tmp_path, **asked)
    before = content(tmp_path)
    with pytest.raises(UserError, match="contains 1 scenes of seed 0, 64x48, JPEG quality 90, drawing 1, not"):
        write_scenes(tmp_path, **{**asked, **change})
    assert content(tmp_path) == before


def test_a_path_that_is_or_is_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="contains other files"):
        write_scenes(tmp_path / "file", 1)
    with pytest.raises(UserError, match="cannot be written"):
        write_scenes(tmp_path / "file" / "out", 1)
