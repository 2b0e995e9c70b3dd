"""Pages, frames and bands that are not read are reported once, and overviews and alpha channels are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resim.views import unread_parts
from resim.views.decode import Photo

SIZE = (16, 12)
FIRST, SECOND = Image.new("L", SIZE, 10), Image.new("L", SIZE, 200)


@pytest.fixture(autouse=True)
def said_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_parts, "_WARNED", {kind: bytearray(1) for kind in ("bands", "pages", "frames")})


def warnings(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert Photo(str(path)).decode().getpixel((0, 0)) == (10, 10, 10)
    return [line.removeprefix(f"warning: {path}: ") for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("name", "what"),
    [("a.tif", "pages"), ("a.png", "frames"), ("a.webp", "frames"), ("a.gif", "frames")],
)
def test_further_pages_and_frames_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    FIRST.save(tmp_path / name, save_all=True, append_images=[SECOND], **options)
    told = f"has several {what}, of which the first is read, and likewise in other such images (shown once)"
    assert warnings(tmp_path / name, capsys) == [told]
    assert warnings(tmp_path / name, capsys) == []


def test_a_smaller_second_page_is_an_overview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FIRST.save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (8, 6), 200)])
    assert warnings(tmp_path / "a.tif", capsys) == []


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.webp"])
def test_one_page_without_extra_bands_is_not_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Image.new("RGB", SIZE, (10, 10, 10)).save(tmp_path / name, quality=100)
    assert warnings(tmp_path / name, capsys) == []


def test_an_extra_band_is_reported_and_an_alpha_channel_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.new("RGBA", SIZE, (10, 10, 10, 7))
    image.putpixel((1, 1), (20, 20, 20, 9))
    image.save(tmp_path / "alpha.tif")  # with ExtraSamples 2
    assert warnings(tmp_path / "alpha.tif", capsys) == []
    data = (tmp_path / "alpha.tif").read_bytes()
    alpha, unspecified = (b"\x52\x01\x03\x00\x01\x00\x00\x00" + bytes([kind]) for kind in (2, 0))
    assert data.count(alpha) == 1
    (tmp_path / "band.tif").write_bytes(data.replace(alpha, unspecified))
    (line,) = warnings(tmp_path / "band.tif", capsys)
    assert line.startswith("has 4 bands, of which the first 3 are read, and likewise")
