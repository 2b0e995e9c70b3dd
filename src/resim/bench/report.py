"""`resim bench`: what limits a pre-training on this machine and folder, and which settings to use."""

from __future__ import annotations

import math
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal

import torch

from resim.bench import measure
from resim.bench.config import BenchConfig
from resim.bench.measure import Rate
from resim.distributed.processes import Processes, start_processes
from resim.errors import UserError
from resim.runs.config import Recipe
from resim.training.precision import choose_precision, describe_precision
from resim.training.step import Stepper, make_stepper
from resim.views.finish import Finisher
from resim.views.folder import PathList


def bench(paths: PathList, recipe: Recipe, config: BenchConfig) -> None:
    """Measure loader, step and both together; print the rates, what limits, and the settings to use.

    Raises:
        UserError: several processes, no GPU, or too little memory for one group.
    """
    with start_processes(config.device) as processes:
        if processes.count > 1:
            raise UserError("resim bench measures one process: start it without torchrun")
        device = processes.device
        precision = choose_precision(config.precision, device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
        cores = f"{processes.cores} cores, {torch.get_num_threads()} threads"
        print(f"{recipe.name}: {recipe.model.backbone}, {recipe.views.image_size} px, batch {recipe.optim.batch_size}")
        described = describe_precision(precision, device)
        print(f"in groups of {recipe.model.group_size}, {described}; {name}, {cores}; torch {torch.__version__}")
        print(f"{len(paths)} images; {time.strftime('%Y-%m-%d')}\n", flush=True)
        if config.compare:
            compare(paths, recipe, config, precision, device)
            print()

        loaders = _measure_loaders(paths, recipe, processes.cores, config.seconds)
        steps = _measure_steps(paths, recipe, config, processes, precision)
        if not steps:
            raise UserError("a single group does not fit into the GPU's memory: set --group-size or --image-size lower")
        chosen = max(steps, key=lambda at_a_time: steps[at_a_time].median)
        stepper = _stepper(recipe, processes, precision, chosen, compiled=config.compile)
        both = {}
        print("step fed by the loader  images/s", flush=True)
        for workers in sorted({fewest_workers(loaders), max(loaders)}):
            both[workers] = measure.together_rate(stepper, paths, recipe, workers, config.seconds)
            text = f"{both[workers].median:8.1f}   waiting for data {both[workers].waiting:.1%}"
            print(f"  {workers:>3} workers           {text}", flush=True)
        workers = max(both, key=lambda w: both[w].median)
        print("\n" + verdict(loaders[workers], steps[chosen].median, both[workers], workers))
        groups = recipe.optim.batch_size // recipe.model.group_size
        print(advice(recipe, len(paths), both[workers].median, workers, chosen, groups))


def _measure_loaders(paths: PathList, recipe: Recipe, cores: int, seconds: float) -> dict[int, float]:
    """Print and return the rate of the loader by its number of workers."""
    print("loader alone            images/s", flush=True)
    rates = {}
    for workers in worker_counts(cores):
        rates[workers] = measure.loader_rate(paths, recipe, workers, seconds).median
        print(f"  {workers:>3} workers           {rates[workers]:8.1f}", flush=True)
    return rates


def _measure_steps(
    paths: PathList, recipe: Recipe, config: BenchConfig, processes: Processes, precision: Literal["float32", "bf16"]
) -> dict[int, Rate]:
    """Print and return the rate of the step by the number of groups in one pass, as far as they fit into memory."""
    print("step alone              images/s (least to most)        peak memory", flush=True)
    device = processes.device
    rates: dict[int, Rate] = {}
    views = Finisher(recipe.views, device)(next(measure.batches(paths, recipe, 0)))
    stepper: Stepper | None = None
    for at_a_time in groups_to_try(recipe.optim.batch_size // recipe.model.group_size):
        stepper = None  # one model in memory at a time
        try:
            stepper = _stepper(recipe, processes, precision, at_a_time, compiled=config.compile)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            rates[at_a_time] = measure.step_rate(stepper, views, config.seconds)
        except torch.cuda.OutOfMemoryError:
            print(f"  {at_a_time:>3} groups at a time   does not fit into memory", flush=True)
            torch.cuda.empty_cache()
            break
        memory = measure.peak_memory_gb(device)
        print(f"  {at_a_time:>3} groups at a time   {rates[at_a_time]!s:<30} {memory:8.2f} GB", flush=True)
    return rates


def worker_counts(cores: int) -> list[int]:
    """Numbers of workers to measure: 1, 2, 4, ... and the number of cores, at most 16."""
    most = min(cores, 16)
    return sorted({min(2**i, most) for i in range(5)})


def fewest_workers(rates: dict[int, float]) -> int:
    """The smallest number of workers whose rate is within 3 % of the highest."""
    return min(workers for workers, rate in rates.items() if rate >= 0.97 * max(rates.values()))


def groups_to_try(groups: int) -> list[int]:
    """Groups in one pass to measure: 1, a quarter of all, and all."""
    return sorted({1, max(1, groups // 4), groups})


def verdict(loader: float, step: float, both: Rate, workers: int) -> str:
    """What limits, in a sentence."""
    fed = f"fed, it reaches {both.median / step:.0%} of the step alone and waits {both.waiting:.1%} of the time"
    if both.waiting > 0.03:
        return f"the loader limits: {workers} workers load {loader:.1f} images/s, the step takes {step:.1f}; {fed}"
    if both.median < 0.9 * step:
        return f"the step limits, and loader and step share the same cores; {fed}"
    return f"the step limits; {fed}"


def advice(recipe: Recipe, images: int, rate: float, workers: int, at_a_time: int, groups: int) -> str:
    """The settings to use and how long the recipe takes with them."""
    num_images = images // recipe.optim.batch_size * recipe.optim.batch_size
    hours = num_images * recipe.optim.epochs / rate / 3600
    length = f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
    length = f"{hours * 60:.1f} minutes" if hours < 1 else length
    fits = "" if num_images else " (too few images for one batch)"
    return (
        f"use --workers {workers} --groups-at-a-time {at_a_time} with --batch-size {groups * recipe.model.group_size}: "
        f"{recipe.optim.epochs} epochs of {images} images take {length}{fits}"
    )


def _stepper(
    recipe: Recipe, processes: Processes, precision: Literal["float32", "bf16"], at_a_time: int, *, compiled: bool
) -> Stepper:
    return make_stepper(
        recipe.model, recipe.optim, processes, precision=precision, groups_at_a_time=at_a_time,
        compile_encoders=compiled,
    )  # fmt: skip


# -- the reference implementation


def compare(paths: PathList, recipe: Recipe, config: BenchConfig, precision: str, device: torch.device) -> None:
    """Print the plain step and ours, each measured in a separate process, one after the other."""
    variants = ["plain float32", "float32", *(["bf16"] if precision == "bf16" else [])]
    print("side by side            images/s (least to most)       ratio   peak memory   fed   waiting", flush=True)
    base = math.nan
    for variant in variants:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            result = pool.submit(run_variant, variant, list(paths), recipe, config, str(device)).result()
        rate, fed = Rate(tuple(result["each"])), result["fed"]
        base = rate.median if math.isnan(base) else base
        print(
            f"  {variant:<20}  {rate!s:<30} {rate.median / base:5.2f} x {result['memory']:8.2f} GB {fed:8.1f} "
            f"{result['waiting']:8.1%}",
            flush=True,
        )


def run_variant(variant: str, paths: list[str], recipe: Recipe, config: BenchConfig, device: str) -> dict[str, Any]:
    """One row of `compare`: the step alone, its peak memory, and the step fed by the plain loader or by ours."""
    place = torch.device(device)
    listed = PathList(paths)
    views = Finisher(recipe.views, place)(next(measure.batches(listed, recipe, 0)))
    with start_processes("cuda" if place.type == "cuda" else "cpu") as processes:
        workers = min(processes.cores, 16)
        if variant == "plain float32":
            plain = measure.PlainStepper(recipe, place)
            rate = measure.time_turns(lambda: plain(*views), len(views[0]), config.seconds, place, warmup=2)
            memory = measure.peak_memory_gb(place)
            fed = measure.plain_together_rate(plain, listed, recipe, workers, config.seconds)
        else:
            kind: Literal["float32", "bf16"] = "bf16" if variant == "bf16" else "float32"
            groups = recipe.optim.batch_size // recipe.model.group_size if place.type == "cuda" else 1
            ours = _stepper(recipe, processes, kind, groups, compiled=config.compile)
            rate = measure.step_rate(ours, views, config.seconds)
            memory = measure.peak_memory_gb(place)
            fed = measure.together_rate(ours, listed, recipe, workers, config.seconds)
    return {"each": rate.each, "memory": memory, "fed": fed.median, "waiting": fed.waiting}
