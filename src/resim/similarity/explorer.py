"""The content of the explorer: the images of one folder, and heat maps of a region of one of them.

The web page is in `explorer_page`. Images are named by their path within the folder; any other name is refused, so that
no other file can be requested.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from resim.draw.html_blocks import block_html
from resim.draw.primitives import printable
from resim.errors import UserError
from resim.exchange.encoders import LoadedEncoder
from resim.similarity.feature_maps import (
    FeatureMap,
    Photograph,
    feature_maps,
    levels_of,
    load_photograph,
    region_levels,
)
from resim.similarity.figures import heat_blocks
from resim.similarity.regions import Region
from resim.views.folder import find_images

MAX_SIDE = 640  # px: a request takes one or two seconds on a CPU
_PANEL_PX = 480
_CACHE_SIZE = 32  # most recent images, and maps of an image by a network


class Explorer:
    """The images of a folder and the networks that encode them.

    Raises:
        UserError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: Path, networks: Sequence[LoadedEncoder], max_side: int = MAX_SIDE) -> None:
        if not folder.is_dir():
            raise UserError(f"--images {folder}: is not a folder; name a folder of images")
        self.folder, self.networks, self.max_side = folder, tuple(networks), max_side
        self._paths: dict[str, str] = {}
        images = find_images([folder])
        self.note = images.note()
        """Which files of the folder are skipped, and why; empty if none."""
        for path in images:
            name = printable(Path(path).relative_to(folder).as_posix())
            self._paths[f"{name} ({len(self._paths) + 1})" if name in self._paths else name] = path
        self.photograph = functools.lru_cache(_CACHE_SIZE)(self._load_photograph)
        self._maps = functools.lru_cache(_CACHE_SIZE)(self._compute_maps)

    @property
    def names(self) -> list[str]:
        """Names of the images: their paths within the folder."""
        return list(self._paths)

    @property
    def levels(self) -> list[str]:
        """The levels of all networks, those of the region losses first."""
        first = [level for network in self.networks for level in region_levels(network.config)]
        return list(dict.fromkeys([*first, *(level for n in self.networks for level in levels_of(n.encoder))]))

    def region(self, name: str, fractions: Sequence[float]) -> Region:
        """Convert a click (x, y) or a drag (x0, y0, x1, y1), in fractions of the sides, to px of the encoded image."""
        photograph = self.photograph(name)
        sides = (photograph.width, photograph.height)
        coordinates = [min(max(float(f), 0.0), 1.0) * sides[i % 2] for i, f in enumerate(fractions)]
        if len(coordinates) == 2:
            return coordinates[0], coordinates[1]
        (x0, x1), (y0, y1) = sorted(coordinates[0::2]), sorted(coordinates[1::2])
        return x0, y0, x1, y1

    def heat_maps_html(self, name: str, region: Region, others: Sequence[str], levels: Sequence[str]) -> str:
        """Heat maps of a region over its image and others, as HTML: a block per level, a column per network.

        Args:
            name: the image of the region.
            region: px of the encoded image.
            others: other images to compare with.
            levels: of those that the networks have.

        Raises:
            UserError: an image is not in the folder, or cannot be decoded.
        """
        names = [name, *(other for other in others if other != name)]
        photographs = [self.photograph(name) for name in names]
        maps = [[self._maps(name, index) for name in names] for index in range(len(self.networks))]
        blocks = heat_blocks(photographs, self.networks, maps, levels, region, panel_px=_PANEL_PX)
        return "".join(block_html(block, first_column=1) for block in blocks)

    def _load_photograph(self, name: str) -> Photograph:
        """Load an image of the folder by its name.

        Raises:
            UserError: it is not in the folder, or cannot be decoded.
        """
        if name not in self._paths:
            raise UserError(f"{name}: is not one of the {len(self._paths)} images of {self.folder}")
        return load_photograph(self._paths[name], self.max_side)

    def _compute_maps(self, name: str, network: int) -> dict[str, FeatureMap]:
        return feature_maps(self.networks[network].encoder, self.photograph(name))
