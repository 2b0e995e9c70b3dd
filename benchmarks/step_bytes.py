"""What a training step sends, counted in real processes of this machine, and a model for 1 to 512.

    python benchmarks/step_bytes.py                 # 1, 2 and 4 processes over gloo, 4 on two hosts, then the model
    python benchmarks/step_bytes.py --model-only

Each process takes one step of ReSim-FPN, forward, backward and update, with a few images. Every collective is
counted where it is called: the bytes that the process receives from others, and messages; the gradients in the hook of
DistributedDataParallel, as a ring all-reduce moves them. The model is one line a collective; the measured bytes must be
those of the model for the same number of images, or the script fails. `benchmarks/processes.py` counts single parts in
bfloat16 for any number of pretended processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pretrain_step import random_views
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from resim import recipes
from resim.distributed.processes import Processes
from resim.model.resim import ReSim
from resim.runs.config import Recipe
from resim.training.step import make_stepper

GRADIENTS, IMAGES, WINDOWS = "gradients", "key views", "windows"
VECTORS, POSITIVES, ALL_CELLS, GROUP_CELLS = "global keys", "positives", "cells of all", "cells of the group"
NODE_CELLS = "cells of the node"
NUMBERS, MEASURED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (1, 2, 4)


def model_of(
    recipe: Recipe, processes: int, images: int, parameters: int, *, half: bool = False, host: int = 0
) -> Counter[str]:
    """Bytes that a process receives in a step from others, by what they are.

    Args:
        recipe: its levels, width and image size.
        processes: their number, W.
        images: of each process, n.
        parameters: of the query encoder.
        half: key views, cells and pooled vectors are bfloat16 (views and cells only: 2 bytes).
        host: processes of each host; 0: all are on one.
    """
    others, size = (processes - 1) / processes, recipe.views.image_size
    narrow, received = 2 if half else 4, Counter[str]()
    received[GRADIENTS] = round(2 * others * parameters * 4)
    received[IMAGES] = round(others * images * 3 * size**2 * narrow)
    received[VECTORS] = (processes - 1) * images * recipe.model.dim * 4
    for level in recipe.model.levels:
        windows = len(level.windows(size))
        cells = images * (size // level.stride - 2) ** 2 * recipe.model.fpn_width * narrow
        received[WINDOWS] += round(others * images * windows * 4 * 8)
        received[POSITIVES] += round(others * images * windows * recipe.model.fpn_width * 4)
        if level.negatives == "all" or (level.negatives == "node" and host in (0, processes)):
            received[ALL_CELLS] += (processes - 1) * cells
            continue
        received[GROUP_CELLS] += round(others * cells)
        if level.negatives == "node":
            received[NODE_CELLS] += (host - 1) * cells
    return received


def count_step(rank: int, processes: int, images: int, port: int, results: Any, host: int = 0) -> None:
    """Take one step as process `rank`, and put what it received into `results`.

    Args:
        rank: of this process.
        processes: their number.
        images: of each process.
        port: of the store.
        results: receives the rank, bytes and messages.
        host: processes of each pretended host, with negatives=node on P4; 0: the recipe's negatives.
    """
    torch.set_num_threads(1)
    recipe = recipe_of(images, node=host > 0)
    if host:
        os.environ.update(LOCAL_RANK=str(rank % host), LOCAL_WORLD_SIZE=str(host))
    if processes > 1:
        store = cast(Any, dist).TCPStore("127.0.0.1", port, processes, rank == 0)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    received, messages = Counter[str](), Counter[str]()
    stepper = make_stepper(
        recipe.model, recipe.optim, Processes(rank, processes, torch.device("cpu"), 1), precision="float32"
    )
    shapes = {(recipe.views.image_size // level.stride - 2) ** 2: level for level in recipe.model.levels}

    def name_of(tensor: torch.Tensor) -> str:
        if tensor.dim() == 4:
            return IMAGES
        if tensor.dtype == torch.float64:
            return WINDOWS
        if tensor.dim() == 2:
            return VECTORS
        level = shapes.get(tensor.shape[1])
        return POSITIVES if level is None else ALL_CELLS if level.negatives == "all" else GROUP_CELLS

    def gather(out: torch.Tensor, rows: torch.Tensor, **more: Any) -> Any:
        name = NODE_CELLS if "group" in more else name_of(rows)
        received[name] += (len(out) // len(rows) - 1) * rows.nbytes
        messages[name] += 1
        return real["all_gather_into_tensor"](out, rows, **more)

    def exchange(out: torch.Tensor, rows: torch.Tensor, incoming: list[int], outgoing: list[int], **more: Any) -> Any:
        received[name_of(rows)] += out.nbytes // len(out) * (sum(incoming) - incoming[rank])
        messages[name_of(rows)] += 1
        return real["all_to_all_single"](out, rows, incoming, outgoing, **more)

    def hook(state: Any, bucket: Any) -> Any:
        received[GRADIENTS] += round(2 * (processes - 1) / processes * bucket.buffer().nbytes)
        messages[GRADIENTS] += 1
        return allreduce_hook(state, bucket)

    hook.__annotations__.clear()  # PyTorch compares them, and does not read them as texts
    real: dict[str, Callable[..., Any]] = {
        name: getattr(dist, name) for name in ("all_gather_into_tensor", "all_to_all_single")
    }
    if isinstance(stepper.query, DistributedDataParallel):
        stepper.query.register_comm_hook(None, hook)
    views = random_views(argparse.Namespace(batch=images, image_size=recipe.views.image_size), torch.device("cpu"))
    # each process gets as many rows from every other: what random shuffles do on average
    order = torch.arange(processes * images).view(images, processes).T.flatten()
    with (
        mock.patch.object(dist, "all_gather_into_tensor", gather),
        mock.patch.object(dist, "all_to_all_single", exchange),
    ):
        stepper(*views, order)
    results.put((rank, dict(received), dict(messages)))
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def recipe_of(images: int, *, node: bool = False) -> Recipe:
    """ReSim-FPN with groups of so many images, and on request with negatives=node in place of negatives=all."""
    recipe = recipes.resim_fpn()
    levels = tuple(
        dataclasses.replace(level, negatives="node") if node and level.negatives == "all" else level
        for level in recipe.model.levels
    )
    model = dataclasses.replace(recipe.model, levels=levels, group_size=images, queue_size=4096)
    return dataclasses.replace(recipe, model=model, optim=dataclasses.replace(recipe.optim, batch_size=4 * images))


def measure(images: int, parameters: int) -> None:
    """Print what processes of this machine receive, and compare it with the model.

    Raises:
        SystemExit: they differ.
    """
    for processes, host in (*((number, 0) for number in MEASURED), (4, 2)):
        recipe = recipe_of(images, node=host > 0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = mp.get_context("spawn")
        results = context.Queue()
        workers = [
            context.Process(target=count_step, args=(rank, processes, images, port, results, host))
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        counted = sorted(results.get(timeout=600) for _ in workers)
        for worker in workers:
            worker.join()
        model = model_of(recipe, processes, images, parameters, host=host)
        expected = {name: size for name, size in model.items() if size}
        for rank, received, messages in counted:
            got = {name: size for name, size in received.items() if size}
            differ = {name for name in {*got, *expected} if abs(got.get(name, 0) - expected.get(name, 0)) > 64}
            if differ:
                raise SystemExit(f"process {rank} of {processes}: {differ}: counted {got}, model {expected}")
            if rank == 0:
                total = sum(messages.values())
                hosts = f" on {processes // host} hosts, negatives=node" if host else ""
                print(f"{processes} processes{hosts}, {images} images each: {sum(got.values())} bytes in "
                      f"{total} messages")  # fmt: skip
                for name, size in got.items():
                    print(f"    {name:<20}{size:>14} bytes{messages[name]:>4} messages; the model: {expected[name]}")


def print_model(images: int, parameters: int) -> None:
    """Print megabytes a step and process for 1 to 512 processes, in bfloat16, and what P4's negatives take."""
    recipe = recipes.resim_fpn()
    level = next(level for level in recipe.model.levels if level.negatives == "all")
    cells = images * (recipe.views.image_size // level.stride - 2) ** 2
    windows = images * len(level.windows(recipe.views.image_size))
    print(f"\na model, not a measurement: {images} images a process, ResNet-50, bfloat16; MB (10^6) a step and process")
    print("| processes | gradients | key views, windows, positives, P3 cells | global keys | P4 cells | sum |"
          " P4 negatives | P4 cells held | P4 similarities, if held at once |")  # fmt: skip
    print("| ---: " * 9 + "|")
    for processes in NUMBERS:
        received = model_of(recipe, processes, images, parameters, half=True)
        constant = sum(received[name] for name in (IMAGES, WINDOWS, POSITIVES, GROUP_CELLS))
        negatives = processes * cells
        row = [received[GRADIENTS], constant, received[VECTORS], received[ALL_CELLS], sum(received.values())]
        held = [negatives * recipe.model.fpn_width * 2, windows * negatives * 2]
        print(f"| {processes} | " + " | ".join(f"{value / 1e6:.1f}" for value in row)
              + f" | {negatives:,} | " + " | ".join(f"{value / 1e6:.0f}" for value in held) + " |")  # fmt: skip


def main() -> None:
    """Measure, then print the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="of each measured process, a multiple of 4")
    parser.add_argument("--model-only", action="store_true")
    options = parser.parse_args()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ReSim(recipes.resim_fpn().model).query.parameters())
    print(f"parameters of the query encoder: {parameters}")
    if not options.model_only:
        measure(options.images, parameters)
    print_model(32, parameters)


if __name__ == "__main__":
    main()
