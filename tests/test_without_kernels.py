"""A copy of the package without its folder of kernels trains all the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resim


@pytest.mark.slow
def test_it_trains_without_the_folder(tmp_path: Path) -> None:
    package = Path(resim.__file__).resolve().parent
    copy = tmp_path / "without" / "resim"
    shutil.copytree(package, copy, ignore=lambda folder, names: ["kernels"] if Path(folder) == package else [])
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(images / f"{index}.png")
    words = "pretrain --recipe quick --backbone resnet18 --fpn-width 8 --queue-size 4 --group-size 2 --batch-size 4"
    words += " --image-size 64 --epochs 2 --workers 0 --picture-every 0 --precision bf16"
    command = [sys.executable, "-m", "resim", *words.split(), str(images), "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bf16 without fused kernels" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["acceleration"] == {"kernels": "none: resim.kernels is not installed", "keep_memory": False}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
