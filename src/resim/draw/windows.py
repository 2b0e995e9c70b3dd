"""Drawings of what the loss compares: two views of an image, and corresponding windows in both.

Shape shorthand: S side of a view in px, R windows of a level, h, w size of the source thumbnail.
Boxes are (x0, y0, x1, y1), edges in px: a window of 48 px at the origin is (0, 0, 48, 48).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from resim.draw.primitives import (
    DARK,
    INK,
    LIGHT,
    PALETTE,
    PAPER,
    RULE,
    SOFT_INK,
    drawn_box,
    enlarge,
    font,
    outline,
    shorten,
    tag,
    wrap,
)

VIEW_PX = 336  # width of an enlarged view: two levels and the source fit a 1920 px screen
CLEARANCE = 1.2  # distance of drawn windows, in window sides: outlines that touch are hard to distinguish
MAX_PER_AXIS = 4  # more than 4 x 4 windows are hard to match by eye
HEADING_PX = 46  # two lines of text above the pictures of a panel
MARGIN, PAIR_GAP, COLUMN_GAP, ROW_GAP = 24, 8, 28, 26

WINDOWS_LEGEND = (
    "Windows with the same number and colour show the same region of the source image. Solid: valid, used by the loss. "
    "Dashed: partly outside the key view, not used."
)
VIEWS_LEGEND = "This recipe has no windows: the loss compares the two views as a whole."


@dataclass(frozen=True, kw_only=True)
class LevelWindows:
    """The windows of one level on one image."""

    name: str
    """"P4", "P3", "C4"."""
    query: np.ndarray
    """(R, 4) the grid, px of the query view."""
    key: np.ndarray
    """(R, 4) the same windows mapped to the key view, px of the key view; they may lie outside it."""
    valid: np.ndarray
    """(R,) bool, True if the loss uses the window."""


@dataclass(frozen=True, kw_only=True)
class PairPicture:
    """Two views of an image, and the windows that the loss compares."""

    query: np.ndarray
    """(S, S, 3) uint8."""
    key: np.ndarray
    """(S, S, 3) uint8."""
    levels: tuple[LevelWindows, ...]
    """Empty if the recipe has no windows (MoCo v2)."""
    title: str = ""
    """One line above the row, such as the name of the file."""
    source: np.ndarray | None = None
    """(h, w, 3) uint8, a thumbnail of the source image, flipped if the views are flipped."""
    crops: np.ndarray | None = None
    """(2, 4) crop boxes of query and key, px of `source`."""


def draw_pairs(pairs: Sequence[PairPicture], *, scale: int | None = None) -> Image.Image:
    """Draw a sheet with one row per pair: the source with both crops, then query and key view for every level.

    For each level a subset of windows that do not overlap is drawn (`choose_windows`), with the same number and colour
    in both views. Invalid windows are dashed and clipped at the border of the key view.

    Args:
        pairs: at least one.
        scale: factor by which the views are enlarged; None: to a width of 336 px.

    Returns:
        An RGB image; the same input gives the same pixels.

    Raises:
        ValueError: no pairs, a scale below 1, or an array whose shape is not as documented.
    """
    if not pairs:
        raise ValueError("draw_pairs needs at least one pair")
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be 1 or more, not {scale}")
    rows = [_draw_row(pair, scale) for pair in pairs]
    width = max(row.width for row in rows) + 2 * MARGIN
    legend = WINDOWS_LEGEND if any(pair.levels for pair in pairs) else VIEWS_LEGEND
    legend_lines = wrap(legend, font(15), width - 2 * MARGIN)
    rows_height = sum(row.height + ROW_GAP for row in rows)
    sheet = Image.new("RGB", (width, MARGIN + rows_height + 22 * len(legend_lines) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for row in rows:
        sheet.paste(row, (MARGIN, y))
        y += row.height + ROW_GAP
    draw.line((MARGIN, y - ROW_GAP // 2, width - MARGIN - 1, y - ROW_GAP // 2), fill=RULE)
    for line in legend_lines:
        draw.text((MARGIN, y), line, fill=INK, font=font(15))
        y += 22
    return sheet


def choose_windows(level: LevelWindows) -> np.ndarray:
    """Choose the windows to draw: a regular lattice of the grid on which no two overlap in the query view.

    The lattice has as many windows as fit, at most 4 x 4. Among its possible positions, the fraction of valid windows
    comes closest to the level's, limited to between a half and 0.8 if the level has both kinds.

    Returns:
        (n,) int, indices into the level's windows, row by row; empty if there are none.
    """
    if len(level.query) == 0:
        return np.zeros(0, dtype=np.int64)
    columns, column_of = np.unique(level.query[:, 0], return_inverse=True)
    lines, line_of = np.unique(level.query[:, 1], return_inverse=True)
    sides = (level.query[:, 2:] - level.query[:, :2]).max(axis=0)
    fraction = float(level.valid.mean())
    target = fraction if fraction in (0.0, 1.0) else min(max(fraction, 0.5), 0.8)

    best, best_score = np.zeros(0, dtype=np.int64), (-1, -np.inf, -1)
    lattices = itertools.product(_lattices(lines, float(sides[1])), _lattices(columns, float(sides[0])))
    for chosen_lines, chosen_columns in lattices:
        chosen = np.flatnonzero(np.isin(line_of, chosen_lines) & np.isin(column_of, chosen_columns))
        if len(chosen) == 0:
            continue
        extent = int(np.ptp(chosen_lines) + np.ptp(chosen_columns))
        score = (len(chosen), -abs(float(level.valid[chosen].mean()) - target), extent)
        if score > best_score:
            best, best_score = chosen[np.lexsort((column_of[chosen], line_of[chosen]))], score
    return best


def _lattices(starts: np.ndarray, side: float) -> list[np.ndarray]:
    """Index sets into sorted `starts` (px): evenly spaced by at least 1.2 `side`, as many as fit, at most 4."""
    n = len(starts)
    step = next((s for s in range(1, n) if (starts[s:] - starts[:-s]).min() >= CLEARANCE * side), n)
    count = min(MAX_PER_AXIS, (n - 1) // step + 1)
    if count == 1:
        return [np.array([i]) for i in sorted(range(n), key=lambda i: abs(2 * i - n + 1))]
    widest = (n - 1) // (count - 1)
    return [
        start + spacing * np.arange(count)
        for spacing in range(widest, step - 1, -1)
        for start in range(n - spacing * (count - 1))
    ]


def _draw_row(pair: PairPicture, scale: int | None) -> Image.Image:
    """Draw one pair: a title, then the panel of the source and one panel per level, side by side."""
    for name, view in (("query", pair.query), ("key", pair.key)):
        if view.ndim != 3 or view.shape[0] != view.shape[1] or view.shape[2] != 3 or view.dtype != np.uint8:
            raise ValueError(f"the {name} view must be (S, S, 3) uint8, not {view.shape} {view.dtype}")
    for level in pair.levels:
        num = len(level.valid)
        if level.query.shape != (num, 4) or level.key.shape != (num, 4):
            shapes = f"{level.query.shape} and {level.key.shape}"
            raise ValueError(f"{level.name}: query and key must be (R, 4) with R = {num}, not {shapes}")
    view_px = VIEW_PX if scale is None else scale * pair.query.shape[0]
    panels = [] if pair.source is None else [_draw_source(pair.source, pair.crops, view_px)]
    panels += [_draw_level(pair, level, view_px) for level in pair.levels or (None,)]
    width = sum(panel.width for panel in panels) + COLUMN_GAP * (len(panels) - 1)
    top = 30 if pair.title else 0
    row = Image.new("RGB", (width, top + max(panel.height for panel in panels)), PAPER)
    if pair.title:
        title = shorten(pair.title, font(17, bold=True), width)
        ImageDraw.Draw(row).text((0, 0), title, fill=INK, font=font(17, bold=True))
    x = 0
    for panel in panels:
        row.paste(panel, (x, top))
        x += panel.width + COLUMN_GAP
    return row


def _draw_level(pair: PairPicture, level: LevelWindows | None, view_px: int) -> Image.Image:
    """Draw query and key view under a heading, with the level's windows; without a level, the views alone."""
    query, key = (enlarge(view, view_px, view_px) for view in (pair.query, pair.key))
    name, note = "Views", "no windows, compared as a whole"
    if level is not None:
        chosen = choose_windows(level)
        name, note = level.name, f"{level.valid.sum()} of {len(level.valid)} windows valid"
        if len(chosen) < len(level.valid):
            note += f", {len(chosen)} drawn"
        _draw_windows(query, level.query[chosen], level.valid[chosen], view_px / pair.query.shape[0])
        _draw_windows(key, level.key[chosen], level.valid[chosen], view_px / pair.key.shape[0])
    panel = Image.new("RGB", (2 * view_px + PAIR_GAP, HEADING_PX + view_px), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), name, fill=INK, font=font(15, bold=True))
    x_note = font(15, bold=True).getlength(name) + 10
    draw.text((x_note, 0), shorten(note, font(15), panel.width - x_note), fill=INK, font=font(15))
    for x, view, label in ((0, query, "query view"), (view_px + PAIR_GAP, key, "key view")):
        draw.text((x, 24), label, fill=SOFT_INK, font=font(13))
        panel.paste(view, (x, HEADING_PX))
    return panel


def _draw_source(source: np.ndarray, crops: np.ndarray | None, view_px: int) -> Image.Image:
    """Draw the source, fitted into the square of a view; parts outside both crops are faded."""
    factor = view_px / max(source.shape[:2])
    width, height = (max(1, round(side * factor)) for side in (source.shape[1], source.shape[0]))
    picture = enlarge(source, width, height)
    if crops is not None:
        boxes = [drawn_box(crop, factor) for crop in crops]
        faded = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.55)
        for box in boxes:
            faded.paste(picture.crop(box), box[:2])
        picture = faded
        for box, colour in zip(boxes, (LIGHT, DARK), strict=True):
            outline(ImageDraw.Draw(picture), box, colour, dashed=False)
        tag(picture, boxes[0], "query", LIGHT, corner="top left")
        tag(picture, boxes[1], "key", DARK, corner="bottom right")
    panel = Image.new("RGB", (view_px, HEADING_PX + height), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), "Source", fill=INK, font=font(15, bold=True))
    if crops is not None:
        draw.text((0, 24), "with the crops of both views", fill=SOFT_INK, font=font(13))
    panel.paste(picture, (0, HEADING_PX))
    return panel


def _draw_windows(view: Image.Image, windows: np.ndarray, valid: np.ndarray, factor: float) -> None:
    """Draw windows (n, 4), px of the view, onto the view enlarged by `factor`."""
    draw = ImageDraw.Draw(view)
    boxes = [drawn_box(window, factor) for window in windows]
    colours = [PALETTE[_colour_of(i)] for i in range(len(boxes))]
    visible = [b[0] < view.width and b[1] < view.height and b[2] > 0 and b[3] > 0 for b in boxes]
    order = [i for i in sorted(range(len(boxes)), key=lambda i: bool(valid[i])) if visible[i]]
    for i in order:
        outline(draw, boxes[i], colours[i], dashed=not valid[i])
    for i in order:
        tag(view, boxes[i], str(i + 1), colours[i])


def _colour_of(i: int) -> int:
    """Index into the palette of 8 colours; the second round swaps pairs, so rows of 4 repeat no colour in a column."""
    return (i % len(PALETTE)) ^ (2 * (i // len(PALETTE) % 2))
