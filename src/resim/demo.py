"""The demo: pre-train ReSim and, as long, MoCo v2; then ask both where a region of one view lies in another."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from resim import recipes
from resim.errors import UserError
from resim.model.resim import ReSim
from resim.probes.correspondence import Correspondence, correspondence, difference
from resim.training import run_folder
from resim.training.checkpoints import load_checkpoint
from resim.training.config import Recipe, RunConfig
from resim.training.log import read_metrics
from resim.training.pretrain import pretrain
from resim.views.folder import PathList, find_images
from resim.views.loader import PairDataset, collate
from resim.views.scenes import write_scenes
from resim.views.views import Views

SCENES, HELD_OUT, MOST_IMAGES = 512, 128, 2048


def demo(data: Path | None, out: Path | None, *, pairs: int, seed: int) -> None:
    """Run the demo on `data`, or on scenes that the package draws itself.

    Args:
        data: a folder of images, or None.
        out: folder for everything that is written; None: runs/demo-DATE-TIME.
        pairs: view pairs that each model is trained on.
        seed: of everything random.

    Raises:
        UserError: fewer images than one batch, or a folder that cannot be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    out = out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    run_folder.check_folder(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty, name another folder")
    train, images, held_out, told = _images(data, out, seed)
    resim_recipe, moco_recipe = demo_recipes(images, pairs, seed)
    console.print(f"[bold]Pre-training on {told}[/bold]")

    started = time.perf_counter()
    held_out_pairs = probe_pairs(held_out, resim_recipe, seed)
    scores = {"untrained": measure(ReSim(resim_recipe.model, seed=seed), held_out_pairs)}
    for name, recipe in (("ReSim", resim_recipe), ("MoCo v2", moco_recipe)):
        console.print(f"\n[bold]{name}[/bold]")
        folder = out / recipe.name
        result = pretrain(recipe, RunConfig(out=folder, keep_every=0), [train])
        if not result.finished:
            console.print("The demo was stopped.")
            return
        model = ReSim(recipe.model)
        model.load_state_dict(load_checkpoint(folder / "checkpoints" / "last.pt")["model"])
        scores[name] = measure(model, held_out_pairs)
    minutes = (time.perf_counter() - started) / 60
    for line in verdict(scores, out / resim_recipe.name, held_out_is_new=data is None):
        console.print(line)
    console.print(f"Checkpoint: {out / resim_recipe.name / 'checkpoints' / 'last.pt'}")
    console.print(f"Pictures: {out / resim_recipe.name / 'pictures'}, {out / resim_recipe.name / 'curves.png'}")
    console.print(f"It took {minutes:.1f} minutes. Look at the views and windows that were compared in the pictures.")


def demo_recipes(images: int, pairs: int, seed: int) -> tuple[Recipe, Recipe]:
    """The quick recipe for `pairs` view pairs of `images` images, and MoCo v2 of the same size and length.

    Raises:
        UserError: fewer images or pairs than one batch.
    """
    quick = recipes.quick()
    batch = quick.optim.batch_size
    if pairs < batch:
        raise UserError(f"--pairs {pairs}: must be at least one batch of {batch}")
    if images < batch:
        raise UserError(f"the demo needs at least {batch} images, there are {images}")
    epochs = max(1, round(pairs / (images // batch * batch)))
    optim = dataclasses.replace(quick.optim, epochs=epochs, seed=seed)
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


@torch.no_grad()
def measure(model: ReSim, pairs: list[tuple[Views, Views]]) -> dict[str, Correspondence]:
    """Correspondence of a query encoder: on C4, the backbone's layer3, and on P4 where there is an FPN."""
    model.eval()
    scores = {"C4": correspondence(lambda images: model.query.backbone(images)["C4"], pairs, stride=16)}
    if model.query.fpn is not None:
        scores["P4"] = correspondence(lambda images: model.query(images)[1]["P4"], pairs, stride=16)
    return scores


def verdict(scores: dict[str, dict[str, Correspondence]], run: Path, *, held_out_is_new: bool) -> list[str]:
    """What was learned, in lines for a person; it says so where a difference is within the noise."""
    metrics = read_metrics(run / "metrics.jsonl")
    first, last = metrics[0]["epoch"], metrics[-1]["epoch"]
    lines = ["", "What was learned"]
    for level in ("P4", "P3"):
        ends = [np.mean([m[f"accuracy/{level}"] for m in metrics if m["epoch"] == e]) for e in (first, last)]
        losses = [np.mean([m[f"loss/{level}"] for m in metrics if m["epoch"] == e]) for e in (first, last)]
        lines.append(
            f"  {level}: region accuracy {ends[0]:.1%} in the first epoch, {ends[1]:.1%} in the last; "
            f"loss {losses[0]:.2f}, then {losses[1]:.2f}"
        )
    where = "scenes that were not trained on" if held_out_is_new else "the training images, views drawn anew"
    lines.append(f"Is the most similar cell of the other view the right one? (on {where})")
    for name, levels in scores.items():
        lines += [f"  {name:<9} {level}: {score}" for level, score in levels.items()]
    for level, a, b in (("P4", "ReSim", "untrained"), ("C4", "ReSim", "untrained"), ("C4", "ReSim", "MoCo v2")):
        change, low, high = difference(scores[a][level], scores[b][level])
        sure = "" if low > 0 or high < 0 else ": within the noise, this run cannot tell them apart"
        interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        lines.append(f"  {level}, {a} less {b}: {100 * change:+.1f} points, {interval}{sure}")
    return lines


def _images(data: Path | None, out: Path, seed: int) -> tuple[Path, int, PathList, str]:
    """A list of images to train on and their number, images to measure on, and what they are in words."""
    if data is None:
        for name, count, scene_seed in (("train", SCENES, 2 * seed), ("held_out", HELD_OUT, 2 * seed + 1)):
            write_scenes(out / "scenes" / name, count, seed=scene_seed)
        paths = find_images([out / "scenes" / "train"])
        told = f"{len(paths)} scenes drawn by the package, in {out / 'scenes'}"
    else:
        paths = find_images([data])
        told = f"{len(paths)} images of {data}"
    order = np.random.default_rng([5, seed]).permutation(len(paths))
    if len(paths) > MOST_IMAGES:
        told += f", {MOST_IMAGES} of them drawn at random"
    out.mkdir(parents=True, exist_ok=True)
    listed = out / "images.txt"
    chosen = [str(Path(paths[int(i)]).resolve()) for i in sorted(order[:MOST_IMAGES])]
    listed.write_text("\n".join(chosen) + "\n", encoding="utf-8", errors="surrogateescape")
    train = find_images([listed])
    held_out = train if data is not None else find_images([out / "scenes" / "held_out"])
    return listed, len(train), PathList([held_out[i] for i in range(min(HELD_OUT, len(held_out)))]), told


def probe_pairs(paths: PathList, recipe: Recipe, seed: int) -> list[tuple[Views, Views]]:
    """One view pair of each image, in batches; not one that training has drawn."""
    dataset = PairDataset(paths, recipe.views, seed + 1)
    samples = [sample for i in range(len(paths)) if (sample := dataset[(0, i)])[3] >= 0]
    return [collate(samples[start : start + 32]).views(recipe.views) for start in range(0, len(samples), 32)]
