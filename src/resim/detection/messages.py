"""The first lines that a fine-tuning prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.datasets.validation_split import split_line
from resim.detection.config import DetectRecipe, DetectRun, TuneConfig
from resim.detection.init import InitReport
from resim.detection.left_out import copies, not_scored
from resim.detection.recipes import DETECT_RECIPES
from resim.detection.samples import objects_to_learn
from resim.detection.shared_images import shared_images
from resim.distributed.processes import Processes

_ADAMW_LR = 0.005  # above it a step changes weights of the usual size, 0.01 to 0.1, by more than a twentieth


def opening_lines(
    recipe: DetectRecipe,
    run: DetectRun,
    data: DetectionData,
    val: DetectionData | None,
    processes: Processes,
    precision: str,
    out: Path,
    step: int,
    report: InitReport | None,
    left_out: Sequence[str] = (),
) -> list[str]:
    """What is trained on what, how a step is shared, which weights it begins with, and what was wrong with the data.

    Args:
        recipe: what is computed.
        run: where and how.
        data: to train on.
        val: to evaluate on.
        processes: that share a step.
        precision: of convolutions.
        out: the run's folder.
        step: steps done already.
        report: of the weights; None where the run is resumed.
        left_out: lines on what is not learnt from.
    """
    tune, detector = recipe.tune, recipe.detector
    kind = "Mask R-CNN" if detector.masks else "Keypoint R-CNN" if detector.keypoints else "Faster R-CNN"
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "CPU"
    each = tune.batch_size // processes.count
    size = min(run.images_per_pass or each, each)
    passes = f" in {-(-each // size)} passes of {size}, BatchNorm and losses by pass" if size < each else ""
    objects = _num_learnt(data, recipe)
    lines = [
        f"{recipe.name}: {kind} on {detector.backbone}-{detector.neck}, {counted(len(data), 'image')} "
        f"with {counted(objects, 'object')} of {counted(len(data.classes), 'class', 'classes')}, "
        f"{counted(tune.steps, 'step')}",
        f"a step is {counted(tune.batch_size, 'image')}, {each} on each of {processes.count} x {device}{passes}; "
        f"lr {tune.learning_rate(tune.warmup_steps):g}; {precision}; the run's folder is {out}"
        + (f"; resumed after step {step}" if step else "")
        + (", the last one: nothing is left to do" if step == tune.steps else ""),
    ]
    lines += _lr_warning(recipe) if report is not None else []
    if report is not None:
        lines += report.lines()
        if not report.loaded and detector.frozen_stages and detector.freeze == "none":
            lines.append("warning: --frozen-stages fixes stages that were never trained: set it to 0")
    lines += [f"  {line}" for line in (*left_out, *copies(data), *data.repairs.lines())]
    if val is not None and val.held_out is not None:
        lines.append(split_line(val))
    if val is not None:
        excluded = not_scored(val, masks=detector.masks, keypoints=detector.keypoints)
        of_val = [*excluded, *copies(val), *val.repairs.lines()]
        if of_val:
            lines.append(f"  in {val.source}, the validation data:")
            lines += [f"    {line}" for line in of_val]
    if val is not None and val.held_out is None:
        lines += shared_images(data, val)
    if val is None:
        lines.append("no --val: it is not evaluated (--val-fraction 0.2 holds a fifth of the images out for it)")
    return lines + _optimizer_lines(tune)


def _num_learnt(data: DetectionData, recipe: DetectRecipe) -> int:
    """Objects that are learnt from."""
    difficult, masks = recipe.images.difficult, recipe.detector.masks
    return sum(int(objects_to_learn(r, difficult=difficult, masks=masks).sum()) for r in data.records)


def _lr_warning(recipe: DetectRecipe) -> list[str]:
    """That the learning rate is the protocol's for another batch, and what the linear rule gives for this one."""
    tune = recipe.tune
    base = DETECT_RECIPES[recipe.name]().tune if recipe.name in DETECT_RECIPES else tune
    if tune.lr_batch or tune.lr != base.lr or tune.batch_size == base.batch_size:
        return []
    return [
        f"warning: --lr {tune.lr:g} is {recipe.name}'s for a batch of {base.batch_size} and is not rescaled: for "
        f"{tune.batch_size} the linear rule gives --lr {tune.lr * tune.batch_size / base.batch_size:g} (or --lr-batch "
        f"{base.batch_size})"
    ]


def _optimizer_lines(tune: TuneConfig) -> list[str]:
    """The optimiser where it is not SGD, and a warning where the learning rate suits SGD."""
    if tune.optimizer == "sgd":
        return []
    lr = tune.learning_rate(tune.warmup_steps)
    lines = [f"AdamW: betas {tune.betas[0]:g} and {tune.betas[1]:g}, weight decay {tune.weight_decay:g}"]
    if lr > _ADAMW_LR:
        lines.append(f"warning: lr {lr:g} is high for AdamW, which moves every weight by about the lr: set --lr 0.001")
    return lines
