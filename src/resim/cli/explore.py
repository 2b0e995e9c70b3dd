"""Explore similarity in a browser: click a place, see where the network finds it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.errors import UserError

WHEN_STOPPED = "the page is no longer served"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim explore`."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CKPT [CKPT ...]")]
    """Weights, side by side: random, a run's folder, a file of weights of any program that resim import reads, or
    torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once). random is the untrained network
    of the first one's recipe, random:RECIPE that of another."""
    images: Path
    """Folder of images; nothing but its images is shown (links in it are followed)."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is reached from this machine alone. Requests to other addresses than this one,
    127.0.0.1, localhost and [::1] are refused; with 0.0.0.0 or :: all addresses in numbers and the machine's name are
    answered."""
    port: int = 7860
    """Port to listen at."""
    max_side: int = 640
    """Images whose longer side is above this are made smaller before they are encoded, px."""


def run(options: Options) -> None:
    """Serve the page until Ctrl+C.

    Raises:
        UserError: as `load_encoders`; options that cannot work.
    """
    if options.max_side < 32:
        raise UserError(f"--max-side {options.max_side}: must be at least 32")
    if not 0 < options.port < 65536:
        raise UserError(f"--port {options.port}: must be from 1 to 65535")
    if not options.images.is_dir():
        raise UserError(f"--images {options.images}: is no folder")

    from resim.exchange.encoders import load_encoders
    from resim.similarity.explorer import Explorer
    from resim.similarity.explorer_page import serve

    explorer = Explorer(options.images, load_encoders(options.checkpoints), options.max_side)
    if explorer.note:
        print(explorer.note)
    serve(explorer, host=options.host, port=options.port)
