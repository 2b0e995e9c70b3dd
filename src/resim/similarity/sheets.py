"""`resim similarity`: the sheets of what can be shown of some images, written into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resim.draw.sheet import draw_sheet
from resim.errors import UserError
from resim.exchange.encoders import load_encoders
from resim.runs.checkpoints import write_atomically
from resim.similarity.blocks import default_levels, heat_blocks, match_blocks, pca_blocks
from resim.similarity.feature_maps import MAX_SIDE, feature_maps, load_photograph
from resim.similarity.similarity import encoded_region

HEAT_NOTE = (
    "Colour over the gray image: cosine of every place with the marked region of the first image, bilinear between the "
    "centres of the map's cells; dark blue is the least alike, yellow the most. One scale for each column of a block: "
    "its images compare, another network has a scale of its own. Ring: the most alike cell."
)
MATCHES_NOTE = (
    "Regions of the same number are each other's most similar region of the other image (cosine of precisely pooled "
    "windows, 3 cells wide, one at every cell). Drawn are the most alike that do not overlap."
)
PCA_NOTE = (
    "The first three principal components of a column's cells, over all its images: the first as lightness, the "
    "second from blue to yellow, the third from green to red. Like colours mean like features; colours of different "
    "columns do not compare."
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
    """Write what can be shown of some images: heat.png (with a region), matches.png (of two images or more), pca.png.

    Args:
        paths: of images; the region is the first one's.
        checkpoints: as `load_encoders` takes them.
        out: folder of the pictures.
        region: a point (x, y) or a box (x0, y0, x1, y1) of the first image, px of the file.
        levels: default: those of the region losses.
        max_side: of an encoded image, px.
        pairs: of mutual nearest regions, at most.

    Raises:
        UserError: a file or checkpoint that cannot be read, a region outside the image, or a level that no network has.
    """
    photographs = [load_photograph(path, max_side) for path in paths]
    place = None if region is None else encoded_region(photographs[0], region)
    networks = load_encoders(checkpoints)
    maps = [[feature_maps(network.encoder, photograph) for photograph in photographs] for network in networks]
    for level in levels:
        known = dict.fromkeys(name for images in maps for name in images[0])
        if level not in known:
            raise UserError(f"--levels {level}: no network here has it, they have {', '.join(known)}")
    chosen = tuple(levels) or default_levels(networks)
    sheets = {}
    if place is not None:
        blocks = heat_blocks(photographs, networks, maps, chosen, place)
        sheets["heat.png"] = draw_sheet("Where is this region found again?", HEAT_NOTE, blocks)
    if len(photographs) > 1:
        blocks = match_blocks(photographs, networks, maps, chosen, pairs)
        title = f"Mutual nearest regions of {photographs[0].name} and other images"
        sheets["matches.png"] = draw_sheet(title, MATCHES_NOTE, blocks)
    blocks = pca_blocks(photographs, networks, maps, chosen)
    sheets["pca.png"] = draw_sheet("What the feature maps tell apart", PCA_NOTE, blocks)
    for name, sheet in sheets.items():
        write_atomically(out / name, lambda file, sheet=sheet: sheet.save(file, format="png"))
    return [out / name for name in sheets]
