"""JPEG decoders that pip installs, side by side on a folder of photographs: decoding alone, and all a loader does.

    python benchmarks/decoders.py DIR [--rounds 5]

One process, one thread, the files' bytes in memory. Each round goes through all the decoders in turn, so that a drift
of the machine's speed hits all; medians over the rounds are printed with minimum and maximum. A decoder that is not
installed, or does not work here, is reported with the reason. "views" is what a loader process does with an image:
decode it, sample both crops, cut and resize them to 224 px. Pillow and PyTurboJPEG, where installed, decode at a scale.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resim.views.crops import ViewsConfig, cut_views, draw_views, sample_generator
from resim.views.decode import Photo

Decode = Callable[[bytes, float], np.ndarray]  # bytes and the reduction that is allowed -> (H, W, 3) uint8


def pillow() -> Decode:
    def decode(data: bytes, reduction: float) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            if reduction >= 2:
                scale = next(s for s in (8, 4, 2) if s <= reduction)
                image.draft("RGB", (image.width // scale, image.height // scale))
            return np.array(image.convert("RGB"))

    return decode


def torchvision_io() -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes, reduction: float) -> np.ndarray:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = decode_jpeg(raw, mode=ImageReadMode.RGB)
        assert isinstance(image, torch.Tensor)
        return image.permute(1, 2, 0).contiguous().numpy()

    return decode


def simplejpeg() -> Decode:
    import simplejpeg as library  # type: ignore[import-not-found]

    return lambda data, reduction: library.decode_jpeg(data)


def pyturbojpeg() -> Decode:
    import turbojpeg  # type: ignore[import-not-found]

    library = turbojpeg.TurboJPEG()

    def decode(data: bytes, reduction: float) -> np.ndarray:
        factor = (1, 2 ** min(3, int(math.log2(reduction)))) if reduction >= 2 else None
        return library.decode(data, pixel_format=turbojpeg.TJPF_RGB, scaling_factor=factor)

    return decode


def torchcodec() -> Decode:
    from torchcodec.decoders import ImageReadMode, decode_jpeg  # type: ignore[import-not-found]

    def decode(data: bytes, reduction: float) -> np.ndarray:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(raw, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()

    return decode


DECODERS: dict[str, Callable[[], Decode]] = {
    "pillow": pillow,
    "torchvision.io": torchvision_io,
    "simplejpeg": simplejpeg,
    "PyTurboJPEG": pyturbojpeg,
    "torchcodec": torchcodec,
}


def views(decode: Decode, data: bytes, index: int, config: ViewsConfig) -> None:
    """What a loader process does with an image, this decoder in the place of its own."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    _, draws = draw_views(config, width, height, sample_generator(0, 0, index))
    cut_views(_Opened(decode, data, width, height), False, draws, config.image_size)


class _Opened(Photo):
    """A photograph as `cut_views` wants it."""

    def __init__(self, decode: Decode, data: bytes, width: int, height: int) -> None:
        self._decode, self._data, self.width, self.height = decode, data, width, height

    def pixels(self, reduction: float = 1.0) -> np.ndarray:
        return self._decode(self._data, reduction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision.io's, from torchvision 0.29 on
    files = [
        path.read_bytes() for path in sorted(options.folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")
    ]
    if not files:
        parser.error(f"{options.folder}: no JPEG files")
    config = ViewsConfig()
    usable: dict[str, Decode] = {}
    for name, make in DECODERS.items():
        try:
            decode = make()
            far = max(np.abs(decode(data, 1.0).astype(int) - pillow()(data, 1.0)).max() for data in files)
            print(f"{name:<16} works; its pixels differ from Pillow's by at most {far}")
            usable[name] = decode
        except Exception as error:  # whatever a library that does not work here raises
            print(f"{name:<16} cannot be used: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for name, decode in usable.items():
            start = time.perf_counter()
            for data in files:
                decode(data, 1.0)
            middle = time.perf_counter()
            for index, data in enumerate(files):
                views(decode, data, index, config)
            end = time.perf_counter()
            taken.setdefault((name, "decode"), []).append((middle - start) / len(files) * 1e3)
            taken.setdefault((name, "views"), []).append((end - middle) / len(files) * 1e3)
    print(f"\n{len(files)} files, {options.rounds} rounds, ms an image: median (least to most)")
    for (name, what), times in taken.items():
        print(f"{name:<16} {what:<8} {statistics.median(times):6.2f} ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
