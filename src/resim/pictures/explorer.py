"""What the explorer shows: the images of one folder, and where the networks find a region of one of them again.

Nothing here knows of the web page (`explorer_page`). Images are named by their path within the folder; a name that was
not found there is refused, so that no other file can be asked for.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resim.errors import UserError
from resim.pictures.feature_maps import (
    FeatureMap,
    Photograph,
    feature_maps,
    levels_of,
    load_photograph,
    stride_of,
)
from resim.pictures.heat import heat_picture, mark_point, mark_region
from resim.pictures.networks import Network
from resim.pictures.similarity import Region, peak, region_vector, similarity_map
from resim.views.folder import find_images

MAX_SIDE = 640  # px: an answer within a second or two on a processor
_KEPT = 32  # maps of images by networks, the last ones asked for


class Explorer:
    """The images of a folder and the networks that look at them.

    Raises:
        UserError: no such folder, or no image in it.
    """

    def __init__(self, folder: Path, networks: Sequence[Network], max_side: int = MAX_SIDE) -> None:
        if not folder.is_dir():
            raise UserError(f"--images {folder}: is no folder")
        self.folder, self.networks, self.max_side = folder, tuple(networks), max_side
        self._paths = {Path(path).relative_to(folder).as_posix(): path for path in find_images([folder])}
        self.photograph = functools.lru_cache(_KEPT)(self._photograph)
        self._maps = functools.lru_cache(_KEPT)(self._compute_maps)

    @property
    def names(self) -> list[str]:
        """Every image, by its path within the folder."""
        return list(self._paths)

    @property
    def levels(self) -> list[str]:
        """Every level that a network has, those of the region losses first."""
        seen = [level for network in self.networks for level in network.region_levels]
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
        tables = []
        for level in levels:
            columns = []
            for number, network in enumerate(self.networks):
                if level not in levels_of(network.encoder):
                    continue
                maps = [self._maps(each, number)[level] for each in names]
                vector = region_vector(maps[0], region)
                heats = [similarity_map(vector, features) for features in maps]
                ends = (min(float(h.min()) for h in heats), max(float(h.max()) for h in heats))
                cells = [_heading(network, ends)]
                for i, (photograph, heat) in enumerate(zip(photographs, heats, strict=True)):
                    picture = Image.fromarray(heat_picture(photograph, heat, stride_of(level), ends))
                    if i == 0:
                        mark_region(picture, region, 1)
                        told = names[0]
                    else:
                        mark_point(picture, peak(heat, stride_of(level)))
                        told = f"{names[i]}: {float(heat.max()):.2f}"
                    cells.append(_figure(picture, told, f"{level}, {network.name}: similarity over {names[i]}"))
                columns.append(f'<div class="column">{"".join(cells)}</div>')
            side = stride_of(level)
            tables.append(
                f'<section data-level="{level}"><h3>{level}: a cell is {side} x {side} px</h3>'
                f'<div class="columns">{"".join(columns)}</div></section>'
            )
        return "".join(tables)

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


def data_url(picture: Image.Image | np.ndarray, quality: int = 85) -> str:
    """A picture as a JPEG within a URL."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _heading(network: Network, ends: tuple[float, float]) -> str:
    low, high = ends
    return (
        f'<div class="heading"><b>{html.escape(network.name)}</b><span>{html.escape(network.told)}</span>'
        f'<div class="scale"><span>{low:.2f}</span><i></i><span>{high:.2f}</span></div></div>'
    )


def _figure(picture: Image.Image, told: str, alternative: str) -> str:
    return (
        f'<figure><img src="{data_url(picture)}" alt="{html.escape(alternative)}">'
        f"<figcaption>{html.escape(told)}</figcaption></figure>"
    )
