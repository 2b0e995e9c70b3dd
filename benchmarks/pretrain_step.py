"""Images a second and memory of the whole training step, here against the same step written plainly, in one run.

    python benchmarks/pretrain_step.py                       # ResNet-50, 224 px, batch 16, on this machine's CPU
    python benchmarks/pretrain_step.py --device cuda --batch 256 --group 32
    python benchmarks/pretrain_step.py --jpeg DIR            # also fed from the images in DIR

Each variant runs in a separate process, in turn (plain, ours, plain, ours, ...), so that a drift of the machine's
speed hits all; peak memory is the process's own (CPU) or the allocator's (GPU). The step has all three losses; data
loading is left out, except in the rows that say so. Parts are timed alone on the same shapes: they need not add up.
The result of a process is printed when it ends, the table of all at the end. On a GPU the fed run comes after
the step's in the same process: an encoder is compiled once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resim import recipes
from resim.bench.measure import PlainStepper, peak_memory_gb, plain_together_rate, together_rate
from resim.distributed.processes import Processes
from resim.model.infonce import info_nce
from resim.regions.cells import key_cells
from resim.regions.pooling import precise_roi_pool
from resim.runs.config import Recipe
from resim.training.step import Stepper, make_stepper
from resim.views.folder import find_images
from resim.views.views import Views

Precision = Literal["float32", "bf16"]
VARIANTS: dict[str, Precision] = {
    "plain float32": "float32",
    "float32": "float32",
    "bf16": "bf16",
    "bf16 compiled": "bf16",
    "bf16 graphs": "bf16",  # compiled, and replayed as CUDA graphs
    "bf16 tuned": "bf16",  # on a GPU: convolutions chosen by trying them (cuDNN's benchmark)
    "bf16 modules": "bf16",  # on a CPU: PyTorch's modules,
    "bf16 norms": "bf16",  # with fused normalisation but none of our own products,
    "bf16 freeing": "bf16",  # and all fused, but with the C library's own way with memory
}
SETTINGS = {
    "bf16 modules": {"RESIM_KERNELS": "off"},
    "bf16 norms": {"RESIM_KERNELS": "norms"},
    "bf16 freeing": {"RESIM_KEEP_MEMORY": "0"},
}


def make_recipe(options: argparse.Namespace) -> Recipe:
    recipe = recipes.resim_fpn()
    model = dataclasses.replace(recipe.model, backbone=options.backbone, group_size=options.group or options.batch)
    views = dataclasses.replace(recipe.views, image_size=options.image_size)
    optim = dataclasses.replace(recipe.optim, batch_size=options.batch)
    return dataclasses.replace(recipe, model=model, views=views, optim=optim)


def random_views(options: argparse.Namespace, device: torch.device) -> tuple[Views, Views]:
    """Noise cut from 500 x 375 px images: the crops overlap as the recipe's do."""
    generator = torch.Generator().manual_seed(0)
    # many images take seconds on one core
    noise = generator if device.type == "cpu" else torch.Generator(device).manual_seed(0)
    pair = []
    for _ in range(2):
        size = (options.batch, 3, options.image_size, options.image_size)
        images = torch.randn(size, generator=noise, device=device).to(memory_format=torch.channels_last)
        height = 200 + torch.randint(0, 176, (options.batch,), generator=generator)
        width = 200 + torch.randint(0, 301, (options.batch,), generator=generator)
        top = (torch.rand(options.batch, generator=generator) * (376 - height)).floor()
        left = (torch.rand(options.batch, generator=generator) * (501 - width)).floor()
        pair.append(Views(images, torch.stack([top, left, height, width], dim=1).double()))
    return pair[0], pair[1]


def build(
    variant: str, recipe: Recipe, device: torch.device, options: argparse.Namespace
) -> tuple[Callable[[Views, Views], dict[str, torch.Tensor]], Stepper | None]:
    if variant == "plain float32":
        return PlainStepper(recipe, device), None
    alone = Processes(rank=0, count=1, device=device, cores=1)
    precision = VARIANTS[variant]
    torch.backends.cudnn.benchmark = variant.endswith("tuned")
    stepper = make_stepper(
        recipe.model, recipe.optim, alone, precision=precision, groups_at_a_time=options.groups_at_a_time,
        compile_encoders=variant.endswith("compiled"),
    )  # fmt: skip
    if variant == "bf16 graphs":
        query, key = (torch.compile(e, mode="reduce-overhead") for e in (stepper.model.query, stepper.model.key))
        stepper = dataclasses.replace(stepper, query=query, key=key)
    made = stepper
    return lambda q, k: made(q, k, None), made


def seconds(device: torch.device, function: Callable[[], object], times: int, warmup: int = 1) -> list[float]:
    taken = []
    for i in range(warmup + times):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= warmup:
            taken.append(time.perf_counter() - start)
    return taken


def parts(stepper: Stepper, views_q: Views, views_k: Views, times: int) -> dict[str, float]:
    """Median seconds of each part of our step, alone, on the shapes of the step."""
    model, config, device = stepper.model, stepper.model.config, views_q.images.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=stepper.precision == "bf16")
    group = min(config.group_size, len(views_q))
    per_pass = min(group * stepper.groups_at_a_time, len(views_q))
    groups, starts = per_pass // group, range(0, len(views_q), per_pass)

    def encoder() -> None:
        for start in starts:
            with bf16:
                vectors, maps = model.query(views_q.images[start : start + per_pass])
            (vectors.float().sum() + sum(m.float().mean() for m in maps.values())).backward()

    @torch.no_grad()
    def key_encoder() -> None:
        for start in starts:
            with bf16:
                model.key(views_k.images[start : start + per_pass])

    with torch.no_grad(), bf16:
        keys = model.encode_keys(views_q, views_k)
        maps = {name: m.float() for name, m in model.query(views_q.images[:per_pass])[1].items()}

    def regions() -> None:
        for _ in starts:
            for level in config.levels:
                features = maps[level.name].requires_grad_()
                features.grad = None
                boxes = keys.levels[level.name].windows
                F.normalize(precise_roi_pool(features, boxes, level.stride), dim=-1).sum().backward()
                with torch.no_grad():
                    F.normalize(precise_roi_pool(features, boxes.expand(per_pass, -1, -1), level.stride), dim=-1)
                    key_cells(features)

    def contrast() -> None:
        for start in starts:
            there = slice(start, start + per_pass)
            for level in config.levels:
                level_keys = keys.levels[level.name]
                positives, cells = level_keys.positives.wait()[there].flatten(0, 1), level_keys.cells.wait()
                if level.negatives == "group":
                    positives = positives.unflatten(0, (groups, -1))
                    cells = cells[there].flatten(0, 1).unflatten(0, (groups, -1))
                queries = positives.clone().requires_grad_()
                dtype = torch.bfloat16 if stepper.precision == "bf16" else None
                info_nce(queries, positives, cells, matmul_dtype=dtype).loss.mean().backward()
            vectors = keys.local_vectors()[there].clone().requires_grad_()
            info_nce(vectors, keys.local_vectors()[there], model.queue).loss.mean().backward()

    def optimizer() -> None:
        stepper.optimizer.step()
        get_ema_multi_avg_fn(config.key_momentum)(tuple(model.key.parameters()), tuple(model.query.parameters()), 0)

    measured = {"encoder, forward and backward": encoder, "key encoder": key_encoder, "regions": regions}
    measured |= {"InfoNCE": contrast, "optimiser and momentum": optimizer}
    return {name: statistics.median(seconds(device, function, times)) for name, function in measured.items()}


def fed(step: Callable, stepper: Stepper | None, options: argparse.Namespace) -> dict[str, float]:
    """The step fed from JPEG files: images a second, and the share of the time spent waiting for them."""
    recipe, paths = make_recipe(options), find_images([options.jpeg])
    if stepper is None:  # its views are made image by image in the loader processes
        assert isinstance(step, PlainStepper)
        rate = plain_together_rate(step, paths, recipe, options.workers, options.seconds)
    else:
        rate = together_rate(stepper, paths, recipe, options.workers, options.seconds)
    return {"images_per_second": rate.median, "waiting": rate.waiting}


def run_variant(variant: str, options: argparse.Namespace) -> dict[str, object]:
    device = torch.device(options.device)
    step, stepper = build(variant, make_recipe(options), device, options)
    if options.feed == "alone":
        return dict(fed(step, stepper, options))
    views_q, views_k = random_views(options, device)
    if options.profile:
        step(views_q, views_k)
        with torch.profiler.profile() as profiler:
            step(views_q, views_k)
        order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50))
        return {}
    first = {name: float(v) for name, v in step(views_q, views_k).items() if name in ("instance", "P4", "P3", "total")}
    taken = seconds(device, lambda: step(views_q, views_k), options.times)
    memory = peak_memory_gb(device)
    result: dict[str, object] = {"seconds": taken, "memory_gb": memory, "losses": first}
    if stepper is not None and options.parts:
        result["parts"] = parts(stepper, views_q, views_k, options.times)
    if options.feed == "after":
        del views_q, views_k
        result |= fed(step, stepper, options)
    return result


def child(variant: str, options: argparse.Namespace, *more: str) -> dict:
    names = ("device", "batch", "group", "image_size", "backbone", "times", "workers", "groups_at_a_time", "seconds")
    words = [word for n in names for word in (f"--{n.replace('_', '-')}", str(getattr(options, n)))]
    if options.jpeg:
        words += ["--jpeg", options.jpeg]
    command = [sys.executable, __file__, "--variant", variant, *words, *more]
    environment = os.environ | SETTINGS.get(variant, {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    for line in done.stderr.splitlines():
        if "tiles are used" in line:  # instead of the kernel
            print(f"{variant}: {line.strip()[:300]}", flush=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        print(f"{variant} failed:", *(line[:200] for line in lines[-12:]), sep="\n  ", flush=True)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--group", type=int, default=0, help="images a group; 0: the batch")
    parser.add_argument("--image-size", type=int, default=224, help="px")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--times", type=int, default=4, help="steps that count, in each process, after two that do not")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--jpeg", default="", help="folder of images; 'scenes' draws some at 500 x 375")
    parser.add_argument("--variant", choices=list(VARIANTS), help="only this one, in this process, printed as JSON")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="which to compare, the first is the base")
    parser.add_argument("--groups-at-a-time", type=int, default=0, help="0: one on a CPU, all on a GPU")
    parser.add_argument("--seconds", type=float, default=0.0, help="of the runs that are fed, after two steps")
    parser.add_argument("--profile", action="store_true", help="with --variant: PyTorch's profiler over one step")
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--feed", default="", choices=["alone", "after"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(run_variant(options.variant, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.jpeg == "scenes":
            from resim.scenes.scenes import write_scenes

            write_scenes(Path(folder) / "scenes", 128, width=500, height=375)
            options.jpeg = str(Path(folder) / "scenes")
        report(options)


def print_result(variant: str, turn: int, result: dict, options: argparse.Namespace) -> None:
    """Print the result of a process at once: the next ones may take too long."""
    rate, memory = options.batch / statistics.median(result["seconds"]), result["memory_gb"]
    print(f"({variant}, turn {turn + 1}: {rate:.2f} images/s, {memory:.2f} GB)", flush=True)
    if options.device == "cuda":
        lines = [f"{name} {1e3 * value:.1f} ms" for name, value in result.get("parts", {}).items()]
        lines += [f"fed {describe_fed(result)}"] if "waiting" in result else []
        for line in lines:
            print(f"  {variant}: {line}", flush=True)


def describe_fed(result: dict) -> str:
    return f"{result['images_per_second']:>8.2f} images/s, waiting {result['waiting']:.1%}"


def report(options: argparse.Namespace) -> None:
    variants = options.variants or ["plain float32", "float32", "bf16"]
    results: dict[str, list[dict]] = {variant: [] for variant in variants}
    gpu = options.device == "cuda"
    for turn in range(options.rounds):
        for variant in variants:
            # parts are the modules as they are: not those of an encoder that is compiled
            whole = variant in ("bf16 compiled", "bf16 graphs", "plain float32")
            more = ["--parts"] if turn == 0 and not whole else []
            more += ["--feed", "after"] if gpu and options.jpeg and turn == 0 else []
            result = child(variant, options, *more)
            if result:
                results[variant].append(result)
                print_result(variant, turn, result, options)
    variants = [variant for variant in variants if results[variant]]
    if not variants:
        sys.exit("every variant failed")
    results = {variant: results[variant] for variant in variants}
    group = options.group or options.batch
    print(f"{options.backbone}, {options.image_size} px, batch {options.batch} in groups of {group}, {options.device}")
    cores = f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {cores}, {time.strftime('%Y-%m-%d')}")
    rates = {
        variant: [options.batch / s for result in runs for s in result["seconds"]] for variant, runs in results.items()
    }
    base = statistics.median(rates[variants[0]])
    print(f"\n{'step':<16}{'images/s':>10}{'least':>8}{'most':>8}{'times':>8}{'peak GB':>9}   losses at the first step")
    for variant, runs in results.items():
        rate = rates[variant]
        memory = max(run["memory_gb"] for run in runs)
        losses = " ".join(f"{name} {value:.3f}" for name, value in runs[0]["losses"].items())
        print(
            f"{variant:<16}{statistics.median(rate):>10.2f}{min(rate):>8.2f}{max(rate):>8.2f}"
            f"{statistics.median(rate) / base:>8.2f}{memory:>9.2f}   {losses}"
        )
    if any("parts" in runs[0] for runs in results.values()):
        print("\nparts, ms a step, each timed alone", flush=True)
    for variant in variants:
        for name, value in results[variant][0].get("parts", {}).items():
            print(f"  {variant:<16}{name:<32}{1e3 * value:>9.1f}")
    if options.jpeg:
        print("\nfed from JPEG files")
        for variant in variants:
            result = results[variant][0] if gpu else child(variant, options, "--feed", "alone")
            if result:
                print(f"  {variant:<16}{describe_fed(result)}", flush=True)


if __name__ == "__main__":
    main()
