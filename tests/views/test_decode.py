"""Image files of all kinds are decoded to upright 8-bit RGB, or refused with a reason."""

from __future__ import annotations

import gc
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from needs import need
from resim.views import decode
from resim.views.decode import BadImageError, Photo

W, H = 40, 24


def decoded(path: Path, reduction: float = 1.0) -> np.ndarray:
    """(H, W, 3) uint8; the size that was known before decoding is that of the pixels."""
    photo = Photo(str(path))
    image = photo.decode(reduction)
    assert image.mode == "RGB"
    if reduction == 1:
        assert image.size == (photo.width, photo.height)
    return np.asarray(image)


def color_image() -> np.ndarray:
    """A smooth image whose channels differ."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 5], axis=-1).astype(np.uint8)


def gray_image() -> np.ndarray:
    return color_image()[..., 0]


def gray_as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


# -- pixel formats


def test_rgb_png_is_decoded_to_the_byte(tmp_path: Path) -> None:
    Image.fromarray(color_image()).save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path / "a.png"), color_image())


def test_rgb_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    Image.fromarray(color_image()).save(tmp_path / "a.jpg", quality=95)
    pixels = decoded(tmp_path / "a.jpg").astype(int)
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(pixels, np.asarray(image))
    assert np.abs(pixels - color_image()).mean() < 3


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "bmp"])
def test_gray_is_the_same_in_all_three_channels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(gray_image()).save(path)
    pixels = decoded(path).astype(int)
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert np.abs(pixels[..., 0] - gray_image()).mean() < (0.01 if kind in ("png", "tif", "bmp") else 3)


def test_transparency_is_dropped_and_the_colors_below_it_stay(tmp_path: Path) -> None:
    alpha = np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))
    Image.fromarray(np.dstack([color_image(), alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([gray_image(), alpha])).save(tmp_path / "la.png")
    assert np.array_equal(decoded(tmp_path / "rgba.png"), color_image())
    assert np.array_equal(decoded(tmp_path / "la.png"), gray_as_rgb(gray_image()))


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_their_colors(tmp_path: Path, transparent: bool) -> None:
    indices = np.tile(np.arange(W, dtype=np.uint8) % 3, (H, 1))
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 0, 0, 0, 200, 10, 1, 2, 3])
    if transparent:
        image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    else:
        image.save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as opened:
        assert opened.mode == "P"
    colors = np.array([[255, 0, 0], [0, 200, 10], [1, 2, 3]], dtype=np.uint8)
    assert np.array_equal(decoded(tmp_path / "p.png"), colors[indices])


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = gray_image() > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path / "a.png"), gray_as_rgb(bits.astype(np.uint8) * 255))


@pytest.mark.parametrize(("kind", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, kind: str, dtype: str) -> None:
    # 65535 / 257 = 255; 128 / 257 rounds to 0, 129 / 257 to 1; 32896 = 128 * 257
    wide = np.array([[0, 128, 129, 257, 32896, 65278, 65535]], dtype=dtype)
    Image.fromarray(wide).save(tmp_path / f"a.{kind}")
    pixels = decoded(tmp_path / f"a.{kind}")
    assert pixels[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 128, 254, 255)]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = Image.new("CMYK", (W, H), (0, 255, 255, 0))  # magenta and yellow make red
    flat.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.mode == "CMYK"
    assert np.abs(decoded(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("name", ["animated.webp", "animated.png", "pages.tif"])
def test_the_first_of_several_frames_is_used(tmp_path: Path, name: str) -> None:
    first, second = Image.fromarray(color_image()), Image.new("RGB", (W, H), (9, 9, 9))
    options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    with Image.open(tmp_path / name) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert np.array_equal(decoded(tmp_path / name), color_image())


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


# -- orientation

# how upright pixels lie in the file for each value of the tag: 1 + the number of the symmetry of a rectangle
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


def marked_image() -> np.ndarray:
    """Landscape, red in the upper left corner, green in the upper right one, else blue."""
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[..., 2] = 255
    pixels[:16, :16] = (255, 0, 0)
    pixels[:16, -16:] = (0, 255, 0)
    return pixels


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "tif-lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    kind, _, compressed = kind.partition("-")
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    options |= {"compression": "tiff_lzw"} if compressed else {}
    Image.fromarray(np.ascontiguousarray(STORED[orientation](marked_image()))).save(path, exif=exif, **options)

    pixels = decoded(path).astype(int)
    assert pixels.shape == (64, 96, 3)
    assert np.abs(pixels - marked_image()).mean() < 4
    assert pixels[4, 4].argmax() == 0
    assert pixels[4, -4].argmax() == 1
    assert pixels[-4, 4].argmax() == pixels[-4, -4].argmax() == 2


def test_a_sideways_jpeg_is_turned_upright_at_a_smaller_scale(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(STORED[6](marked_image()))).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = decoded(tmp_path / "a.jpg", 2)
    assert pixels.shape == (32, 48, 3)
    assert pixels[2, 2].argmax() == 0
    assert pixels[2, -2].argmax() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_turned_jpeg_at_a_smaller_scale_is_the_smaller_one_turned(
    tmp_path: Path, orientation: int, reduction: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (131, 187, 3), dtype=np.uint8)  # no multiple of 8 or 16
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).resize((374, 262)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        stored = image.size
        image.draft("RGB", (stored[0] // reduction, stored[1] // reduction))
        small = np.asarray(image)
    assert small.shape[:2] == (-(-262 // reduction), -(-374 // reduction))
    photo = Photo(str(tmp_path / "turned.jpg"))
    assert (photo.width, photo.height) == (stored if orientation < 5 else stored[::-1])
    upright = photo.decode(reduction)
    assert np.array_equal(STORED[orientation](np.asarray(upright)), small)


# -- decoding no larger than needed


@pytest.mark.parametrize(
    ("reduction", "size"),
    [
        (1, (320, 192)),
        (1.9, (320, 192)),
        (2, (160, 96)),
        (3.9, (160, 96)),
        (4, (80, 48)),
        (8, (40, 24)),
        (99, (40, 24)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_decoded_smaller_by_at_most_the_reduction(
    tmp_path: Path, mode: str, reduction: float, size: tuple[int, int]
) -> None:
    image = Image.fromarray(color_image()).resize((320, 192)).convert(mode)
    image.save(tmp_path / "a.jpg", quality=95)
    photo = Photo(str(tmp_path / "a.jpg"))
    small = photo.decode(reduction)
    assert (photo.width, photo.height) == (320, 192)
    assert (small.mode, small.size) == ("RGB", size)
    with Image.open(tmp_path / "a.jpg") as full:
        expected = full.convert("RGB").resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() < 3


def test_sizes_that_do_not_divide_are_rounded_up(tmp_path: Path) -> None:
    Image.new("RGB", (301, 199)).save(tmp_path / "a.jpg")
    assert decoded(tmp_path / "a.jpg", 2.1).shape == (100, 151, 3)  # half, rounded up
    assert decoded(tmp_path / "a.jpg", 4.1).shape == (50, 76, 3)


@pytest.mark.parametrize("kind", ["png", "tif", "bmp", "webp"])
def test_other_formats_than_jpeg_are_decoded_at_full_size(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (320, 192)).save(tmp_path / f"a.{kind}")
    assert decoded(tmp_path / f"a.{kind}", 4).shape == (192, 320, 3)


# -- the faster decoder


@pytest.fixture(params=["pillow", "simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "simplejpeg":
        need("simplejpeg", "simplejpeg decodes as Pillow does", "fast")
    else:
        monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    return request.param


@pytest.mark.parametrize(("mode", "options"), [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("reduction", [1.0, 2.5])
def test_both_decoders_give_pillows_pixels(
    tmp_path: Path, decoder: str, mode: str, options: dict[str, Any], subsampling: int, reduction: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg", quality=85, subsampling=subsampling, **options)
    pixels = Photo(str(tmp_path / "a.jpg")).pixels(reduction)
    assert pixels.flags.writeable
    assert np.array_equal(pixels, np.asarray(Photo(str(tmp_path / "a.jpg")).decode(reduction)))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_both_decoders_give_upright_pixels(tmp_path: Path, decoder: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.ascontiguousarray(STORED[orientation](marked_image()))
    Image.fromarray(upright).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = Photo(str(tmp_path / "a.jpg")).pixels()
    assert np.abs(pixels.astype(int) - marked_image()).mean() < 4


def test_both_decoders_refuse_a_truncated_file_and_accept_trailing_bytes(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    expected = Photo(str(path)).pixels()
    path.write_bytes(whole + b"\0" * 1000)
    assert np.array_equal(Photo(str(path)).pixels(), expected)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImageError):
        Photo(str(path)).pixels()


# -- files that cannot be decoded


def assert_bad(path: Path, reason: str) -> None:
    """A warning, or a file left open, would be an error of this test."""
    with pytest.raises(BadImageError, match=reason) as caught:
        Photo(str(path)).decode()
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "bmp", "webp"])
def test_a_truncated_file_is_bad(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_bad(path, "Error: ")


@pytest.mark.slow
def test_an_empty_file_a_text_and_a_missing_file_are_bad(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no picture\n")
    assert_bad(tmp_path / "empty.jpg", r"an empty file \(0 bytes\)")
    assert_bad(tmp_path / "text.jpg", "UnidentifiedImageError: cannot identify image file")
    assert_bad(tmp_path / "missing.jpg", "FileNotFoundError: ")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header has so many RGB pixels, without any data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


def test_a_decompression_bomb_is_bad_and_nothing_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(30000, 30000))
    assert_bad(tmp_path / "bomb.png", "DecompressionBombError: Image size .900000000 pixels. exceeds limit")


def test_a_large_image_below_twice_the_limit_is_opened_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(color_image()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H - 1)
    assert np.array_equal(decoded(tmp_path / "a.png"), color_image())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC, which is not read: save it as JPEG or PNG"),
        (b"%PDF-1.7", "a PDF: save its pages as images"),
        (b"\n <!DOCTYPE html>", "a web page, not the image itself: download it again"),
        (b"version https://git-lfs.github.com", "a Git LFS pointer: fetch the image itself with git lfs pull"),
        (b"II+\0" + bytes(20), "a BigTIFF: save it as a TIFF of less than 4 GB, or as PNG"),
        (b"\x93NUMPY\x01\0", "a NumPy array: save it as PNG or TIFF"),
        (bytes(128) + b"DICM", "DICOM: save it as PNG or TIFF of 16 bits"),
        (bytes(344) + b"n+1\0", "NIfTI: save its slices as PNG or TIFF of 16 bits"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5: save its images as PNG or TIFF"),
        (b"SIMPLE  =" + bytes(90), "FITS: save it as TIFF"),
    ],
)
def test_the_format_of_a_file_that_is_not_an_image_is_reported(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImageError, match=f"^{re.escape(what)}$"):
        Photo(str(tmp_path / "a.jpg"))
