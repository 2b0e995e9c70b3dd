"""Label maps in files: reading the values of a file, and matching label files with images.

Shapes: H, W the height and width of a label map.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from resim.errors import UserError
from resim.probes.label_palettes import Colour, Palettes, palette_values
from resim.reading import open_file, read_file
from resim.views.decode import BadImageError
from resim.views.foreign import foreign_format

LABEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
"""Lossless formats; a JPEG changes the values of labels."""
LABEL_MARKS = (
    "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_L", "-mask", "-label", "-seg", "-gt",
    ".mask",
    "_labelIds", "_labelTrainIds", "_gtFine_labelIds", "_gtFine_labelTrainIds",
)  # fmt: skip
"""What programs put behind the name of an image to name its label map."""
_FRONT_MARKS = ("mask_", "label_", "seg_", "gt_", "mask-")
_IMAGE_MARK = "_leftImg8bit"  # Cityscapes' images have it, their label maps have not


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images matched with label maps, and files without a match."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    without_label: tuple[str, ...]
    """Images without a label map."""
    without_image: tuple[str, ...]
    """Label maps without an image."""


def read_values(path: str, colours: Mapping[Colour, int] | None = None, palettes: Palettes | None = None) -> np.ndarray:
    """Read the label values of a file: (H, W) int32.

    They are the indices of a palette image (VOC's format), the values of a gray image of any depth, or the values that
    `colours` assigns to the colours of an RGB image, and to those of a palette if it knows all that occur: programs
    that reduce colours number them differently in each file. Without `colours`, the channels of an RGB image must be
    equal.

    Args:
        path: of the file.
        colours: the value of each colour.
        palettes: to which the palette of the file is added, if its indices are read.

    Raises:
        BadImageError: the file cannot be decoded, or contains colours without a class.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_file(path) as file, Image.open(file) as image:
                mode = image.mode
                if mode == "P":
                    return palette_values(path, np.asarray(image).astype(np.int32), image, colours, palettes)
                if mode in ("L", "1") or mode == "I" or mode.startswith("I;16"):
                    return np.asarray(image).astype(np.int32)
                if mode not in ("RGB", "RGBA", "LA", "PA"):
                    raise BadImageError(f"has mode {mode}: save labels as a palette, gray or colour image")
                pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(foreign_format(path) or "is not an image that can be read") from None
    except Exception as error:  # decoders raise many kinds
        raise BadImageError(f"{type(error).__name__}: {error}") from None
    if colours:
        return _by_colour(pixels, colours)
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.int32)
    raise BadImageError("is a colour image: save labels as a palette or gray image, or add a labelmap.txt of colours")


def voc_colours(count: int = 256) -> dict[Colour, int]:
    """The value of each colour of VOC's palette: bits 0, 1, 2 of the value are the top bits of red, green, blue."""
    colours = {}
    for value in range(count):
        channels = [0, 0, 0]
        bits, shift = value, 7
        while bits:
            for channel in range(3):
                channels[channel] |= (bits >> channel & 1) << shift
            bits, shift = bits >> 3, shift - 1
        colours[channels[0], channels[1], channels[2]] = value
    return colours


def _by_colour(pixels: np.ndarray, colours: Mapping[Colour, int]) -> np.ndarray:
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    unique, inverse = np.unique(packed, return_inverse=True)
    known = {(red << 16) | (green << 8) | blue: value for (red, green, blue), value in colours.items()}
    unknown = next((int(code) for code in unique if int(code) not in known), None)
    if unknown is not None:
        colour = (unknown >> 16, unknown >> 8 & 255, unknown & 255)
        raise BadImageError(f"colour {colour} has no class")
    values = np.array([known[int(code)] for code in unique], dtype=np.int32)
    return values[inverse].reshape(packed.shape)


def read_names(folders: Sequence[Path]) -> tuple[dict[int, str], dict[Colour, int]]:
    """Read the names of the classes by value, and their colours if stated, from the first file that exists.

    `labelmap.txt` has lines `name:red,green,blue:...`, the format of CVAT, with values from 0 in their order.
    `classes.txt` has one name per line, with values from 0.

    Raises:
        UserError: a line cannot be parsed.
    """
    for folder in folders:
        path = folder / "labelmap.txt"
        if path.is_file():
            names, colours = {}, {}
            lines = [line for line in read_lines(path) if not line.startswith("#")]
            for value, line in enumerate(lines):
                name, _, rest = line.partition(":")
                try:
                    red, green, blue = (int(part) for part in rest.partition(":")[0].split(","))
                except ValueError:
                    raise UserError(f"{path}: expected name:red,green,blue, not {line!r}") from None
                names[value] = name.strip()
                colours[red, green, blue] = value
            return names, colours
        path = folder / "classes.txt"
        if path.is_file():
            return dict(enumerate(read_lines(path))), {}
    return {}, {}


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not empty, in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = read_file(path)
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: save it in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def label_files(folder: Path) -> list[str]:
    """Paths of the label files at any depth in a folder; names that start with a dot are skipped."""
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(parent, name) for name in files if not name.startswith(".") and _is_label(name)]  # noqa: PTH118
    return sorted(paths)


def _is_label(name: str) -> bool:
    return name.lower().endswith(LABEL_ENDINGS)


def pair_files(images: Sequence[str], images_in: Path, labels_in: Path) -> Pairs:
    """Match each image with the label map of the same relative path, or else with the only one of the same name.

    Endings do not count, letter case and the form of accents neither. A label map may have one of `LABEL_MARKS` behind
    the image's name, or the name with its ending (NAME.jpg.png), or a word such as `mask_` before it.

    Raises:
        UserError: the folder contains no label maps, or none for any of the images.
    """
    if images_in.resolve() == labels_in.resolve():
        raise UserError(f"{labels_in}: contains both images and label maps: move them into two folders")
    is_image = set(images)
    files = [path for path in label_files(labels_in) if path not in is_image]
    if not files:
        raise UserError(no_label_maps(labels_in))
    by_path = {_key(os.path.relpath(path, labels_in)): path for path in files}
    by_name: dict[str, list[str]] = {}
    for path in files:
        by_name.setdefault(_key(Path(path).name), []).append(path)
    pairs: dict[str, str] = {}
    for image in images:
        label = _match(os.path.relpath(image, images_in), by_path, by_name)
        if label is not None:
            pairs[image] = label
    if not pairs:
        raise UserError(
            f"{labels_in}: none of its {len(files)} label maps has the name of an image of {images_in} "
            f"(an image is {Path(images[0]).name}, a label map {Path(files[0]).name}): rename them"
        )
    used = set(pairs.values())
    return Pairs(
        images=tuple(pairs),
        labels=tuple(pairs.values()),
        without_label=tuple(image for image in images if image not in pairs),
        without_image=tuple(path for path in files if path not in used),
    )


def no_label_maps(folder: Path) -> str:
    """The error of a folder without label maps."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    lossy = next((path for path in files if path.suffix.lower() in (".jpg", ".jpeg")), None)
    remedy = f"; {lossy.name} is a JPEG, which alters label values: save PNGs" if lossy else ""
    if files and not lossy:
        endings = Counter(path.suffix.lower() or "without an ending" for path in files).most_common(3)
        remedy = f"; it contains {', '.join(f'{count} {ending}' for ending, count in endings)}: save label maps as PNG"
    return f"{folder}: contains no label maps ({', '.join(LABEL_ENDINGS)}){remedy}"


def _match(inside: str, by_path: Mapping[str, str], by_name: Mapping[str, Sequence[str]]) -> str | None:
    for path in _label_keys(inside):
        if path in by_path:
            return by_path[path]
        same = by_name.get(path.rpartition(os.sep)[2], ())
        if len(same) == 1:  # of several, none is known to be the right one
            return same[0]
    return None


def _label_keys(inside: str) -> Iterator[str]:
    """What the label map of an image may be called, the likeliest first."""
    stem, whole = _key(inside), unicodedata.normalize("NFC", inside).casefold()
    folder, _, name = stem.rpartition(os.sep)
    shorter = stem.removesuffix(_IMAGE_MARK.casefold())
    yield from (stem + mark.casefold() for mark in ("", *LABEL_MARKS))
    yield whole
    yield from (os.path.join(folder, mark + name) for mark in _FRONT_MARKS)  # noqa: PTH118
    if shorter != stem:
        yield from (shorter + mark.casefold() for mark in ("", *LABEL_MARKS))


def _key(path: str) -> str:
    stem = path[: -len(Path(path).suffix)] if Path(path).suffix.lower() in _ENDINGS else path
    return unicodedata.normalize("NFC", stem).casefold()


_ENDINGS = frozenset({*LABEL_ENDINGS, ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
