"""The speed of the parts of a pre-training on this machine (loader, step, both together), and their memory.

A rate is in images per second. A measurement lasts a number of seconds and at least two turns, after one turn that does
not count.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from resim.bench.plain import plain_loader
from resim.model.reference import ReferenceReSim
from resim.runs.config import Recipe
from resim.training.optimizer import build_optimizer
from resim.training.step import Stepper
from resim.views.finish import Finisher
from resim.views.folder import PathList
from resim.views.loader import BatchOrder, PairBatch, PairDataset, make_loader, read_batches
from resim.views.views import Views

FOREVER = 10**9  # steps


@dataclass(frozen=True)
class Rate:
    """Images per second of each turn."""

    each: tuple[float, ...]
    waiting: float = 0.0
    """Share of the time spent waiting for data."""

    @property
    def median(self) -> float:
        """The median over the turns."""
        return statistics.median(self.each)

    def __str__(self) -> str:
        return f"{self.median:.1f} ({min(self.each):.1f} to {max(self.each):.1f})"


def batches(paths: PathList, recipe: Recipe, workers: int, *, pin_memory: bool = False) -> Iterator[PairBatch]:
    """The recipe's batches, without end."""
    batch = recipe.optim.batch_size
    # a folder with fewer images than a batch is repeated
    copies = -(-batch // len(paths))
    listed = PathList([*paths] * copies) if copies > 1 else paths
    order = BatchOrder(len(listed), batch, seed=recipe.optim.seed, end_step=FOREVER, shards=listed.shards)
    dataset = PairDataset(listed, recipe.views, recipe.optim.seed)
    return read_batches(make_loader(dataset, order, workers=workers, pin_memory=pin_memory))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_turns(
    turn: Callable[[], object], images: int, seconds: float, device: torch.device, *, warmup: int = 1
) -> Rate:
    """Call `turn`, which processes `images` images, for `seconds` and at least twice."""
    for _ in range(warmup):
        turn()
    each: list[float] = []
    _wait_for(device)
    began = time.perf_counter()
    while len(each) < 2 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        turn()
        _wait_for(device)
        each.append(images / (time.perf_counter() - start))
    return Rate(tuple(each))


def loader_rate(paths: PathList, recipe: Recipe, workers: int, seconds: float) -> Rate:
    """The rate of the loader alone: images are decoded, cropped and collated, and nothing else runs."""
    source = batches(paths, recipe, workers)
    size = recipe.optim.batch_size
    # batches that the workers have ready when the clock starts do not count
    rate = time_turns(lambda: next(source), size, seconds, torch.device("cpu"), warmup=_ready(workers, size))
    total = len(rate.each) / sum(1 / each for each in rate.each)  # batches arrive in bursts: the mean over them
    return Rate((total,))


def _ready(workers: int, batch: int) -> int:
    """Batches that the workers may have ready (two parts of 32 images for each worker); at most 20."""
    return min(3 + workers * 2 * 32 // batch, 20)


def time_run(turn: Callable[[], object], images: int, seconds: float, device: torch.device, *, warmup: int = 1) -> Rate:
    """As `time_turns`, but it waits for the device at the end alone, so that turns overlap: one rate over all turns."""
    for _ in range(warmup):
        turn()
    _wait_for(device)
    began, turns = time.perf_counter(), 0
    while turns < 3 or time.perf_counter() - began < seconds:
        turn()
        turns += 1
    _wait_for(device)
    return Rate((turns * images / (time.perf_counter() - began),))


def step_rate(stepper: Stepper, views: tuple[Views, Views], seconds: float) -> Rate:
    """The rate of the step alone, with its views ready on the device."""
    device = views[0].images.device
    return time_turns(lambda: stepper(*views, None), len(views[0]), seconds, device, warmup=2)


def together_rate(stepper: Stepper, paths: PathList, recipe: Recipe, workers: int, seconds: float) -> Rate:
    """The rate of the step fed by the loader; views are finished on the device as in a pre-training."""
    device = next(stepper.model.parameters()).device
    source = batches(paths, recipe, workers, pin_memory=device.type == "cuda")
    finish = Finisher(recipe.views, device)
    # a GPU uses up the batches that the workers have ready in these steps; a CPU is slower than the workers
    for _ in range(_ready(workers, recipe.optim.batch_size) if device.type == "cuda" else 2):
        stepper(*finish(next(source)), None)
    _wait_for(device)
    began, waited, turns = time.perf_counter(), 0.0, 0
    while turns < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - start
        stepper(*finish(batch), None)
        turns += 1
    _wait_for(device)
    taken = time.perf_counter() - began
    return Rate((turns * recipe.optim.batch_size / taken,), waiting=waited / taken)


class PlainStepper:
    """The reference implementation with its optimiser, called like `Stepper`."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, which published programs use
        torch.manual_seed(0)
        self.model = ReferenceReSim(recipe.model).to(device).train()
        self.optimizer = build_optimizer(self.model.query, recipe.optim, plain=True)

    def __call__(self, views_q: Views, views_k: Views) -> dict[str, torch.Tensor]:
        """Losses of one step."""
        losses = self.model(*(Views(v.images.contiguous(), v.crops, v.flipped) for v in (views_q, views_k)))
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}


def plain_together_rate(stepper: PlainStepper, paths: PathList, recipe: Recipe, workers: int, seconds: float) -> Rate:
    """The rate of the plain step fed by the plain loader."""
    device = next(stepper.model.parameters()).device
    batch = recipe.optim.batch_size
    # each worker makes whole batches: an epoch has several for each, and those that are ready at first do not count
    listed = [*paths] * -(-(batch * 4 * max(workers, 1)) // len(paths))
    began, waited, turns, taken = 0.0, 0.0, -max(workers, 2), 0.0
    while taken < seconds or turns < 3:
        start = time.perf_counter()
        loader = plain_loader(listed, recipe.views, batch, workers, pin_memory=device.type == "cuda")
        for images_q, crops_q, images_k, crops_k in loader:
            if turns == 0:
                _wait_for(device)
                began, waited, start = time.perf_counter(), 0.0, time.perf_counter()
            waited += time.perf_counter() - start
            images_q, images_k = (images.to(device, non_blocking=True) for images in (images_q, images_k))
            stepper(Views(images_q, crops_q), Views(images_k, crops_k))
            turns += 1
            start = time.perf_counter()
            taken = start - began if began else 0.0
            if turns >= 3 and taken >= seconds:
                break
    _wait_for(device)
    taken = time.perf_counter() - began
    return Rate((turns * batch / taken,), waiting=waited / taken)


def peak_memory_gb(device: torch.device) -> float:
    """The peak memory so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
