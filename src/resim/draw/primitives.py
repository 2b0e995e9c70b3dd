"""Drawing primitives shared by all pictures: colours, fonts, outlines and tags.

Boxes are (x0, y0, x1, y1) in px of the picture, right and bottom edge excluded.
"""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colour-blind-safe eight, with white for their black, neighbours far apart in luminance.
PALETTE = (
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
    (240, 228, 66),  # yellow
    (204, 121, 167),  # reddish purple
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (255, 255, 255),  # white
    (0, 158, 115),  # bluish green
)
INK, SOFT_INK, PAPER, RULE = (28, 28, 30), (98, 98, 104), (255, 255, 255), (225, 225, 228)
DARK, LIGHT = (16, 16, 18), (255, 255, 255)
DASH_PX, GAP_PX = 9, 6

Box = tuple[int, int, int, int]  # px of a drawn image, right and bottom edge excluded
Colour = tuple[int, int, int]


def outline(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, *, dashed: bool) -> None:
    """Outline a box from the inside: a line of 2 or 3 px with a contrasting rim, visible on any photograph."""
    x0, y0, x1, y1 = box
    band = 5 if _is_roomy(box) else 4
    sides = [
        *((a, y0, b, y0 + band) for a, b in _strokes(x0, x1, dashed=dashed)),
        *((a, y1 - band, b, y1) for a, b in _strokes(x0, x1, dashed=dashed)),
        *((x0, a, x0 + band, b) for a, b in _strokes(y0, y1, dashed=dashed)),
        *((x1 - band, a, x1, b) for a, b in _strokes(y0, y1, dashed=dashed)),
    ]
    for grow, ink in ((0, contrast(colour)), (1, colour)):
        for a, b, c, d in sides:
            if c - a > 2 * grow and d - b > 2 * grow:
                draw.rectangle((a + grow, b + grow, c - 1 - grow, d - 1 - grow), fill=ink)


def _strokes(start: int, end: int, *, dashed: bool) -> list[tuple[int, int]]:
    """The strokes of a side: all of it, or dashes that begin and end in the corners."""
    if not dashed:
        return [(start, end)]
    gaps = max(1, round((end - start - DASH_PX) / (DASH_PX + GAP_PX)))
    dash = (end - start - gaps * GAP_PX) / (gaps + 1)
    if dash < 3:  # too short a side: two dashes and a gap, each a third
        third = (end - start) // 3
        return [(start, start + third), (end - third, end)]
    places = [start + i * (dash + GAP_PX) for i in range(gaps + 1)]
    return [(round(place), round(place + dash)) for place in places]


def tag(view: Image.Image, box: Box, text: str, colour: Colour, *, corner: str = "top left") -> None:
    """Write a short text on a coloured background, in a corner of the visible part of the box."""
    size = 13 if _is_roomy(box) else 9
    tag_font = font(size, bold=True)
    width, height = int(tag_font.getlength(text)) + size // 2 + 1, size + 4
    if corner == "top left":
        x, y = max(box[0], 0), max(box[1], 0)
    else:
        x, y = min(box[2], view.width) - width, min(box[3], view.height) - height
    x, y = max(0, min(x, view.width - width)), max(0, min(y, view.height - height))
    draw = ImageDraw.Draw(view)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour, outline=contrast(colour))
    draw.text((x + width / 2, y + height / 2), text, fill=contrast(colour), font=tag_font, anchor="mm")


def _is_roomy(box: Box) -> bool:
    """Whether a box is large enough for a thick line and a large number."""
    return min(box[2] - box[0], box[3] - box[1]) >= 40


def drawn_box(box: np.ndarray, factor: float) -> Box:
    """Scale a box (x0, y0, x1, y1) by `factor` and round it to whole px."""
    x0, x1 = sorted((round(float(box[0]) * factor), round(float(box[2]) * factor)))
    y0, y1 = sorted((round(float(box[1]) * factor), round(float(box[3]) * factor)))
    return x0, y0, x1, y1


def contrast(colour: Colour) -> Colour:
    """Black or white, whichever is readable on a colour."""
    red, green, blue = colour
    return DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 115 else LIGHT


def enlarge(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """Resize (h, w, 3) uint8 to an image of `width` x `height` px."""
    return Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BICUBIC)


def printable(text: str) -> str:
    """Replace characters that cannot be printed, such as bytes that are not UTF-8."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


@functools.cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` px, which comes with matplotlib: text is the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def shorten(text: str, typeface: ImageFont.FreeTypeFont, width: float) -> str:
    """Truncate a text, with an ellipsis, to `width` px."""
    if typeface.getlength(text) <= width:
        return text
    while text and typeface.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, typeface: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text between words into lines of at most `width` px."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and typeface.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
