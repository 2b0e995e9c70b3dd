"""Region InfoNCE at the published size: plain, in tiles, and the Triton kernel; forward and backward.

    python benchmarks/contrast.py --device cuda        # P4: 9,216 queries, 36,864 negatives; P3: 8 x 2,048, 21,632
    python benchmarks/contrast.py --images 16          # fits into a CPU's memory

ms of a forward and backward pass (median of `--times`), peak memory beyond the inputs on a GPU, and the largest
difference of the loss from the plain form in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.model import infonce
from resim.model.infonce import info_nce

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    positive = (queries * positives).sum(-1, keepdim=True)
    logits = torch.cat([positive, queries @ negatives.to(queries.dtype).transpose(-1, -2)], dim=-1) / 0.2
    target = torch.zeros(logits.shape[:-1].numel(), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits.flatten(0, -2), target, reduction="none")


def tiles(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    with mock.patch.object(infonce, "_kernel", return_value=None):
        return info_nce(queries, positives, negatives, matmul_dtype=torch.bfloat16).loss.flatten()


def kernel(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    return info_nce(queries, positives, negatives, matmul_dtype=torch.bfloat16).loss.flatten()


def measure(name: str, loss: Loss, inputs: list[Tensor], times: int, exact: Tensor | None) -> Tensor | None:
    device = inputs[0].device
    gpu = device.type == "cuda"
    taken, value, before = [], None, 0
    try:
        for i in range(times + 1):
            queries = inputs[0].clone().requires_grad_()
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if gpu else 0
            start = time.perf_counter()
            value = loss(queries, inputs[1], inputs[2])
            value.mean().backward()
            if gpu:
                torch.cuda.synchronize()
            if i:
                taken.append(1e3 * (time.perf_counter() - start))
    except torch.cuda.OutOfMemoryError:
        print(f"  {name:<8} does not fit into memory", flush=True)
        return None
    assert value is not None
    peak = f"{(torch.cuda.max_memory_allocated() - before) / 1e9:8.3f} GB" if gpu else ""
    far = "" if exact is None else f"   differs by {(value - exact).abs().max().item():.4f}"
    print(
        f"  {name:<8} {statistics.median(taken):9.2f} ms ({min(taken):.2f} to {max(taken):.2f}) {peak}{far}", flush=True
    )
    return value.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    groups = max(1, options.images // options.group)
    per_group = options.images // groups
    shapes = {
        "P4": ((options.images * 36, 256), (options.images * 144, 256)),
        "P3": ((groups, per_group * 64, 256), (groups, per_group * 676, 256)),
    }
    generator = torch.Generator().manual_seed(0)
    for level, (of_queries, of_negatives) in shapes.items():
        print(f"{level}: queries {of_queries}, negatives {of_negatives}, {options.device}")
        samples = (torch.randn(shape, generator=generator) for shape in (of_queries, of_queries, of_negatives))
        inputs = [F.normalize(x, dim=-1).to(device) for x in samples]
        inputs[2] = inputs[2].bfloat16()
        exact = measure("plain", plain, inputs, options.times, None)
        measure("tiles", tiles, inputs, options.times, exact)
        if options.device == "cuda":
            measure("kernel", kernel, inputs, options.times, exact)


if __name__ == "__main__":
    main()
