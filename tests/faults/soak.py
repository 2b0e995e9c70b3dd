"""A soak: one process pre-trains, packs, trains detectors and answers requests of the explorer, in turn, for minutes.
The explorer is that of `resim explore` without its page, which needs gradio.

    cd tests && python -m faults.soak --minutes 30 --folder /tmp/soak

After every round it prints a line of JSON: seconds, rounds, resident memory, open descriptors, entries of /dev/shm that
belong to no process any more (of any program), temporary files, threads and child processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch

from resim.datasets.coco import read_coco
from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun, ImagesConfig, TuneConfig
from resim.detection.train import train_detector
from resim.exchange.encoders import load_encoders
from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.config import OptimConfig, Recipe, RunConfig
from resim.scenes.scenes import write_scenes
from resim.similarity.explorer import Explorer
from resim.training.pretrain import pretrain
from resim.views.config import ViewsConfig
from resim.views.folder import find_images
from resim.views.pack import PackConfig, pack
from thin_resnets import ThinResNet, resnets_of

PRETRAINING = Recipe(
    name="tiny",
    model=ModelConfig(
        backbone="resnet18", levels=(Level(name="P4", window=32, step=16),), fpn_width=16, dim=16, queue_size=16,
        group_size=4,
    ),
    views=ViewsConfig(image_size=64),
    optim=OptimConfig(epochs=1, batch_size=4),
)  # fmt: skip
DETECTOR = DetectRecipe(
    name="tiny",
    detector=DetectorConfig(
        backbone="resnet18", fpn_width=16, rpn_regions=16, box_regions=16, proposals_train=20, proposals_test=10
    ),
    images=ImagesConfig(min_sizes=(64,), max_size=96, test_size=64),
    tune=TuneConfig(steps=2, batch_size=2, drops=(), warmup_steps=0, lr=0.001),
)


def main() -> None:
    """Repeat the round until the minutes have passed, three times at least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder, which is removed at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True)
    tempfile.tempdir = str(options.folder / "temporary")
    Path(tempfile.tempdir).mkdir()
    began = time.monotonic()
    rounds = 0
    try:
        labels = write_scenes(options.folder / "scenes", 16, seed=1, width=96, height=72)
        with resnets_of(ThinResNet):
            explorer = None
            while rounds < 3 or time.monotonic() - began < 60 * options.minutes:
                explorer = play_round(options.folder, labels, explorer)
                rounds += 1
                seconds = round(time.monotonic() - began, 1)
                print(json.dumps({"seconds": seconds, "rounds": rounds} | held(options.folder)), flush=True)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def play_round(folder: Path, labels: Path, explorer: Explorer | None) -> Explorer:
    """Pre-train, pack, pre-train from the shards, train a detector, request heat maps."""
    images, work = labels.parent / "images", folder / "work"
    run = RunConfig(device="cpu", precision="float32", workers=2, log_every=1, keep_every=0)
    pretrain(PRETRAINING, dataclasses.replace(run, out=work / "run"), images, show=False)
    pack(find_images([images]), work / "packed", PackConfig(workers=2))
    pretrain(PRETRAINING, dataclasses.replace(run, out=work / "packed-run"), work / "packed", show=False)
    data = read_coco(labels)
    settings = DetectRun(out=work / "detector", device="cpu", precision="float32", workers=2, log_every=1)
    train_detector(DETECTOR, settings, data, data, init=str(work / "run"), show=False)
    if explorer is None:  # it lives as long as the process
        shutil.copytree(work / "run", folder / "explored")
        explorer = Explorer(images, load_encoders([str(folder / "explored")]), 64)
    for name in explorer.names:
        region = explorer.region(name, [0.2, 0.2, 0.7, 0.6])
        explorer.heat_maps_html(name, region, explorer.names[:2], explorer.levels)
    shutil.rmtree(work)
    return explorer


def held(folder: Path) -> dict[str, float]:
    """What the process holds now."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    files = [path for path in folder.rglob("*") if path.is_file()]
    leftovers = [path for path in files if path.name.startswith(".") or "temporary" in path.parts]
    return {
        "resident_mb": round(int(resident[1]) / 1024, 1),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "shared_memory": sum(_is_orphan(path.name) for path in Path("/dev/shm").iterdir()),
        "temporary_files": len(leftovers),
        "threads": threading.active_count(),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    }


def _is_orphan(name: str) -> bool:
    """Whether PyTorch's entry of /dev/shm is of a process that has ended: torch_PID_..."""
    number = re.match(r"torch_(\d+)_", name)
    return number is not None and not Path(f"/proc/{number[1]}").exists()


if __name__ == "__main__":
    main()
