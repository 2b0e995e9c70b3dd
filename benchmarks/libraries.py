"""MoCo v2 by this package and by others from PyPI: the same backbone, batch, image size and precision, in one run.

    pip install lightly
    pip install pytorch-lightning==1.9.5 lightning-bolts==0.7.0 "setuptools<81" timm einops scipy
    pip install --no-deps solo-learn==1.0.2    # its dependencies require torch==1.9.1
    python benchmarks/libraries.py --jpeg DIR [--device cuda --batch 256 --workers 16]

Each row runs in a separate process, the rows in turn, `--rounds` times. "step" has its views ready on the device; "fed"
reads JPEG files with the transforms of each library. In the other libraries BatchNorm is over the whole batch; so it is
here (the group is the batch). A library that cannot be imported is reported with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from others import OTHERS, run_other
from torch import Tensor

from resim import recipes
from resim.bench.measure import peak_memory_gb, step_rate, together_rate
from resim.distributed.processes import Processes
from resim.training.step import make_stepper
from resim.views.folder import find_images
from resim.views.views import Views

ROWS = (*OTHERS, "resim")


def run_resim(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    recipe = recipes.moco_v2()
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, backbone=options.backbone, group_size=options.batch),
        views=dataclasses.replace(recipe.views, image_size=options.image_size),
        optim=dataclasses.replace(recipe.optim, batch_size=options.batch),
    )
    alone = Processes(rank=0, count=1, device=device, cores=1)
    stepper = make_stepper(recipe.model, recipe.optim, alone, precision=options.precision)
    crops = torch.tensor([[0.0, 0.0, 200.0, 200.0]], dtype=torch.float64).expand(options.batch, 4)
    views = [Views(images, crops) for images in random_images(options, device)]
    rate = step_rate(stepper, (views[0], views[1]), options.seconds)
    result: dict[str, Any] = {"step": rate.each, "memory": peak_memory_gb(device)}
    if options.jpeg:
        paths = find_images(options.jpeg)
        result["fed"] = together_rate(stepper, paths, recipe, options.workers, options.seconds).median
    return result


def random_images(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (2, options.batch, 3, options.image_size, options.image_size)
    pair = torch.randn(size, generator=generator).to(device)
    return pair[0].contiguous(memory_format=torch.channels_last), pair[1].contiguous(memory_format=torch.channels_last)


def run(row: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    if row == "resim":
        return run_resim(options, device)
    return run_other(row, random_images(options, device), options, device)


def child(row: str, words: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *words, "--row", row], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1][:160] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--image-size", type=int, default=224, help="px")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "float32"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each row")
    parser.add_argument("--jpeg", default="", help="folder of photographs")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        warnings.simplefilter("ignore")
        print(json.dumps(run(options.row, options, torch.device(options.device))))
        return
    if options.jpeg and not Path(options.jpeg).is_dir():
        parser.error(f"{options.jpeg}: no such folder")
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for _ in range(options.rounds):
        for row in ROWS:
            if not any("error" in result for result in results[row]):
                results[row].append(child(row, sys.argv[1:]))
    print(f"MoCo v2, {options.backbone}, {options.image_size} px, batch {options.batch}, {options.precision}")
    print(f"{options.device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print(f"{'':<12}{'step, images/s':>16}{'least':>9}{'most':>9}{'peak GB':>9}{'fed, images/s':>15}")
    for row, runs in results.items():
        if "error" in runs[-1]:
            print(f"{row:<12} cannot be run: {runs[-1]['error']}")
            continue
        each = [rate for result in runs for rate in result["step"]]
        fed = [result["fed"] for result in runs if "fed" in result]
        text = f"{statistics.median(fed):.1f}" if fed else "-"
        memory = max(result["memory"] for result in runs)
        print(f"{row:<12}{statistics.median(each):>16.1f}{min(each):>9.1f}{max(each):>9.1f}{memory:>9.2f}{text:>15}")
    for row, other in OTHERS.items():
        if other.note and "error" not in results[row][-1]:
            print(f"\n{row}: {other.note}")


if __name__ == "__main__":
    main()
