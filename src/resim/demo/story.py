"""The demo: the whole method in a number of minutes, on scenes that the package makes or on the user's images.

ReSim and MoCo v2 are pre-trained on the same number of view pairs. Both and an untrained network are probed (region
correspondence, linear segmentation, dense retrieval), and a small detector is trained on each frozen backbone. A report
shows the results. The size of each part is planned by the speed of this machine.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from resim import recipes
from resim.counts import counted
from resim.demo.detectors import train_detectors
from resim.demo.images import DemoImages, make_scenes, sample_images
from resim.demo.plan import (
    DETECT,
    DRAW,
    MEASURE,
    MOCO,
    PROBE,
    REPORT,
    RESIM,
    Plan,
    Speeds,
    make_plan,
    plan_rest,
    scenes_that_fit,
)
from resim.demo.probes import probe
from resim.demo.sizes import Sizes
from resim.demo.speeds import measure_speeds, scene_seconds
from resim.demo.stages import Stages
from resim.demo.stopped import ends_with_what_remains, stops_after_training
from resim.demo.verdict import verdict
from resim.detection.compare import Comparison
from resim.errors import StoppedError, UserError
from resim.report.report import report
from resim.runs import folder as run_folder
from resim.runs.config import Recipe, RunConfig
from resim.training.pretrain import pretrain

__all__ = ["demo", "demo_recipes", "probe"]

MAX_MINUTES = 24 * 60


def demo(
    data: Path | None,
    out: Path | None,
    *,
    minutes: float = 10.0,
    pairs: int | None = None,
    seed: int = 0,
    began: float | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Run the demo on `data`, or on scenes that the package makes.

    Args:
        data: a folder of images, or None; without labels there are no detectors.
        out: folder of the results; None: runs/demo-DATE-TIME.
        minutes: time for the whole demo.
        pairs: view pairs of each pre-training; None: as many as fit.
        seed: seed of everything random.
        began: `time.perf_counter` when the clock started; None: now.
        sizes: sizes of data, networks and parts; None: the demo's.

    Raises:
        StoppedError: a signal stopped it: what remains of it.
        UserError: fewer images than one batch, or a folder that cannot be used.
    """
    began, sizes = began or time.perf_counter(), sizes or Sizes()
    console = Console(highlight=False, soft_wrap=True)
    batch = sizes.recipe.optim.batch_size
    if pairs is not None and pairs < batch:
        raise UserError(f"--pairs {pairs}: must be at least one batch of {batch}")
    if not 0 < minutes <= MAX_MINUTES:
        raise UserError(f"--minutes {minutes:g}: must be above 0 and at most {MAX_MINUTES}")
    out = out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    run_folder.check_folder(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty, name another folder")
    names = [DRAW, MEASURE, RESIM, MOCO, PROBE, DETECT, REPORT]
    names = [name for name in names if data is None or name not in (DRAW, DETECT)]
    with ends_with_what_remains(out), Stages(names, 60 * minutes, began, console) as story:
        if data is None:
            with story.stage(DRAW):
                most = sizes.scenes, sizes.held_out
                scenes, held_out = scenes_that_fit(minutes, scene_seconds(2 * seed), most)
                images = make_scenes(out, seed, dataclasses.replace(sizes, scenes=scenes, held_out=held_out))
        else:
            images = sample_images(data, out, seed, sizes)
        epoch_pairs = images.count // batch * batch
        recipe_pair = demo_recipes(images.count, epoch_pairs, seed, sizes.recipe)
        with story.stage(MEASURE) as watch:
            speeds = measure_speeds(images, recipe_pair, seed, watch, sizes.measured)
        plan = make_plan(
            minutes, speeds, epoch_pairs=epoch_pairs, used=story.used, pairs=pairs, labels=images.num_evaluated,
            bounds=sizes.bounds,
        )  # fmt: skip
        print_plan(plan, images, console)
        scores, comparison = _run_plan(plan, speeds, out, images, seed, story, sizes)
    taken = (time.perf_counter() - began) / 60
    console.print(
        f"\n{images.description}; it took {taken:.1f} minutes, {plan.total / 60:.1f} were planned of {minutes:g}"
    )
    for line in verdict(scores, comparison, out, images):
        console.print(line)


def _run_plan(
    plan: Plan, speeds: Speeds, out: Path, images: DemoImages, seed: int, story: Stages, sizes: Sizes
) -> tuple[dict, Comparison | None]:
    """Pre-train, probe, train detectors, report; the first two update the plan.

    Raises:
        StoppedError: a signal stopped it.
    """
    console, bounds, labels = story.console, sizes.bounds, images.num_evaluated
    story.expect(plan.seconds)
    recipe_pair = demo_recipes(images.count, plan.pairs, seed, sizes.recipe)
    before = story.used
    for name, recipe in zip((RESIM, MOCO), recipe_pair, strict=True):
        with story.stage(name) as watch, stops_after_training():
            run = RunConfig(out=out / recipe.name, keep_every=0, picture_every=math.ceil(plan.epochs / 4))
            result = pretrain(recipe, run, [images.train], show=False, watch=watch)
            if not result.finished:
                command = shlex.join(["resim", "pretrain", str(images.train), "--out", str(result.out), "--resume"])
                raise StoppedError(f"stopped: {result.out} is saved after step {result.step}, {command} continues it")
    # the load of this machine may have changed: the rest is planned at the speed of what is done
    pace = (story.used - before) / (plan.seconds[RESIM] + plan.seconds[MOCO])
    speeds = speeds.scaled(pace)
    plan = plan_rest(plan, speeds, used=story.used, probed=False, labels=labels, bounds=bounds)
    story.expect(plan.seconds)
    with story.stage(PROBE) as watch:
        scores = probe(out, images, seed, watch, most=plan.probe_images)
    comparison = None
    if labels:
        plan = plan_rest(plan, speeds, used=story.used, probed=True, labels=labels, bounds=bounds)
        story.expect(plan.seconds)
        for line in plan.notes:
            console.print(line)
        if plan.steps:
            with story.stage(DETECT) as watch:
                comparison = train_detectors(out, images, recipe_pair[0], plan, seed, story, watch, sizes)
    with story.stage(REPORT):
        folders = [out / recipe.name for recipe in recipe_pair] + [out / "probe"]
        report([*folders, *([out / "detectors"] if comparison else [])], out / "report.html", images=[images.held_out])
    return scores, comparison


def print_plan(plan: Plan, images: DemoImages, console: Console) -> None:
    """Print the plan: the size of each stage, and the minutes that it takes."""
    amounts = {
        RESIM: f"{plan.pairs:,} view pairs, {plan.epochs} times every image",
        MOCO: "as many",
        PROBE: f"{plan.probe_images} held-out images",
        DETECT: f"{plan.steps} steps on {images.num_labelled} labelled scenes, from 3 networks, "
        f"{counted(plan.seeds, 'seed')}",
        REPORT: "",
    }
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("minutes", justify="right", no_wrap=True)
    table.add_column("how much")
    table.add_row("until now", f"{plan.used / 60:.1f}", "")
    for name, seconds in plan.seconds.items():
        table.add_row(name, f"{seconds / 60:.1f}", amounts[name])
    table.add_row("all of it", f"{plan.total / 60:.1f}", f"of the {plan.minutes:g} that it may take")
    console.print(table)
    for line in plan.notes:
        console.print(line)


def demo_recipes(images: int, pairs: int, seed: int, recipe: Recipe | None = None) -> tuple[Recipe, Recipe]:
    """A recipe (the quick one) for `pairs` view pairs of `images` images, and MoCo v2 of the same size and length.

    Both are trained by AdamW with a tenth of the steps as warm-up, which learns faster than SGD from so few pairs.

    Raises:
        UserError: fewer images or pairs than one batch.
    """
    quick = recipe or recipes.quick()
    batch = quick.optim.batch_size
    if images < batch:
        raise UserError(f"the demo needs at least {batch} images, there are {images}")
    epochs = max(1, round(pairs / (images // batch * batch)))
    optim = dataclasses.replace(
        quick.optim, epochs=epochs, seed=seed, optimizer="adamw", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05,
        decay_norms=False, clip_norm=10.0, schedule="cosine-per-step", warmup_epochs=epochs / 10,
    )  # fmt: skip
    moco, queue = recipes.moco_v2(), min(quick.model.queue_size, 2 ** (images.bit_length() - 1))
    return (
        dataclasses.replace(quick, name="resim", model=dataclasses.replace(quick.model, queue_size=queue), optim=optim),
        dataclasses.replace(
            moco,
            model=dataclasses.replace(quick.model, levels=(), queue_size=queue),
            views=dataclasses.replace(moco.views, image_size=quick.views.image_size, blur_sigma=quick.views.blur_sigma),
            optim=optim,
        ),
    )
