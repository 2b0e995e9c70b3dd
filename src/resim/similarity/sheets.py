"""The sheets of `resim similarity`: heat maps, matches and principal components, written into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resim.draw.sheet import draw_sheet
from resim.errors import UserError
from resim.exchange.encoders import load_encoders
from resim.runs.checkpoints import write_atomically
from resim.similarity.feature_maps import MAX_SIDE, feature_maps, load_photograph
from resim.similarity.figures import default_levels, heat_blocks, match_blocks, pca_blocks
from resim.similarity.regions import encoded_region

HEAT_NOTE = (
    "Colour over the gray image: cosine similarity to the marked region of the first image, from the lowest (dark "
    "blue) to the highest (yellow), interpolated bilinearly between the cells of the map. All images of a column share "
    "one colour scale; scales of different networks and levels differ. Ring: the most similar cell."
)
MATCHES_NOTE = (
    "Regions with the same number are mutual nearest neighbours by cosine similarity. Regions are windows of 3 x 3 "
    "cells, one at every cell, pooled by precise RoI pooling. The most similar pairs that do not overlap are shown."
)
PCA_NOTE = (
    "The first three principal components of the cells of all images of a column: the first as lightness, the second "
    "from blue to yellow, the third from green to red. Similar colours mean similar features; colours of different "
    "columns are not comparable."
)


def write_similarity(
    paths: Sequence[str],
    checkpoints: Sequence[str],
    out: Path,
    *,
    region: tuple[float, ...] | None = None,
    levels: Sequence[str] = (),
    max_side: int = MAX_SIDE,
    pairs: int = 12,
) -> list[Path]:
    """Write the sheets: heat.png (if there is a region), matches.png (for two images or more), and pca.png.

    Args:
        paths: of the images; the region belongs to the first.
        checkpoints: as `load_encoders` takes them.
        out: folder of the pictures.
        region: a point (x, y) or a box (x0, y0, x1, y1) of the first image, px of the file.
        levels: levels to show; empty: those of the region losses.
        max_side: maximum side of an encoded image, px.
        pairs: maximum number of mutual nearest regions.

    Returns:
        The paths of the sheets.

    Raises:
        UserError: a file or checkpoint cannot be read, the region lies outside the image, or no network has a level.
    """
    photographs = [load_photograph(path, max_side) for path in paths]
    query = None if region is None else encoded_region(photographs[0], region)
    networks = load_encoders(checkpoints)
    maps = [[feature_maps(network.encoder, photograph) for photograph in photographs] for network in networks]
    for level in levels:
        known = dict.fromkeys(name for images in maps for name in images[0])
        if level not in known:
            raise UserError(f"--levels {level}: no network has this level; name some of {', '.join(known)}")
    chosen = tuple(levels) or default_levels(networks)
    sheets = {}
    if query is not None:
        blocks = heat_blocks(photographs, networks, maps, chosen, query)
        sheets["heat.png"] = draw_sheet("Cosine similarity to one region", HEAT_NOTE, blocks)
    if len(photographs) > 1:
        blocks = match_blocks(photographs, networks, maps, chosen, pairs)
        title = f"Mutual nearest regions of {photographs[0].name} and the other images"
        sheets["matches.png"] = draw_sheet(title, MATCHES_NOTE, blocks)
    blocks = pca_blocks(photographs, networks, maps, chosen)
    sheets["pca.png"] = draw_sheet("Principal components of the feature maps", PCA_NOTE, blocks)
    for name, sheet in sheets.items():
        write_atomically(out / name, lambda file, sheet=sheet: sheet.save(file, format="png"))
    return [out / name for name in sheets]
