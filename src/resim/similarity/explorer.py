"""What the explorer shows: the images of one folder, and where the networks find a region of one of them again.

Nothing here knows of the web page (`explorer_page`). Images are named by their path within the folder; a name that was
not found there is refused, so that no other file can be asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from resim.draw.html_blocks import block_html
from resim.draw.primitives import printable
from resim.errors import UserError
from resim.exchange.encoders import LoadedEncoder
from resim.similarity.blocks import heat_blocks
from resim.similarity.feature_maps import (
    FeatureMap,
    Photograph,
    feature_maps,
    levels_of,
    load_photograph,
    region_levels,
)
from resim.similarity.similarity import Region
from resim.views.folder import find_images

MAX_SIDE = 640  # px: an answer within a second or two on a processor
_PANEL_PX = 480
_KEPT = 32  # maps of images by networks, the last ones asked for


class Explorer:
    """The images of a folder and the networks that look at them.

    Raises:
        UserError: no such folder, or no image in it.
    """

    def __init__(self, folder: Path, networks: Sequence[LoadedEncoder], max_side: int = MAX_SIDE) -> None:
        if not folder.is_dir():
            raise UserError(f"--images {folder}: is no folder")
        self.folder, self.networks, self.max_side = folder, tuple(networks), max_side
        self._paths: dict[str, str] = {}
        found = find_images([folder])
        self.note = found.note()
        """What of the folder is passed over and why; empty where nothing is."""
        for path in found:
            name = printable(Path(path).relative_to(folder).as_posix())
            self._paths[f"{name} ({len(self._paths) + 1})" if name in self._paths else name] = path
        self.photograph = functools.lru_cache(_KEPT)(self._photograph)
        self._maps = functools.lru_cache(_KEPT)(self._compute_maps)

    @property
    def names(self) -> list[str]:
        """Every image, by its path within the folder."""
        return list(self._paths)

    @property
    def levels(self) -> list[str]:
        """Every level that a network has, those of the region losses first."""
        seen = [level for network in self.networks for level in region_levels(network.config)]
        return list(dict.fromkeys([*seen, *(level for n in self.networks for level in levels_of(n.encoder))]))

    def region(self, name: str, fractions: Sequence[float]) -> Region:
        """A click (x, y) or a drag (x0, y0, x1, y1), as fractions of a picture's sides, in px of the encoded image."""
        photograph = self.photograph(name)
        sides = (photograph.width, photograph.height)
        places = [min(max(float(f), 0.0), 1.0) * sides[i % 2] for i, f in enumerate(fractions)]
        if len(places) == 2:
            return places[0], places[1]
        (x0, x1), (y0, y1) = sorted(places[0::2]), sorted(places[1::2])
        return x0, y0, x1, y1

    def answer(self, name: str, region: Region, others: Sequence[str], levels: Sequence[str]) -> str:
        """Heat maps of a region over its own image and others, as HTML: a table a level, a column a network.

        Args:
            name: the region's image.
            region: px of it as encoded.
            others: images in which it is looked for.
            levels: of those that the networks have.

        Raises:
            UserError: an image that is not of the folder, or cannot be decoded.
        """
        names = [name, *(other for other in others if other != name)]
        photographs = [self.photograph(each) for each in names]
        maps = [[self._maps(each, number) for each in names] for number in range(len(self.networks))]
        blocks = heat_blocks(photographs, self.networks, maps, levels, region, panel_px=_PANEL_PX)
        return "".join(block_html(block, first_column=1) for block in blocks)

    def _photograph(self, name: str) -> Photograph:
        """An image of the folder by its name there.

        Raises:
            UserError: it was not found in the folder, or cannot be decoded.
        """
        if name not in self._paths:
            raise UserError(f"{name}: is none of the {len(self._paths)} images of {self.folder}")
        return load_photograph(self._paths[name], self.max_side)

    def _compute_maps(self, name: str, network: int) -> dict[str, FeatureMap]:
        return feature_maps(self.networks[network].encoder, self.photograph(name))
