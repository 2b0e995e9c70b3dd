"""The ceilings of this machine, measured, and the highest rate of a step that they permit.

    python benchmarks/ceilings.py [--device cuda] [--batch 256]

Square matrix products (bfloat16 and float32, random data, the best of several sizes) and copies give the two ceilings.
FLOPs of a step are counted by PyTorch's counter over the network and the losses; bytes are those of every activation
that a layer reads or writes, forward and backward, where each layer is separate: a program that fuses layers needs
fewer.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from pretrain_step import random_views, seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resim import recipes
from resim.model.resim import ReSim

COUNTED = 2  # images over which FLOPs and bytes are counted


def median_seconds(device: torch.device, function: Callable[[], object]) -> float:
    return statistics.median(seconds(device, function, times=7, warmup=2))


def ceilings(device: torch.device) -> dict[str, float]:
    """FLOP/s of matrix products by dtype, and bytes/s of a copy (read and written both counted)."""
    gpu = device.type == "cuda"
    rates_by_name = {}
    for dtype in (torch.bfloat16, torch.float32):
        rates = []
        for side in (4096, 8192, 16384) if gpu else (1024, 1536, 2048, 3072):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            rates.append(2 * side**3 / median_seconds(device, lambda a=a, b=b: a @ b))
        rates_by_name[str(dtype).removeprefix("torch.")] = max(rates)
    source = torch.randn((2**30 if gpu else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    rates_by_name["copy"] = 2 * source.nbytes / median_seconds(device, lambda: target.copy_(source))
    return rates_by_name


def work(backbone: str, image_size: int, group: int) -> tuple[float, float]:
    """FLOPs and bytes an image of a step in bf16: query forward and backward, key forward, losses of a group."""
    recipe = recipes.resim_fpn()
    model = ReSim(dataclasses.replace(recipe.model, backbone=backbone, group_size=COUNTED, queue_size=8)).train()
    views = random_views(argparse.Namespace(batch=COUNTED, image_size=image_size), torch.device("cpu"))
    moved = 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        if not list(module.children()) and isinstance(output, Tensor):
            passes = 3 if torch.is_grad_enabled() else 1  # backward: gradients of both, and the input once more
            moved += passes * (inputs[0].numel() + output.numel()) * 2

    hooks = [m.register_forward_hook(note) for e in (model.query, model.key) for m in e.modules()]
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            model.key(views[1].images)
        vectors, maps = model.query(views[0].images)
        (vectors.sum() + sum(m.sum() for m in maps.values())).backward()
    for hook in hooks:
        hook.remove()
    flops = counter.get_total_flops() / COUNTED
    for level in model.config.levels:
        windows = len(level.windows(image_size))
        cells = (image_size // level.stride - 2) ** 2 * (256 if level.negatives == "all" else group)
        flops += 2 * 2 * windows * cells * model.config.fpn_width  # the logits, and the weighted mean of the negatives
    return flops + 2 * 2 * 65536 * model.config.dim, moved / COUNTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--group", type=int, default=32)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    limits = ceilings(device)
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"matrix products: bfloat16 {limits['bfloat16'] / 1e12:.2f}, float32 {limits['float32'] / 1e12:.2f} TFLOP/s")
    print(f"copies: {limits['copy'] / 1e9:.1f} GB/s, read and written")
    flops, moved = work(options.backbone, options.image_size, options.group)
    text = f"{flops / 1e9:.1f} GFLOP and {moved / 1e9:.3f} GB an image"
    print(f"a step of {options.backbone} at {options.image_size} px: {text}")
    by_products, by_memory = limits["bfloat16"] / flops, limits["copy"] / moved
    print(f"at most {by_products:.1f} images/s by bfloat16 products, {by_memory:.1f} by memory")


if __name__ == "__main__":
    main()
