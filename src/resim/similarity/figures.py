"""Heat maps, matches and principal components as blocks of pictures, for a sheet or for a web page.

Rows are images, columns are networks, and there is one block for each level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from resim.draw.primitives import PALETTE, contrast, drawn_box, outline, tag
from resim.draw.sheet import PANEL_PX, Block, ColumnHeading, Panel, fit
from resim.exchange.encoders import LoadedEncoder
from resim.similarity.components import principal_components
from resim.similarity.feature_maps import (
    FeatureMap,
    Photograph,
    region_levels,
    stride_of,
)
from resim.similarity.matches import Matches, mutual_nearest
from resim.similarity.overlays import component_pictures, heat_picture, mark_point, mark_region
from resim.similarity.regions import Region, peak, region_vector, similarity_map

Maps = Sequence[Sequence[dict[str, FeatureMap]]]
"""For every network and every image, the map of each level."""


def default_levels(networks: Sequence[LoadedEncoder]) -> tuple[str, ...]:
    """The levels of the networks' region losses, and C4 if a network has none."""
    levels = dict.fromkeys(level for network in networks for level in region_levels(network.config))
    if not all(network.config.levels for network in networks):
        levels["C4"] = None
    return tuple(levels)


def heat_blocks(
    photographs: Sequence[Photograph],
    networks: Sequence[LoadedEncoder],
    maps: Maps,
    levels: Sequence[str],
    region: Region,
    *,
    panel_px: int = PANEL_PX,
) -> list[Block]:
    """Heat maps of the similarity to a region of the first image, over all images.

    Args:
        photographs: at least one.
        networks: the columns.
        maps: of each network and image.
        levels: the blocks; a block omits the networks that do not have its level.
        region: a point or a box of the first image, px of the encoded image.
        panel_px: width of a picture.
    """
    blocks = []
    for level in levels:
        headings, columns = [ColumnHeading(name="Image")], [_originals(photographs, region)]
        for network, features in _networks_with(level, networks, maps):
            vector = region_vector(features[0], region)
            heats = [similarity_map(vector, feature_map) for feature_map in features]
            scale = (min(float(heat.min()) for heat in heats), max(float(heat.max()) for heat in heats))
            headings.append(ColumnHeading(name=network.name, note=network.kind, scale=scale))
            column = []
            for i, (photograph, heat) in enumerate(zip(photographs, heats, strict=True)):
                picture, factor = fit(heat_picture(photograph, heat, stride_of(level), scale), panel_px)
                x, y = peak(heat, stride_of(level))
                if i == 0:
                    mark_region(picture, region, factor)
                    column.append(Panel(picture=picture, caption="image of the marked region", name=photograph.name))
                    continue
                mark_point(picture, (x * factor, y * factor))
                scale_x, scale_y = photograph.scale
                caption = f"maximum {float(heat.max()):.2f} at ({x / scale_x:.0f}, {y / scale_y:.0f}) px"
                column.append(Panel(picture=picture, caption=caption, name=photograph.name))
            columns.append(column)
        blocks.append(_block(level, headings, columns))
    return blocks


def match_blocks(
    photographs: Sequence[Photograph],
    networks: Sequence[LoadedEncoder],
    maps: Maps,
    levels: Sequence[str],
    count: int = 12,
) -> list[Block]:
    """Mutual nearest regions of the first image and each of the others, at most `count` per pair, joined by lines.

    The other arguments are those of `heat_blocks`, with at least two photographs.
    """
    first, *others = photographs
    blocks = []
    for level in levels:
        headings, columns = [], []
        for network, features in _networks_with(level, networks, maps):
            headings.append(ColumnHeading(name=network.name, note=network.kind))
            column = []
            for other, other_features in zip(others, features[1:], strict=True):
                sizes = (first.width, first.height), (other.width, other.height)
                matches = mutual_nearest(features[0], other_features, *sizes, count=count)
                caption = _matches_caption(other.name, matches)
                column.append(Panel(picture=_draw_matches(first, other, matches), caption=caption))
            columns.append(column)
        blocks.append(_block(level, headings, columns))
    return blocks


def pca_blocks(
    photographs: Sequence[Photograph], networks: Sequence[LoadedEncoder], maps: Maps, levels: Sequence[str]
) -> list[Block]:
    """The first three principal components of every map as colours; the arguments are those of `heat_blocks`."""
    blocks = []
    for level in levels:
        headings, columns = [ColumnHeading(name="Image")], [_originals(photographs)]
        for network, features in _networks_with(level, networks, maps):
            components, fractions = principal_components(features)
            headings.append(ColumnHeading(name=network.name, note=network.kind))
            pictures = component_pictures(components, stride_of(level), photographs)
            caption = f"explains {' + '.join(f'{100 * value:.0f}' for value in fractions.tolist())} % of the variance"
            columns.append([Panel(picture=fit(picture)[0], caption=caption) for picture in pictures])
        blocks.append(_block(level, headings, columns))
    return blocks


def _networks_with(
    level: str, networks: Sequence[LoadedEncoder], maps: Maps
) -> list[tuple[LoadedEncoder, list[FeatureMap]]]:
    """The networks that have a level, each with that level's map of every image."""
    pairs = zip(networks, maps, strict=True)
    return [
        (network, [levels[level] for levels in images])
        for network, images in pairs
        if all(level in levels for levels in images)
    ]


def _block(level: str, headings: Sequence[ColumnHeading], columns: Sequence[Sequence[Panel]]) -> Block:
    title = f"{level}, stride {stride_of(level)} px"
    return Block(title=title, headings=tuple(headings), rows=tuple(zip(*columns, strict=True)))


def _originals(photographs: Sequence[Photograph], region: Region | None = None) -> list[Panel]:
    panels = []
    for i, photograph in enumerate(photographs):
        picture, factor = fit(photograph.pixels)
        if i == 0 and region is not None:
            mark_region(picture, region, factor)
        width, height = photograph.original
        encoded = "" if photograph.scale == (1, 1) else f", encoded at {photograph.width} x {photograph.height}"
        panels.append(Panel(picture=picture, caption=f"{photograph.name}, {width} x {height} px{encoded}"))
    return panels


def _matches_caption(name: str, matches: Matches) -> str:
    if not len(matches.similarity):
        return f"{name}: no mutual nearest pair"
    minimum = float(matches.similarity[-1])
    return f"{len(matches.similarity)} of {matches.num_mutual} mutual pairs, cosine >= {minimum:.2f}; {name}"


def _draw_matches(first: Photograph, other: Photograph, matches: Matches) -> Image.Image:
    """Draw two images side by side, matched regions in the same colour and joined by lines."""
    (left, factor_a), (right, factor_b) = fit(first.pixels), fit(other.pixels)
    gap = 40
    start = left.width + gap
    picture = Image.new("RGB", (start + right.width, max(left.height, right.height)), (255, 255, 255))
    picture.paste(left, (0, 0))
    picture.paste(right, (start, 0))
    draw = ImageDraw.Draw(picture)
    pairs = zip(matches.boxes_a.numpy(), matches.boxes_b.numpy(), strict=True)
    offset = np.array([start, 0, start, 0]) / factor_b
    boxes = [(drawn_box(a, factor_a), drawn_box(b + offset, factor_b)) for a, b in pairs]
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(boxes))]
    for (a, b), colour in zip(boxes, colours, strict=True):
        ends = ((a[0] + a[2]) / 2, (a[1] + a[3]) / 2, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2)
        draw.line(ends, fill=contrast(colour), width=4)
        draw.line(ends, fill=colour, width=2)
    for number, (pair, colour) in enumerate(zip(boxes, colours, strict=True), start=1):
        for box in pair:
            outline(draw, box, colour, dashed=False)
            tag(picture, box, str(number), colour)
    return picture
