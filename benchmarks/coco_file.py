"""How long a large COCO file takes to load, and how much memory.

Writes a file of the given number of annotations (seeded; boxes, polygons, 10 annotations an image) and its images,
which are links to one picture, and reads it in a process of its own:

    python benchmarks/coco_file.py --annotations 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, PER_IMAGE, WIDTH, HEIGHT = 80, 10, 640, 480
LINKS = 20_000  # to one file; file systems allow some 32,000
READ = r"""
import re, sys, time
from pathlib import Path
from resim.datasets.layouts import read_detection

start, cpu = time.perf_counter(), time.process_time()
data = read_detection(Path(sys.argv[1]), check_images=sys.argv[2] == "yes")
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e6
print(f"{data.num_objects} objects of {len(data)} images")
print(f"{seconds:.1f} s, of which {cpu:.1f} s on a core; at most {peak:.2f} GB of memory")
"""


def write(folder: Path, annotations: int, seed: int) -> Path:
    """The path of the file."""
    rng = np.random.default_rng(seed)
    images = -(-annotations // PER_IMAGE)
    pictures = folder / "images"
    pictures.mkdir()
    for first in range(0, images, LINKS):
        Image.new("RGB", (WIDTH, HEIGHT)).save(pictures / f"{first:012d}.jpg")
        for number in range(first + 1, min(images, first + LINKS)):
            os.link(pictures / f"{first:012d}.jpg", pictures / f"{number:012d}.jpg")
    path = folder / "instances.json"
    with path.open("w", encoding="utf-8") as file:
        listed = ({"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images))
        file.write('{"images": [')
        for number, image in enumerate(listed):
            file.write((", " if number else "") + json.dumps(image))
        file.write('], "categories": ')
        json.dump([{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)], file)
        file.write(', "annotations": [')
        for number in range(annotations):
            x, y, w, h = (round(float(v), 2) for v in rng.uniform((0, 0, 10, 10), (500, 340, 140, 140)))
            polygon = [[x, y, round(x + w, 2), y, round(x + w, 2), round(y + h, 2), x, round(y + h, 2)]]
            entry = {
                "id": number + 1, "image_id": number // PER_IMAGE, "category_id": number % CLASSES + 1, "iscrowd": 0,
                "area": round(w * h, 2), "bbox": [x, y, w, h], "segmentation": polygon,
            }  # fmt: skip
            file.write((", " if number else "") + json.dumps(entry))
        file.write("]}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check-images", choices=("yes", "no"), default="no")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), options.annotations, options.seed)
        print(f"{path.stat().st_size / 1e6:.0f} MB", flush=True)
        subprocess.run([sys.executable, "-c", READ, str(path), options.check_images], check=True)


if __name__ == "__main__":
    main()
