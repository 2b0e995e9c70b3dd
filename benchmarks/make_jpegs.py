"""JPEG files of 500 x 375 px and about 110 kB, where no photographs are at hand: make_jpegs.py DIR COUNT"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        pixels = np.zeros((375, 500, 3))
        for cells, strength in ((6, 70), (30, 35), (150, 12)):  # as in photographs, more at large scales
            noise = generator.normal(size=(cells, cells, 3)).astype(np.float32)
            layers = [Image.fromarray(noise[..., c]).resize((500, 375), Image.Resampling.BICUBIC) for c in range(3)]
            pixels += strength * np.stack([np.asarray(layer) for layer in layers], axis=-1)
        pixels += generator.normal(scale=6, size=pixels.shape)
        image = Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05d}.jpg", quality=92)


if __name__ == "__main__":
    main()
