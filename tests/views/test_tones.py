"""Samples of many bits or of floating point become 8 bits that show the image, or are refused with a reason."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resim.views import tones
from resim.views.decode import BadImageError, Photo
from resim.views.tones import Samples, gray_8_bits

U = Samples(bits=16)
F = Samples(bits=32, kind="float")


def write_tiff(path: Path, values: np.ndarray, kind: int, *, photometric: int = 1, extra: int = 0) -> Path:
    """An uncompressed TIFF of (H, W) or (H, W, samples); kind 1: unsigned, 2: signed, 3: floating point."""
    height, width, *rest = values.shape
    samples, bits = (rest[0] if rest else 1), 8 * values.dtype.itemsize
    lists = {258: [bits] * samples, 339: [kind] * samples} | ({338: [0] * extra} if extra else {})
    plain = {256: width, 257: height, 259: 1, 262: photometric, 277: samples, 278: height, 279: values.nbytes, 273: 0}
    start, long = 8 + 2 + 12 * (len(lists) + len(plain)) + 4, b""
    entries: dict[int, bytes] = {}
    for tag, numbers in lists.items():
        packed = b"".join(struct.pack("<H", number) for number in numbers)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", start + len(long))
        long += packed if len(packed) > 4 else b""
        entries[tag] = struct.pack("<HHI", tag, 3, len(numbers)) + place
    plain[273] = start + len(long)
    entries |= {tag: struct.pack("<HHII", tag, 4, 1, number) for tag, number in plain.items()}
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    little = values.astype(values.dtype.newbyteorder("<"))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + long + little.tobytes())
    return path


def gray(path: Path) -> list[list[int]]:
    """Rows of a picture whose three channels are alike."""
    pixels = np.asarray(Photo(str(path)).decode())
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def fault(path: Path) -> str:
    with pytest.raises(BadImageError) as caught:
        Photo(str(path)).decode()
    return str(caught.value)


@pytest.fixture(autouse=True)
def said_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tones, "_WARNED", bytearray(1))


# -- the rule


@pytest.mark.parametrize(
    ("values", "samples", "expected"),
    [
        ([0.0, 0.5, 1.0], F, [0, 128, 255]),  # [0, 1] as it is: 127.5 rounds to even
        ([0.0, 0.1, 0.2], F, [0, 26, 51]),
        ([0.2, 0.2, 0.2], F, [51, 51, 51]),
        ([0.0, 0.0, 0.0], F, [0, 0, 0]),  # black, which is valid
        ([0.0, 0.01, 0.02], F, [0, 128, 255]),  # in [0, 1], but black to the eye
        ([10.0, 20.0, 30.0], F, [0, 128, 255]),
        ([-1.0, 0.0, 1.0], F, [0, 128, 255]),
        ([7.5, 7.5, 7.5], F, [128, 128, 128]),
        ([np.nan, 0.0, 1.0], F, [0, 0, 255]),
        ([np.inf, 0.0, 0.2], F, [255, 0, 51]),
        ([-np.inf, 10.0, 20.0], F, [0, 0, 255]),
        ([-9999.0, 10.0, 20.0], Samples(kind="float", nodata=-9999.0), [0, 0, 255]),
    ],
)
def test_floats(values: list[float], samples: Samples, expected: list[int]) -> None:
    assert gray_8_bits(np.array([values], dtype=np.float32), samples, "a").tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 32896, 65535], np.uint16, [0, 128, 255]),  # 32896 = 128 * 257
        ([0, 257, 4096], np.uint16, [0, 1, 16]),
        ([0, 819, 4095], np.uint16, [0, 51, 255]),  # a camera's 12 bits: a fifth of 4095
        ([0, 100, 255], np.uint16, [0, 100, 255]),  # 8 bits in 16
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 0, 0], np.uint16, [0, 0, 0]),
        ([0, 500_000, 1_000_000], np.int32, [0, 128, 255]),
        ([-1000, 0, 1000], np.int32, [0, 128, 255]),  # a computed tomography
    ],
)
def test_integers(values: list[int], dtype: type, expected: list[int]) -> None:
    samples = Samples(bits=16 if dtype is np.uint16 else 32, kind="unsigned" if dtype is np.uint16 else "signed")
    assert gray_8_bits(np.array([values], dtype=dtype), samples, "a").tolist() == [expected]


def test_an_image_without_a_finite_value_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite value"):
        gray_8_bits(np.full((2, 2), np.nan), F, "a")


def test_one_warning_is_printed_for_images_scaled_by_their_own_values(capsys: pytest.CaptureFixture[str]) -> None:
    gray_8_bits(np.array([[0.0, 1.0]]), F, "within.tif")
    assert capsys.readouterr().err == ""
    for name in ("a.tif", "b.tif"):
        gray_8_bits(np.array([[-3.5, 80.0]]), F, name)
    assert capsys.readouterr().err == (
        "warning: a.tif: values from -3.5 to 80 are scaled to 0 to 255, and likewise in other such images "
        "(shown once)\n"
    )


# -- files


def test_a_float_tiff_is_not_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert gray(tmp_path / "a.tif") == [[0, 51, 255]]


def test_signed_and_unsigned_tiffs(tmp_path: Path) -> None:
    signed = np.array([[-100, 0, 100]])
    assert gray(write_tiff(tmp_path / "i1.tif", signed.astype(np.int8), 2)) == [[0, 128, 255]]
    assert gray(write_tiff(tmp_path / "i2.tif", signed.astype(np.int16), 2)) == [[0, 128, 255]]
    beyond = np.array([[0, 2_000_000_000, 4_000_000_000]], dtype=np.uint32)  # more than the largest signed sample
    assert gray(write_tiff(tmp_path / "u4.tif", beyond, 1)) == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "what"),
    [
        ((2, 3), np.float64, 3, "a sample a pixel, 64-bit floating point"),
        ((2, 3), np.float16, 3, "a sample a pixel, 16-bit floating point"),
        ((2, 3, 3), np.float32, 3, "3 samples a pixel, 32-bit floating point"),
        ((2, 3, 5), np.uint8, 1, "5 samples a pixel, 8-bit unsigned integers"),
    ],
)
def test_an_unsupported_tiff_is_reported_with_its_sample_format(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, kind: int, what: str
) -> None:
    samples = shape[2] if len(shape) > 2 else 1
    values = np.ones(shape, dtype=dtype)
    photometric = 2 if samples == 3 else 1
    path = write_tiff(tmp_path / "a.tif", values, kind, photometric=photometric, extra=4 if samples == 5 else 0)
    assert fault(path).startswith(f"a TIFF with {what}, which is not read: save it as 8-bit RGB")


def test_colors_of_12_bits_in_16_are_refused_and_not_black(tmp_path: Path) -> None:
    colors = np.array([[[4095, 0, 0], [0, 4095, 0]]], dtype=np.uint16)
    path = write_tiff(tmp_path / "a.tif", colors, 1, photometric=2)
    assert "colours of 16 bits with 12 significant bits or fewer" in fault(path)
    path = write_tiff(tmp_path / "b.tif", colors * 16, 1, photometric=2)
    assert np.asarray(Photo(str(path)).decode()).tolist() == [[[255, 0, 0], [0, 255, 0]]]


@pytest.mark.parametrize(("color", "ground"), [(0, 255), (255, 0), (40, 255)])
def test_an_image_that_is_only_in_its_transparency_is_composited(tmp_path: Path, color: int, ground: int) -> None:
    alpha = np.array([[0, 255, 0]], dtype=np.uint8)
    flat = np.full_like(alpha, color)
    Image.fromarray(np.dstack([flat, flat, flat, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([flat, alpha])).save(tmp_path / "la.png")
    for name in ("rgba.png", "la.png"):
        assert gray(tmp_path / name) == [[ground, color, ground]]


def test_bands_are_scaled_by_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tones, "_BAND", 2)  # one row of two, a time
    values = np.array([[-10, -10], [0, 10], [10, 10]], np.int32)
    assert gray_8_bits(values, Samples(bits=32, kind="signed"), "a.tif").tolist() == [[0, 0], [128, 255], [255, 255]]
    lost = np.array([[np.nan, np.inf], [np.nan, np.nan], [0.5, 0.2]], np.float32)
    assert gray_8_bits(lost, F, "a.tif").tolist() == [[0, 255], [0, 0], [128, 51]]


def test_a_large_image_takes_few_bytes_a_pixel() -> None:
    values = np.arange(2_000_000, dtype=np.uint16).reshape(4000, 500)
    tracemalloc.start()
    gray_8_bits(values, U, "a.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * values.size  # the result takes one byte a pixel, a band of 65,536 pixels up to 60


# -- negatives


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[0, 4095, 2048]], np.uint16), 1, [255, 0, 127]),  # 255 - 127.53, rounded
        (np.array([[0, 65535, 257]], np.uint16), 1, [255, 0, 254]),
        (np.array([[0.0, 1.0, np.nan]], np.float32), 3, [255, 0, 0]),  # what is not known stays black
        (np.array([[0, 255, 1]], np.uint8), 1, [255, 0, 254]),  # Pillow inverts these
    ],
)
def test_a_negative_is_inverted(tmp_path: Path, values: np.ndarray, kind: int, expected: list[int]) -> None:
    assert gray(write_tiff(tmp_path / "a.tif", values, kind, photometric=0)) == [expected]


def test_a_tiff_that_is_cut_off_is_not_called_one_of_another_sample_format(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 5000) + bytes(3000))  # its directory is at 5000
    assert "cannot identify image file" in fault(tmp_path / "a.tif")
