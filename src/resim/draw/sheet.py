"""A sheet of pictures in columns, with a heading above every column and a caption below every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from resim.draw.colour_map import colour_map
from resim.draw.primitives import INK, PAPER, RULE, SOFT_INK, font, shorten, wrap
from resim.runs.checkpoints import write_atomically

PANEL_PX = 336  # width of a picture on a sheet
MARGIN, GAP, CAPTION_PX, HEADING_PX = 24, 16, 24, 44
SCALE_PX = 22


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a sheet atomically: in half the time of Pillow's default compression, a tenth larger.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to.
    """
    write_atomically(path, lambda file: picture.save(file, format="png", compress_level=3))


@dataclass(frozen=True, kw_only=True)
class ColumnHeading:
    """The heading of a column."""

    name: str
    note: str = ""
    """Second line, in small type."""
    scale: tuple[float, float] | None = None
    """Minimum and maximum of the column's colour scale; None: it has none."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture with its caption."""

    picture: Image.Image
    caption: str = ""
    name: str = ""
    """Name of the image, for a page without the column of the images themselves."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of panels under one title; a row may have fewer panels than there are headings."""

    title: str
    headings: tuple[ColumnHeading, ...]
    rows: tuple[tuple[Panel, ...], ...]


def draw_sheet(title: str, note: str, blocks: Sequence[Block]) -> Image.Image:
    """Draw blocks one below the other, with a title above and a legend below.

    Args:
        title: one line.
        note: the legend, broken into lines.
        blocks: at least one.
    """
    drawn = [_draw_block(block) for block in blocks]
    width = max(560, *(block.width for block in drawn)) + 2 * MARGIN
    lines = wrap(note, font(14), width - 2 * MARGIN)
    height = MARGIN + 40 + sum(block.height + GAP for block in drawn) + 20 * len(lines) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = shorten(title, font(20, bold=True), width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), heading, fill=INK, font=font(20, bold=True))
    y = MARGIN + 40
    for block in drawn:
        sheet.paste(block, (MARGIN, y))
        y += block.height + GAP
    draw.line((MARGIN, y - 8, width - MARGIN - 1, y - 8), fill=RULE)
    for line in lines:
        draw.text((MARGIN, y), line, fill=INK, font=font(14))
        y += 20
    return sheet


def fit(pixels: np.ndarray | Image.Image, width: int = PANEL_PX, max_aspect: float = 1.4) -> tuple[Image.Image, float]:
    """Scale a picture to a width, or to `max_aspect` times that width in height if it is taller.

    Returns:
        The scaled picture, and the factor.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
    factor = min(width / image.width, max_aspect * width / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC), factor


def _draw_block(block: Block) -> Image.Image:
    columns = max([len(block.headings), *(len(row) for row in block.rows)])
    widths = [
        max([200, *(row[i].picture.width for row in block.rows if i < len(row))]) if columns else 0
        for i in range(columns)
    ]
    has_scales = any(heading.scale for heading in block.headings)
    top = 28 + HEADING_PX + (SCALE_PX if has_scales else 0)
    heights = [max(panel.picture.height for panel in row) + CAPTION_PX + 6 for row in block.rows]
    image = Image.new("RGB", (sum(widths) + GAP * (columns - 1), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), shorten(block.title, font(17, bold=True), image.width), fill=INK, font=font(17, bold=True))
    x = 0
    for heading, width in zip(block.headings, widths, strict=False):
        name, note = shorten(heading.name, font(15, bold=True), width), shorten(heading.note, font(12), width)
        draw.text((x, 28), name, fill=INK, font=font(15, bold=True))
        draw.text((x, 50), note, fill=SOFT_INK, font=font(12))
        if heading.scale:
            _draw_scale(image, x, 28 + HEADING_PX, width, heading.scale)
        x += width + GAP
    y = top
    for row, height in zip(block.rows, heights, strict=True):
        x = 0
        for panel, width in zip(row, widths, strict=False):
            image.paste(panel.picture, (x, y))
            caption = shorten(panel.caption, font(13), width)
            draw.text((x, y + panel.picture.height + 4), caption, fill=SOFT_INK, font=font(13))
            x += width + GAP
        y += height
    return image


def _draw_scale(image: Image.Image, x: int, y: int, width: int, scale: tuple[float, float]) -> None:
    """Draw a colour scale between its minimum and its maximum."""
    draw, typeface = ImageDraw.Draw(image), font(12)
    minimum, maximum = (f"{value:.2f}" for value in scale)
    left, right = round(typeface.getlength(minimum)) + 6, round(typeface.getlength(maximum)) + 6
    length = max(20, width - left - right)
    ramp = colour_map(np.tile(np.linspace(0, 1, length), (12, 1)), 0, 1)
    draw.text((x, y), minimum, fill=INK, font=typeface)
    image.paste(Image.fromarray(ramp), (x + left, y + 2))
    draw.text((x + left + length + 6, y), maximum, fill=INK, font=typeface)
