"""Label maps beside the truth: the same images with the predictions of each network.

Shapes: S x S px, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

from resim.draw.primitives import Colour, tag
from resim.draw.sheet import Block, Head, Panel, draw_sheet, fit

LABEL_SHARE = 0.62  # of a class's colour in its pixels
PANEL_PX = 220
VOID_COLOUR: Colour = (128, 128, 128)
LEAST_TAGGED = 0.02  # share of the pixels from which a class is named in its picture


@dataclass(frozen=True, kw_only=True)
class Column:
    """The predictions of one network for the images of a sheet."""

    name: str
    note: str
    """What stands below the name, such as the network's mIoU."""
    maps: Sequence[np.ndarray]
    """(S, S) positions of classes, an image each."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one probe predicts with each network."""

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
        truth: (S, S) positions of classes of each image, negative where void.
        names: what stands below each image.
        comparisons: one for each probe.
        classes: K names.
        background: position of the class that stays without colour; None: there is none.
    """
    blocks = []
    for comparison in comparisons:
        heads = [Head(name="image"), Head(name="labels", told="gray: void")]
        heads += [Head(name=column.name, told=column.note) for column in comparison.columns]
        rows = []
        for i, image in enumerate(pixels):
            row = [Panel(picture=fit(image, PANEL_PX)[0], caption=names[i])]
            row.append(_panel(image, truth[i], None, classes, background))
            row += [_panel(image, column.maps[i], truth[i], classes, background) for column in comparison.columns]
            rows.append(tuple(row))
        blocks.append(Block(title=comparison.title, heads=tuple(heads), rows=tuple(rows)))
    note = (
        "Images are resized to squares, as they are measured. A class keeps its colour"
        + (f"; beyond {len(_colours())} classes some share one" if len(classes) - 1 > len(_colours()) else "")
        + (". The background has none" if background is not None else "")
        + ". Below a prediction: the share of the image's pixels, void left out, that have their true class."
    )
    return draw_sheet("Segmentation by frozen features", note, blocks)


def _panel(
    pixels: np.ndarray, labels: np.ndarray, truth: np.ndarray | None, classes: Sequence[str], background: int | None
) -> Panel:
    painted = pixels.astype(np.float32)
    present = [int(label) for label in np.unique(labels) if label >= 0 and label != background]
    colours = {label: class_colour(label, background) for label in present}
    for label, colour in colours.items():
        painted[labels == label] = (1 - LABEL_SHARE) * painted[labels == label] + LABEL_SHARE * np.array(colour)
    painted[labels < 0] = VOID_COLOUR
    image, factor = fit(painted.round().astype(np.uint8), PANEL_PX)
    for label in present:
        rows, columns = np.nonzero(labels == label)
        if len(rows) >= LEAST_TAGGED * labels.size:
            middle = np.argmin((rows - np.median(rows)) ** 2 + (columns - np.median(columns)) ** 2)
            x, y = round(columns[middle] * factor), round(rows[middle] * factor)
            tag(image, (x, y, x + 20, y + 12), classes[label], colours[label])
    if truth is None:
        return Panel(picture=image, caption=", ".join(classes[label] for label in present))
    known = truth >= 0
    share = float((labels == truth)[known].mean()) if known.any() else float("nan")
    return Panel(picture=image, caption=f"{100 * share:.0f} % right" if known.any() else "")


def class_colour(label: int, background: int | None) -> Colour:
    """The colour of a class: of the twenty of matplotlib's tab20 in turn, the background not counted."""
    place = label - 1 if background is not None and label > background else label
    return _colours()[place % len(_colours())]


def _colours() -> list[Colour]:
    table = matplotlib.colormaps["tab20"]
    return [tuple(round(255 * channel) for channel in table(place)[:3]) for place in range(table.N)]  # type: ignore[misc]
