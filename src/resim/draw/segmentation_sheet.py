"""A sheet of images, their label maps, and the predictions of each network.

Shapes: S x S px, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

from resim.draw.primitives import Colour, tag
from resim.draw.sheet import Block, ColumnHeading, Panel, draw_sheet, fit

LABEL_OPACITY = 0.62  # of a class's colour over the image
PANEL_PX = 220
VOID_COLOUR: Colour = (128, 128, 128)
MIN_TAGGED = 0.02  # smaller fractions of an image's pixels have no tag with the name of their class


@dataclass(frozen=True, kw_only=True)
class Column:
    """The predictions of one network for the images of a sheet."""

    name: str
    note: str
    """Second line of the heading, such as the network's mIoU."""
    maps: Sequence[np.ndarray]
    """(S, S) class indices, one map per image."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The predictions of one probe, a column for each network."""

    title: str
    columns: Sequence[Column]


def segmentation_sheet(
    pixels: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    names: Sequence[str],
    comparisons: Sequence[Comparison],
    *,
    classes: Sequence[str],
    background: int | None,
) -> Image.Image:
    """Draw images, their labels, and the predictions of each network, a block for each probe.

    Args:
        pixels: (S, S, 3) uint8 of each image.
        truth: (S, S) class indices of each image, negative where void.
        names: captions of the images.
        comparisons: one for each probe.
        classes: K names.
        background: index of the class that has no colour; None: there is none.
    """
    blocks = []
    for comparison in comparisons:
        headings = [ColumnHeading(name="Image"), ColumnHeading(name="Ground truth", note="gray: void")]
        headings += [ColumnHeading(name=column.name, note=column.note) for column in comparison.columns]
        rows = []
        for i, image in enumerate(pixels):
            row = [Panel(picture=fit(image, PANEL_PX)[0], caption=names[i])]
            row.append(_panel(image, truth[i], None, classes, background))
            row += [_panel(image, column.maps[i], truth[i], classes, background) for column in comparison.columns]
            rows.append(tuple(row))
        blocks.append(Block(title=comparison.title, headings=tuple(headings), rows=tuple(rows)))
    note = (
        "Images are resized to squares, as in the measurement. Each class has the same colour in all images"
        + (f"; with more than {len(_colours())} classes, some share one" if len(classes) - 1 > len(_colours()) else "")
        + ("; the background has none" if background is not None else "")
        + ". Below each prediction: pixel accuracy on the image, void excluded."
    )
    return draw_sheet("Semantic segmentation with frozen features", note, blocks)


def _panel(
    pixels: np.ndarray, labels: np.ndarray, truth: np.ndarray | None, classes: Sequence[str], background: int | None
) -> Panel:
    painted = pixels.astype(np.float32)
    present = [int(label) for label in np.unique(labels) if label >= 0 and label != background]
    colours = {label: class_colour(label, background) for label in present}
    for label, colour in colours.items():
        painted[labels == label] = (1 - LABEL_OPACITY) * painted[labels == label] + LABEL_OPACITY * np.array(colour)
    painted[labels < 0] = VOID_COLOUR
    image, factor = fit(painted.round().astype(np.uint8), PANEL_PX)
    for label in present:
        rows, columns = np.nonzero(labels == label)
        if len(rows) >= MIN_TAGGED * labels.size:
            middle = np.argmin((rows - np.median(rows)) ** 2 + (columns - np.median(columns)) ** 2)
            x, y = round(columns[middle] * factor), round(rows[middle] * factor)
            tag(image, (x, y, x + 20, y + 12), classes[label], colours[label])
    if truth is None:
        return Panel(picture=image, caption=", ".join(classes[label] for label in present))
    known = truth >= 0
    accuracy = float((labels == truth)[known].mean()) if known.any() else float("nan")
    return Panel(picture=image, caption=f"{100 * accuracy:.0f} % correct" if known.any() else "")


def class_colour(label: int, background: int | None) -> Colour:
    """The colour of a class: the twenty of matplotlib's tab20 in turn, the background not counted."""
    index = label - 1 if background is not None and label > background else label
    return _colours()[index % len(_colours())]


def _colours() -> list[Colour]:
    table = matplotlib.colormaps["tab20"]
    return [tuple(round(255 * channel) for channel in table(index)[:3]) for index in range(table.N)]  # type: ignore[misc]
