"""The demo: the method's whole story in minutes, on scenes that the package draws or on one's own images.

ReSim and MoCo v2 are pre-trained for as long, both and the untrained network are asked where a region of one view lies
in another, a small detector is fine-tuned from each on a few labelled scenes, and a report shows it all.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from rich.console import Console

from resim import recipes
from resim.demo.images import DemoImages, drawn_scenes, own_images
from resim.demo.stages import Stages
from resim.demo.verdict import NAMES, verdict
from resim.detection.coco import read_coco
from resim.detection.compare import Comparison, Start, compare
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.recipes import quick as quick_detector
from resim.errors import UserError
from resim.exchange.encoders import load_encoders
from resim.pictures.comparison import draw_ap_curves, draw_comparison_sheet
from resim.pictures.report import report
from resim.probes.features import Network
from resim.probes.labels import read_images
from resim.probes.suite import Path as ScorePath
from resim.probes.suite import ProbeConfig, Score, probe_network
from resim.probes.tables import record
from resim.training import run_folder
from resim.training.checkpoints import write_atomically
from resim.training.config import Recipe, RunConfig
from resim.training.pretrain import pretrain
from resim.training.progress import Watch

TUNE_STEPS, TUNE_SEEDS = 300, (0,)
STAGES = {"draw the scenes": 1.0, "pre-train ReSim": 12.0, "pre-train MoCo v2": 10.0, "probe": 4.0, "fine-tune": 28.0,
        "write the report": 2.0}  # fmt: skip


def demo(data: Path | None, out: Path | None, *, pairs: int, seed: int) -> None:
    """Run the demo on `data`, or on scenes that the package draws itself.

    Args:
        data: a folder of images, or None; without labels nothing is fine-tuned.
        out: folder for everything that is written; None: runs/demo-DATE-TIME.
        pairs: view pairs that each model is pre-trained on.
        seed: of everything random.

    Raises:
        UserError: fewer images than one batch, or a folder that cannot be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    out = out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    run_folder.check_folder(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty, name another folder")
    started = time.perf_counter()
    stages = {
        name: share for name, share in STAGES.items() if data is None or name not in ("draw the scenes", "fine-tune")
    }
    with Stages(stages, console) as story:
        if data is None:
            with story.stage("draw the scenes"):
                images = drawn_scenes(out, seed)
        else:
            images = own_images(data, out, seed)
        recipe_pair = demo_recipes(images.count, pairs, seed)
        for recipe in recipe_pair:
            with story.stage(f"pre-train {NAMES[recipe.name]}") as watch:
                run = RunConfig(out=out / recipe.name, keep_every=0)
                if not pretrain(recipe, run, [images.train], show=False, watch=watch).finished:
                    console.print("The demo was stopped.")
                    return
        with story.stage("probe") as watch:
            scores = probe(out, images, seed, watch)
        found = None
        if images.labelled is not None:
            with story.stage("fine-tune") as watch:
                found = tune(out, images, recipe_pair[0], seed, watch)
            if found is None:
                console.print("The demo was stopped.")
                return
        with story.stage("write the report"):
            folders = [out / recipe.name for recipe in recipe_pair] + [out / "probe"]
            report([*folders, *([out / "detectors"] if found else [])], out / "report.html", images=[images.held_out])
    console.print(f"\n{images.told}; {(time.perf_counter() - started) / 60:.1f} minutes")
    for line in verdict(scores, found, out, held_out_is_new=data is None):
        console.print(line)


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


def demo_detector(pretrained: Recipe) -> DetectRecipe:
    """A small detector for the demo's scenes, of the architecture that was pre-trained; objects from 8 px on.

    Its learning rate is the one of 0.02, 0.05 and 0.1 that serves the untrained network and the pre-trained one best.
    """
    quick, steps = quick_detector(), TUNE_STEPS
    return dataclasses.replace(
        quick,
        name="demo",
        detector=dataclasses.replace(
            quick.detector,
            backbone=pretrained.model.backbone,
            fpn_width=pretrained.model.fpn_width,
            box_regions=32,
            anchor_sizes=(8, 16, 32, 64, 128),
        ),
        images=dataclasses.replace(quick.images, min_sizes=(112, 128, 144), max_size=192, test_size=128),
        tune=dataclasses.replace(
            quick.tune, steps=steps, lr=0.1, drops=(max(1, steps * 4 // 5),), warmup_steps=steps // 20, precise_bn=8
        ),
    )


def probe(out: Path, images: DemoImages, seed: int, watch: Watch) -> dict[str, dict[ScorePath, Score]]:
    """Region correspondence and health of the untrained network, ReSim's and MoCo v2's; writes probe/probe.json."""
    loaded = load_encoders(["random", *(str(out / name) for name in ("resim", "moco-v2"))], seed=seed)
    held_out = read_images(images.held_out, labelled=False)
    size = next(item.recipe.views.image_size for item in loaded if item.recipe is not None)
    config = ProbeConfig(probes=("correspondence", "health"), image_size=size, seed=seed, pairs=0)
    results: dict[str, dict[ScorePath, Score]] = {}
    about = {}
    for number, (name, item) in enumerate(zip(NAMES, loaded, strict=True)):
        network = Network(name=name, encoder=item.encoder, has_head=item.has_head, precision="float32")
        results[name] = probe_network(network, held_out, held_out, config)
        about[name] = item.about()
        watch(number + 1, len(loaded))
    content = json.dumps(record(results, about, held_out, held_out, dataclasses.asdict(config)), indent=2)
    write_atomically(out / "probe" / "probe.json", lambda file: file.write(content.encode()))
    return results


def tune(out: Path, images: DemoImages, pretrained: Recipe, seed: int, watch: Watch) -> Comparison | None:
    """Fine-tune the small detector from each network on the labelled scenes; None if it was stopped."""
    assert images.labelled is not None
    assert images.val is not None
    data, val = read_coco(images.labelled), read_coco(images.val)
    starts = [Start(name=name, weights="random" if name == "random" else str(out / name)) for name in NAMES]
    recipe = demo_detector(pretrained)
    run = DetectRun(eval_every=max(1, recipe.tune.steps // 2), eval_images=8)
    seeds = [seed + number for number in TUNE_SEEDS]
    folder = out / "detectors"
    found = compare(recipe, run, data, val, starts, seeds, folder, show=False, watch=watch)
    if found is not None:
        draw_ap_curves(found, folder / "curves.png", title="Detectors fine-tuned on a few labelled scenes")
        draw_comparison_sheet(found, val, folder / "detections.png")
    return found
