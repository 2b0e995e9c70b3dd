"""How images a second and memory grow with the work: batch, image size, windows, levels, groups in a pass, workers.

    python benchmarks/growth.py                                   # ResNet-50 on this machine's CPU
    python benchmarks/growth.py --device cuda --group 32 --tables batch size windows levels
    python benchmarks/growth.py --group 32 --tables batch --warmup 1 --times 1    # up to 1,024 images a step
    python benchmarks/growth.py --tables workers --jpeg DIR
    python benchmarks/growth.py --tables processes                # 1, 2 and 4 processes of this machine, gloo

Each row runs in a separate process (a CPU's peak memory is that of the process). On a GPU, whose allocator counts
memory, all rows run in one process, unless `--own-processes` is set.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from pretrain_step import random_views

from resim import recipes
from resim.bench import measure
from resim.distributed.processes import start_processes
from resim.regions.level import Level
from resim.runs.config import Recipe
from resim.training.precision import choose_precision
from resim.training.step import make_stepper
from resim.views.folder import find_images

P4 = Level(name="P4", window=48, step=32, negatives="all")
P3 = Level(name="P3", window=32, step=24, negatives="group")
P5 = Level(name="P5", window=96, step=32, negatives="all")
LEVELS = {"none": (), "P4": (P4,), "P4 P3": (P4, P3), "P5 P4 P3": (P5, P4, P3)}


def rows(table: str, options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Titles of the rows, and their options."""
    gpu = options.device == "cuda"
    if table == "batch":
        batches = (32, 64, 128, 256, 512, 1024) if gpu or options.group else (8, 16, 32, 64)
        return [(str(b), {"batch": b}) for b in batches]
    if table == "size":
        return [(f"{s} px", {"image_size": s}) for s in ((128, 224, 320, 448) if gpu else (128, 224, 320))]
    if table == "windows":
        counts = {step: len(Level(name="P4", window=48, step=step).windows(options.image_size)) for step in (32, 16, 8)}
        return [(f"{n} on P4", {"window_step": step}) for step, n in counts.items()]
    if table == "levels":
        return [(name, {"levels": name}) for name in LEVELS]
    if table == "groups":
        groups = options.batch // (options.group or options.batch)
        return [(f"{2**i} at a time", {"groups_at_a_time": 2**i}) for i in range(groups.bit_length())]
    if table == "workers":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [(f"{w} workers", {"only_loader": w}) for w in (1, 2, 4, 8, 16) if w <= max(cores, 2)]
    return [(f"{p} processes", {"processes": p}) for p in (1, 2, 4)]


def make_recipe(options: argparse.Namespace) -> Recipe:
    recipe = recipes.resim_fpn()
    levels = LEVELS[options.levels]
    if options.window_step:
        levels = tuple(dataclasses.replace(x, step=options.window_step) if x.name == "P4" else x for x in levels)
    group = min(options.group or options.batch, options.batch)
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, backbone=options.backbone, group_size=group, levels=levels),
        views=dataclasses.replace(recipe.views, image_size=options.image_size),
        optim=dataclasses.replace(recipe.optim, batch_size=options.batch),
    )


def run_row(options: argparse.Namespace) -> dict[str, Any]:
    recipe = make_recipe(options)
    if options.only_loader:
        rate = measure.loader_rate(find_images(options.jpeg), recipe, options.only_loader, options.seconds)
        return {"rate": rate.median, "memory": measure.peak_memory_gb(torch.device("cpu"))}
    with start_processes(options.device) as processes:
        precision = choose_precision(options.precision, processes.device)
        stepper = make_stepper(
            recipe.model, recipe.optim, processes, precision=precision, groups_at_a_time=options.groups_at_a_time,
            compile_encoders=options.compile,
        )  # fmt: skip
        share = argparse.Namespace(batch=options.batch // processes.count, image_size=options.image_size)
        views = random_views(share, processes.device)
        order = torch.randperm(options.batch, generator=torch.Generator().manual_seed(0))
        # a fixed number of steps: all processes must take as many
        each = []
        for _ in range(options.warmup + options.times):
            if processes.device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            float(stepper(*views, order)["total"])
            each.append(options.batch / (time.perf_counter() - start))
        memory = measure.peak_memory_gb(processes.device)
        return {"rate": statistics.median(each[options.warmup :]), "memory": memory} if processes.first else {}


def row_here(changes: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """A row in this process."""
    try:
        return run_row(argparse.Namespace(**vars(options) | changes))
    except Exception as error:  # the next row may fit
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:100]}
    finally:
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def child(changes: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    merged = vars(options) | changes
    words = ["--row"]
    for name, value in merged.items():
        if name in ("row", "tables", "processes", "own_processes") or value == "" or value is None or value is False:
            continue
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    command = [sys.executable, __file__, *words]
    if merged["processes"] > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(merged["processes"])]
        command = [sys.executable, *launcher, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["failed"]
        return {"error": lines[0].strip()[:100]}
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"rate"')))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tables", nargs="+", default=["batch", "size", "windows", "levels"],
        choices=["batch", "size", "windows", "levels", "groups", "workers", "processes"],
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--group", type=int, default=0, help="images a group; 0: the batch")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--levels", default="P4 P3", choices=list(LEVELS))
    parser.add_argument("--window-step", type=int, default=0, help="px between the windows on P4; 0: the recipe's")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "float32"])
    parser.add_argument("--groups-at-a-time", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--times", type=int, default=3, help="steps that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them that do not")
    parser.add_argument("--seconds", type=float, default=5, help="of a loader's measurement")
    parser.add_argument("--jpeg", default="", help="folder of photographs, for --tables workers")
    parser.add_argument("--own-processes", action="store_true", help="each row in a separate process on a GPU too")
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--only-loader", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(run_row(options)))
        return
    if "workers" in options.tables and not options.jpeg:
        parser.error("--tables workers needs --jpeg DIR")
    print(f"{options.backbone}, {options.image_size} px, batch {options.batch}, {options.device}")
    print(f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    for table in options.tables:
        print(f"\n{table:<16}{'images/s':>10}{'peak GB':>10}", flush=True)
        for name, changes in rows(table, options):
            here = options.device == "cuda" and table not in ("workers", "processes") and not options.own_processes
            result = (row_here if here else child)(changes, options)
            text = result.get("error") or f"{result['rate']:>10.1f}{result['memory']:>10.2f}"
            print(f"{name:<16}{text}", flush=True)


if __name__ == "__main__":
    main()
