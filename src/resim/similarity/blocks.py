"""Pictures of similarity: where a region is found again, which regions of two images match, what a map holds.

Rows are images, columns are networks, and each level is a block of its own, drawn on a sheet or put into a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from resim.draw.primitives import PALETTE, contrast, drawn_box, outline, tag
from resim.draw.sheet import PANEL_PX, Block, Head, Panel, fit
from resim.exchange.encoders import LoadedEncoder
from resim.similarity.feature_maps import (
    FeatureMap,
    Photograph,
    region_levels,
    stride_of,
)
from resim.similarity.heat import component_pictures, heat_picture, mark_point, mark_region
from resim.similarity.similarity import (
    Matches,
    Region,
    mutual_nearest,
    peak,
    principal_components,
    region_vector,
    similarity_map,
)

Maps = Sequence[Sequence[dict[str, FeatureMap]]]
"""Of every network and of every image the map of every level."""


def default_levels(networks: Sequence[LoadedEncoder]) -> tuple[str, ...]:
    """The levels that the region losses have seen, and C4 if a network has seen none."""
    seen = dict.fromkeys(level for network in networks for level in region_levels(network.config))
    if not all(network.config.levels for network in networks):
        seen["C4"] = None
    return tuple(seen)


def heat_blocks(
    photographs: Sequence[Photograph],
    networks: Sequence[LoadedEncoder],
    maps: Maps,
    levels: Sequence[str],
    region: Region,
    *,
    panel_px: int = PANEL_PX,
) -> list[Block]:
    """Heat maps of a region of the first image over all of them.

    Args:
        photographs: at least one.
        networks: the columns.
        maps: of each network, of each image.
        levels: the blocks; a network that has not such a level is left out there.
        region: a point or a box of the first image, px of it as encoded.
        panel_px: width of a picture.
    """
    blocks = []
    for level in levels:
        heads, columns = [Head(name="Image")], [_originals(photographs, region)]
        for network, features in _having(networks, maps, level):
            vector = region_vector(features[0], region)
            heats = [similarity_map(vector, of_image) for of_image in features]
            ends = (min(float(heat.min()) for heat in heats), max(float(heat.max()) for heat in heats))
            heads.append(Head(name=network.name, told=network.kind, bar=ends))
            column = []
            for i, (photograph, heat) in enumerate(zip(photographs, heats, strict=True)):
                picture, factor = fit(heat_picture(photograph, heat, stride_of(level), ends), panel_px)
                x, y = peak(heat, stride_of(level))
                if i == 0:
                    mark_region(picture, region, factor)
                    column.append(Panel(picture=picture, caption="the region's own image", name=photograph.name))
                    continue
                mark_point(picture, (x * factor, y * factor))
                across, down = photograph.scale
                told = f"most alike: {float(heat.max()):.2f}, at {x / across:.0f}, {y / down:.0f} px"
                column.append(Panel(picture=picture, caption=told, name=photograph.name))
            columns.append(column)
        blocks.append(_block(level, heads, columns))
    return blocks


def match_blocks(
    photographs: Sequence[Photograph],
    networks: Sequence[LoadedEncoder],
    maps: Maps,
    levels: Sequence[str],
    count: int = 12,
) -> list[Block]:
    """Mutual nearest regions of the first image and each of the others, at most `count` a pair, joined by lines.

    The other arguments are those of `heat_blocks`; at least two photographs.
    """
    first, *others = photographs
    blocks = []
    for level in levels:
        heads, columns = [], []
        for network, features in _having(networks, maps, level):
            heads.append(Head(name=network.name, told=network.kind))
            column = []
            for other, of_other in zip(others, features[1:], strict=True):
                sizes = (first.width, first.height), (other.width, other.height)
                matches = mutual_nearest(features[0], of_other, *sizes, count=count)
                column.append(Panel(picture=_joined(first, other, matches), caption=_matches_told(other.name, matches)))
            columns.append(column)
        blocks.append(_block(level, heads, columns))
    return blocks


def pca_blocks(
    photographs: Sequence[Photograph], networks: Sequence[LoadedEncoder], maps: Maps, levels: Sequence[str]
) -> list[Block]:
    """The first three principal components of every map as colours; the arguments are those of `heat_blocks`."""
    blocks = []
    for level in levels:
        heads, columns = [Head(name="Image")], [_originals(photographs)]
        for network, features in _having(networks, maps, level):
            components, shares = principal_components(features)
            heads.append(Head(name=network.name, told=network.kind))
            pictures = component_pictures(components, stride_of(level), photographs)
            told = f"{', '.join(f'{100 * share:.0f}' for share in shares.tolist())} % of the variance"
            columns.append([Panel(picture=fit(picture)[0], caption=told) for picture in pictures])
        blocks.append(_block(level, heads, columns))
    return blocks


def _having(networks: Sequence[LoadedEncoder], maps: Maps, level: str) -> list[tuple[LoadedEncoder, list[FeatureMap]]]:
    """The networks that have a level, with their maps of it."""
    pairs = zip(networks, maps, strict=True)
    return [(network, [of[level] for of in images]) for network, images in pairs if all(level in of for of in images)]


def _block(level: str, heads: Sequence[Head], columns: Sequence[Sequence[Panel]]) -> Block:
    title = f"{level}: a cell is {stride_of(level)} x {stride_of(level)} px"
    return Block(title=title, heads=tuple(heads), rows=tuple(zip(*columns, strict=True)))


def _originals(photographs: Sequence[Photograph], region: Region | None = None) -> list[Panel]:
    panels = []
    for i, photograph in enumerate(photographs):
        picture, factor = fit(photograph.pixels)
        if i == 0 and region is not None:
            mark_region(picture, region, factor)
        width, height = photograph.original
        smaller = "" if photograph.scale == (1, 1) else f", seen at {photograph.width} x {photograph.height}"
        panels.append(Panel(picture=picture, caption=f"{photograph.name}, {width} x {height} px{smaller}"))
    return panels


def _matches_told(name: str, matches: Matches) -> str:
    if not len(matches.similarity):
        return f"{name}: no mutual pair"
    least = float(matches.similarity[-1])
    return f"{len(matches.similarity)} of {matches.mutual} mutual pairs, cosine {least:.2f} or more; {name}"


def _joined(first: Photograph, other: Photograph, matches: Matches) -> Image.Image:
    """Two images side by side, matched regions in the same colour and joined."""
    (left, factor_a), (right, factor_b) = fit(first.pixels), fit(other.pixels)
    gap = 40
    start = left.width + gap
    picture = Image.new("RGB", (start + right.width, max(left.height, right.height)), (255, 255, 255))
    picture.paste(left, (0, 0))
    picture.paste(right, (start, 0))
    draw = ImageDraw.Draw(picture)
    pairs = zip(matches.boxes_a.numpy(), matches.boxes_b.numpy(), strict=True)
    aside = np.array([start, 0, start, 0]) / factor_b
    boxes = [(drawn_box(a, factor_a), drawn_box(b + aside, factor_b)) for a, b in pairs]
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
