from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resim.runs.config import RunConfig
from resim.views import limits
from resim.views.config import ViewsConfig
from resim.views.decode import BadImageError, Photo
from resim.views.limits import LEAST_MAX_PIXELS, MAX_PIXELS, default_max_pixels
from resim.views.loader import PairDataset


def save(path: Path, size: tuple[int, int], mode: str = "RGB", **settings: Any) -> str:
    """A gradient: neighbouring pixels differ little, so that a reduced picture can be compared."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).convert(mode).save(path, **settings)
    return str(path)


# -- pixels


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tif"])
def test_an_image_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"a.{ending}", (100, 60))
    with pytest.raises(BadImageError, match=r"^100 x 60 px are more than --max-pixels 5,999 allows$"):
        Photo(path, max_pixels=5999)
    assert Photo(path, max_pixels=6000).pixels().shape == (60, 100, 3)


@pytest.mark.parametrize(
    ("max_pixels", "size"), [(6000, (100, 60)), (5999, (50, 30)), (1500, (50, 30)), (1499, (25, 15)), (200, (13, 8))]
)
def test_a_jpeg_above_the_limit_is_decoded_at_the_largest_scale_below_it(
    tmp_path: Path, max_pixels: int, size: tuple[int, int]
) -> None:
    path = save(tmp_path / "a.jpg", (100, 60), quality=95)
    photo = Photo(path, max_pixels=max_pixels)
    assert (photo.width, photo.height) == (100, 60)
    pixels = photo.pixels()
    assert pixels.shape == (size[1], size[0], 3)
    whole = np.asarray(Image.open(path).resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels.astype(int) - whole).mean() < 6


def test_a_jpeg_that_no_scale_brings_below_the_limit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", (100, 60))
    with pytest.raises(BadImageError, match="100 x 60 px are more than --max-pixels 103 allows"):
        Photo(path, max_pixels=103)  # at 1/8 it has 13 x 8 = 104
    assert Photo(path, max_pixels=104).pixels().shape == (8, 13, 3)


def test_a_progressive_jpeg_has_a_limit_of_its_own_because_its_coefficients_are_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", (100, 60), progressive=True)
    with pytest.raises(BadImageError, match="100 x 60 px are more than --max-pixels 5,996 allows"):
        Photo(path, max_pixels=1499)
    assert Photo(path, max_pixels=1500).pixels().shape == (30, 50, 3)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_below_the_limit_nothing_changes(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = save(tmp_path / "a.jpg", (100, 60), **settings)
    assert np.array_equal(Photo(path, max_pixels=6000).pixels(), np.asarray(Image.open(path).convert("RGB")))
    for reduction in (2.0, 4.0):
        one, other = Photo(path, max_pixels=6000).pixels(reduction), Photo(path).pixels(reduction)
        assert np.array_equal(one, other)


def test_the_views_of_a_picture_above_the_limit_are_those_of_the_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", (160, 120), quality=95)
    config = ViewsConfig(image_size=64)
    whole, draws, *_ = PairDataset([path], config, seed=1)[(0, 0)]
    reduced, same, _, index, bad = PairDataset([path], config, seed=1, max_pixels=160 * 120 - 1)[(0, 0)]
    assert (same, index, bad) == (draws, 0, [])
    difference = np.abs(whole.astype(int) - reduced.astype(int))
    assert 0 < difference.mean() < 3


def test_the_default_is_half_of_the_memory_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_memory", lambda: 64 * 2**30)
    assert default_max_pixels(16) == 64 * 2**30 // 2 // 16 // 32 == 67_108_864
    assert default_max_pixels(0) == default_max_pixels(1) == MAX_PIXELS
    assert default_max_pixels(512) == LEAST_MAX_PIXELS == 16_777_216


def test_the_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "_CGROUPS", (str(tmp_path / "max"), str(tmp_path / "limit"), str(tmp_path / "none")))
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1048576\n")
    assert limits._memory() == 1_048_576


@pytest.mark.parametrize("value", [-1, 1, 999_999, MAX_PIXELS + 1])
def test_a_limit_out_of_its_bounds_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"max-pixels {value}: must be "):
        RunConfig(max_pixels=value)
    assert RunConfig(max_pixels=1_000_000).max_pixels == 1_000_000


# -- scans of a JPEG


def with_scans(count: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has `count` scans."""
    out = io.BytesIO()
    Image.new("L", size, 90).save(out, format="jpeg", progressive=True)
    data = out.getvalue()
    start = data.rindex(b"\xff\xda")
    before = data.count(b"\xff\xda")
    return data[:-2] + data[start:-2] * (count - before) + data[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    assert Photo(io.BytesIO(with_scans(500))).pixels().shape == (16, 16, 3)
    for count in (501, 20_000):
        with pytest.raises(BadImageError, match="a JPEG of more than 500 scans at 16 x 16 px"):
            Photo(io.BytesIO(with_scans(count)))


def test_the_scans_of_a_large_jpeg_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MAX_SCANNED", 16 * 16 * 20)
    Photo(io.BytesIO(with_scans(20)))
    with pytest.raises(BadImageError, match="a JPEG of more than 20 scans at 16 x 16 px"):
        Photo(io.BytesIO(with_scans(21)))


def test_scans_are_counted_across_the_blocks_in_which_the_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_scans(30)
    monkeypatch.setattr(limits, "_MAX_SCANS", 29)

    class InBlocks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, 3) if size == 2**20 else size)

    with pytest.raises(BadImageError, match="more than 29 scans"):
        Photo(InBlocks(data))
    monkeypatch.setattr(limits, "_MAX_SCANS", 30)
    Photo(InBlocks(data))


def test_the_file_of_an_ordinary_jpeg_is_not_read_for_its_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_MAX_SCANS", 0)
    for mode in ("RGB", "L", "CMYK"):
        Photo(save(tmp_path / "a.jpg", (30, 20), mode)).close()
    with pytest.raises(BadImageError, match="more than 0 scans"):
        Photo(save(tmp_path / "a.jpg", (30, 20), progressive=True))


# -- tiles of a TIFF


def tiff(tag: int, number: int, order: str = "<", *, big: bool = False) -> bytes:
    """The header and the first directory of a TIFF with this number of strips (tag 273) or tiles (tag 324)."""
    mark = b"II" if order == "<" else b"MM"
    tags = [(256, 4, 1, 1000), (257, 4, 1, 1000), (tag, 4, number, 8)]
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16) + struct.pack(f"{order}Q", len(tags))
        return head + b"".join(struct.pack(f"{order}HHQQ", *entry) for entry in tags)
    head = mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    return head + b"".join(struct.pack(f"{order}HHII", *entry) for entry in tags) + bytes(4)


@pytest.mark.parametrize("tag", [273, 324])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_a_million_tiles_is_refused_by_its_header(tag: int, order: str, big: bool) -> None:
    with pytest.raises(BadImageError, match="a TIFF of 1,000,000 tiles or strips, of which 100,000 are read"):
        Photo(io.BytesIO(tiff(tag, 1_000_000, order, big=big)))
    assert limits.parts_fault(io.BytesIO(tiff(tag, 100_000, order, big=big))) == ""


def test_a_header_that_is_cut_off_is_left_to_the_decoder() -> None:
    data = tiff(273, 1_000_000)
    for end in range(len(data) - 4 - 12):
        assert limits.parts_fault(io.BytesIO(data[:end])) == ""
    far = b"II" + struct.pack("<HHHQ", 43, 8, 0, 2**64 - 1)
    assert limits.parts_fault(io.BytesIO(far)) == ""


def test_a_tiff_in_strips_and_tiles_is_read(tmp_path: Path) -> None:
    for compression in (None, "tiff_lzw"):
        path = save(tmp_path / "a.tif", (70, 50), compression=compression, strip_size=70 * 3)
        assert Photo(path).pixels().shape == (50, 70, 3)
