"""What a step moves between processes, counted where it is moved; and a model of many GPUs built on it.

    python benchmarks/processes.py                               # bytes at the published size, 8 processes of 32 images
    python benchmarks/processes.py --step-seconds S --inside GB/S --between GB/S    # and the model, for such a machine

One process runs a real step of ResNet-50 as the first of several, in PyTorch's "fake" process group: every collective
is called with its true shapes and moves nothing, so that one machine can count for any number of processes. Bytes are
those that the process receives: of a gather all the other processes' rows, of an exchange the rows that come from
others (on average over shuffles), of the gradients' ring all-reduce 2 (W - 1) / W of them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from pretrain_step import random_views
from torch.testing._internal.distributed.fake_pg import FakeStore

from resim import recipes
from resim.model.resim import ReSim

GROUP = 32


def count(processes: int, *, bf16: bool, backbone: str, image_size: int) -> tuple[Counter[str], int, ReSim]:
    """Bytes that a process receives in a step, by what they are; the number of messages; the model."""
    received: Counter[str] = Counter()
    messages = 0
    share = (processes - 1) / processes

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal messages
            messages += 1
            tensor = args[0]
            times = 2 * share if function is all_reduce else share
            received[name_of(tensor)] += round(tensor.numel() * tensor.element_size() * times)
            return function(*args, **more)

        return call

    def name_of(tensor: torch.Tensor) -> str:
        if tensor.dim() == 4:
            return "key views, to where they are encoded"
        if tensor.dtype == torch.float64:
            return "windows, to where the key maps are"
        if tensor.dim() == 1:
            return "BatchNorm statistics"
        if tensor.dim() == 2:
            return "global key vectors"
        cells = {(image_size // level.stride - 2) ** 2: level.name for level in model.config.levels}
        return f"{cells[tensor.shape[1]]} cells, the negatives" if tensor.shape[1] in cells else "pooled positives"

    recipe = recipes.resim_fpn()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    all_reduce = dist.all_reduce
    names = ("all_gather_into_tensor", "all_to_all_single", "all_reduce")
    try:
        model = ReSim(dataclasses.replace(recipe.model, backbone=backbone, group_size=GROUP)).train()
        views = random_views(argparse.Namespace(batch=GROUP, image_size=image_size), torch.device("cpu"))
        order = balanced_order(processes)
        patches = [mock.patch.object(dist, name, counting(getattr(dist, name))) for name in names]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for patch in patches:
                patch.start()
            keys = model.encode_keys(*views, order=order)
            for level in keys.levels.values():
                assert len(level.cells.wait()) > 0 < len(level.positives.wait())
            model.finish_step(keys)
            for patch in patches:
                patch.stop()
    finally:
        dist.destroy_process_group()
    gradients = sum(p.numel() for p in model.query.parameters()) * 4
    received["gradients, all-reduced"] = round(2 * share * gradients)
    return received, messages, model


def balanced_order(processes: int) -> torch.Tensor:
    """A shuffle in which every process gets as many rows from every other: what random ones do on average."""
    return torch.arange(processes * GROUP).view(GROUP, processes).T.flatten()


def whole_maps(model: ReSim, processes: int, image_size: int) -> dict[str, int]:
    """The same for a program that gathers images, vectors and whole key maps to shuffle and unshuffle, in float32."""
    cells = sum((image_size // level.stride) ** 2 for level in model.config.levels)
    rows = {
        "key views": 3 * image_size**2,
        "whole key maps": cells * model.config.fpn_width,
        "global key vectors": 2 * model.config.dim,
        "P4 cells, the negatives": (image_size // 16 - 2) ** 2 * model.config.fpn_width,
    }
    return {name: (processes - 1) * GROUP * numbers * 4 for name, numbers in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--step-seconds", type=float, default=0, help="of a step of 32 images on one GPU, measured")
    parser.add_argument("--inside", type=float, default=0, help="GB/s that a GPU receives from those of its machine")
    parser.add_argument("--between", type=float, default=0, help="GB/s that a GPU receives from other machines")
    options = parser.parse_args()
    size = {"backbone": options.backbone, "image_size": options.image_size}
    received, messages, model = count(options.processes, bf16=True, **size)
    exact, _, _ = count(options.processes, bf16=False, **size)
    before = whole_maps(model, options.processes, options.image_size)
    title = f"{options.processes} processes of {GROUP} images, {options.image_size} px, {options.backbone}"
    print(f"{title}; a step and process")
    print(f"\n{'received, MB':<44}{'bf16':>9}{'float32':>9}")
    for name, size_ in received.items():
        print(f"  {name:<42}{size_ / 1e6:>9.2f}{exact[name] / 1e6:>9.2f}")
    state = sum(received.values()) - received["gradients, all-reduced"]
    state_exact = sum(exact.values()) - exact["gradients, all-reduced"]
    print(f"  {'all but the gradients':<42}{state / 1e6:>9.2f}{state_exact / 1e6:>9.2f}")
    print(f"\nin {messages} messages; with whole maps gathered and unshuffled, float32, MB")
    for name, size_ in before.items():
        print(f"  {name:<42}{size_ / 1e6:>18.2f}")
    print(f"  {'all but the gradients':<42}{sum(before.values()) / 1e6:>18.2f}")
    if options.step_seconds:
        print(f"\na model, not a measurement: {options.step_seconds} s a step of {GROUP} images; nothing overlapped")
        print(f"{'GPUs':>6}{'MB a step':>11}{'seconds moving':>16}{'efficiency':>12}")
        for gpus in (8, 16, 32, 64, 128, 256, 512):
            moved = sum(count(gpus, bf16=True, **size)[0].values()) if gpus <= 64 else scaled(received, options, gpus)
            speed = options.inside if gpus <= 8 else options.between
            taken = moved / (speed * 1e9)
            efficiency = options.step_seconds / (options.step_seconds + taken)
            print(f"{gpus:>6}{moved / 1e6:>11.1f}{taken:>16.4f}{efficiency:>12.1%}")


def scaled(received: Counter[str], options: argparse.Namespace, gpus: int) -> float:
    """Bytes for more processes than are counted: gathers grow with W - 1, the rest with (W - 1) / W."""
    before, now = options.processes, gpus
    gathers = ("global key vectors", "P4 cells, the negatives")
    more = (now - 1) / (before - 1)
    same = ((now - 1) / now) / ((before - 1) / before)
    return sum(size * (more if name in gathers else same) for name, size in received.items())


if __name__ == "__main__":
    main()
