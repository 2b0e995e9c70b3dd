"""A sheet of pictures in columns, with a heading over every column and a line under every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from resim.draw.colour_map import colour_map
from resim.draw.primitives import INK, PAPER, RULE, SOFT_INK, letters, shorten, wrap

PANEL_PX = 336  # width of a picture on a sheet
MARGIN, GAP, CAPTION_PX, HEAD_PX = 24, 16, 24, 44
BAR_PX = 22


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands over a column."""

    name: str
    told: str = ""
    bar: tuple[float, float] | None = None
    """The values at the ends of the column's colour scale, where it has one."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture and the line below it."""

    picture: Image.Image
    caption: str = ""
    name: str = ""
    """Of the image that is shown, for a page without the column of the images themselves."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of panels under one title; a row may be shorter than the headings."""

    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Panel, ...], ...]


def draw_sheet(title: str, note: str, blocks: Sequence[Block]) -> Image.Image:
    """Draw blocks one below the other, with a title above and an explanation below.

    Args:
        title: one line.
        note: how the pictures are read; broken into lines.
        blocks: at least one.
    """
    drawn = [_draw_block(block) for block in blocks]
    width = max(560, *(block.width for block in drawn)) + 2 * MARGIN
    lines = wrap(note, letters(14), width - 2 * MARGIN)
    height = MARGIN + 40 + sum(block.height + GAP for block in drawn) + 20 * len(lines) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = shorten(title, letters(20, bold=True), width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), heading, fill=INK, font=letters(20, bold=True))
    y = MARGIN + 40
    for block in drawn:
        sheet.paste(block, (MARGIN, y))
        y += block.height + GAP
    draw.line((MARGIN, y - 8, width - MARGIN - 1, y - 8), fill=RULE)
    for line in lines:
        draw.text((MARGIN, y), line, fill=INK, font=letters(14))
        y += 20
    return sheet


def fit(pixels: np.ndarray | Image.Image, width: int = PANEL_PX, tallest: float = 1.4) -> tuple[Image.Image, float]:
    """A picture scaled to a width, or to `tallest` times that in height, and by how much it was."""
    image = Image.fromarray(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
    factor = min(width / image.width, tallest * width / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC), factor


def _draw_block(block: Block) -> Image.Image:
    columns = max([len(block.heads), *(len(row) for row in block.rows)])
    widths = [
        max([200, *(row[i].picture.width for row in block.rows if i < len(row))]) if columns else 0
        for i in range(columns)
    ]
    bars = any(head.bar for head in block.heads)
    top = 28 + HEAD_PX + (BAR_PX if bars else 0)
    heights = [max(panel.picture.height for panel in row) + CAPTION_PX + 6 for row in block.rows]
    image = Image.new("RGB", (sum(widths) + GAP * (columns - 1), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), shorten(block.title, letters(17, bold=True), image.width), fill=INK, font=letters(17, bold=True))
    x = 0
    for head, width in zip(block.heads, widths, strict=False):
        name, told = shorten(head.name, letters(15, bold=True), width), shorten(head.told, letters(12), width)
        draw.text((x, 28), name, fill=INK, font=letters(15, bold=True))
        draw.text((x, 50), told, fill=SOFT_INK, font=letters(12))
        if head.bar:
            _draw_bar(image, x, 28 + HEAD_PX, width, head.bar)
        x += width + GAP
    y = top
    for row, height in zip(block.rows, heights, strict=True):
        x = 0
        for panel, width in zip(row, widths, strict=False):
            image.paste(panel.picture, (x, y))
            caption = shorten(panel.caption, letters(13), width)
            draw.text((x, y + panel.picture.height + 4), caption, fill=SOFT_INK, font=letters(13))
            x += width + GAP
        y += height
    return image


def _draw_bar(image: Image.Image, x: int, y: int, width: int, ends: tuple[float, float]) -> None:
    """The colour scale, with the values at its ends."""
    draw, font = ImageDraw.Draw(image), letters(12)
    low, high = (f"{value:.2f}" for value in ends)
    left, right = round(font.getlength(low)) + 6, round(font.getlength(high)) + 6
    length = max(20, width - left - right)
    ramp = colour_map(np.tile(np.linspace(0, 1, length), (12, 1)), 0, 1)
    draw.text((x, y), low, fill=INK, font=font)
    image.paste(Image.fromarray(ramp), (x + left, y + 2))
    draw.text((x + left + length + 6, y), high, fill=INK, font=font)
