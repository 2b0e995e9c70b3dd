"""Advice on settings that do not fit the number of images, and the command line that fits them better."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resim import recipes
from resim.runs.config import Recipe

PUBLISHED_PAIRS = 200 * 1_281_167
"""View pairs of the published pre-training: 200 epochs of ImageNet."""
_MAX_STALE, _GOOD_STALE = 0.25, 0.05  # share of its initial weights in the key encoder at the end of a run
_MAX_LEFT_OUT = 0.2  # share of the images that every epoch leaves out
_MIN_STEPS = 8  # of an epoch, where a batch size is chosen


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Settings that do not fit, and options that do."""

    reasons: tuple[str, ...]
    """Why each setting does not fit."""
    options: dict[str, str]
    """The value that fits, by name such as `--queue-size`."""

    def lines(self, command: Sequence[str], *, out_is_used: bool = True) -> list[str]:
        """Lines to print: each reason, and the command with the options that fit (without a command, the options)."""
        warnings = [f"warning: {reason}" for reason in self.reasons]
        if not self.options:
            return warnings
        return [*warnings, f"  fits better: {fitted_command(command, self.options, out_is_used=out_is_used)}"]


def advise(recipe: Recipe, images: int, *, processes: int = 1, start_epoch: int = 0) -> Advice:
    """Compare a recipe with the number of images.

    Args:
        recipe: what is trained; there is at least one batch of images.
        images: number of images.
        processes: number of processes that share a batch.
        start_epoch: epoch at which the run starts.
    """
    model, optim = recipe.model, recipe.optim
    reasons: list[str] = []
    options: dict[str, str] = {}
    if model.queue_size > images:
        fitting = 2 ** int(math.log2(images))
        options["--queue-size"] = str(fitting)
        reasons.append(
            f"the queue of {model.queue_size} keys is larger than the data set of {images} images, so it contains "
            f"keys of the same image as negatives: set --queue-size {fitting} or less"
        )
    batch = optim.batch_size
    left_out = images % batch
    if left_out > _MAX_LEFT_OUT * images:
        fitting = _fitting_batch(batch, images, model.group_size * processes)
        if images % fitting < left_out:
            reasons.append(
                f"{left_out} of {images} images are left out of every epoch, as they do not fill a batch of {batch}: "
                f"set --batch-size {fitting}"
            )
            batch = fitting
            options["--batch-size"] = str(batch)
    lr = _linear_rule(recipe, batch)
    if lr is not None:
        base_batch, value = lr
        reasons.append(
            f"--lr {optim.lr:g} is meant for a batch of {base_batch} and is not rescaled: for {batch} the linear "
            f"rule gives --lr {value:g}"
        )
        options["--lr"] = f"{value:g}"
    steps = images // batch
    reasons += _length(recipe, images, steps, start_epoch, options)
    return Advice(reasons=tuple(reasons), options=options)


def _fitting_batch(batch: int, images: int, unit: int) -> int:
    """The batch size halved until an epoch has `_MIN_STEPS` steps: a multiple of `unit`, and at least `unit`."""
    while batch > images // _MIN_STEPS and batch % (2 * unit) == 0:
        batch //= 2
    return batch if batch <= images // _MIN_STEPS else max(images // _MIN_STEPS // unit, 1) * unit


def _linear_rule(recipe: Recipe, batch: int) -> tuple[int, float] | None:
    """The batch size that the learning rate is meant for, and the rate of the linear rule; None where it fits.

    Source: Goyal et al., arXiv 1706.02677, section 2.1.
    """
    optim = recipe.optim
    base = recipes.RECIPES[recipe.name]().optim if recipe.name in recipes.RECIPES else optim
    base_batch = base.batch_size if optim.lr == base.lr else optim.batch_size
    return None if batch == base_batch else (base_batch, optim.lr * batch / base_batch)


def _length(recipe: Recipe, images: int, steps: int, start_epoch: int, options: dict[str, str]) -> list[str]:
    """Reasons why a run is too short for its key encoder, or far longer than the published one; adds to `options`."""
    momentum, epochs = recipe.model.key_momentum, recipe.optim.epochs
    left = epochs - start_epoch
    stale = momentum ** (steps * left)
    if stale > _MAX_STALE and 0 < momentum < 1:
        needed = math.ceil(math.log(_GOOD_STALE) / math.log(momentum) / steps)
        if needed > 5 * left and momentum > 0.99:  # instead of hundreds of passes over few images
            momentum = 0.99
            options["--key-momentum"] = "0.99"
            needed = math.ceil(math.log(_GOOD_STALE) / math.log(momentum) / steps)
        if needed > left:
            options["--epochs"] = str(start_epoch + needed)
        remedy = " ".join(f"{name} {options[name]}" for name in ("--key-momentum", "--epochs") if name in options)
        return [
            f"{steps * left} steps are few for --key-momentum {recipe.model.key_momentum:g}: at the end the key "
            f"encoder is still {stale:.0%} its initial weights: set {remedy}"
        ]
    if images * left > 4 * PUBLISHED_PAIRS:
        fitting = start_epoch + max(1, round(PUBLISHED_PAIRS / images))
        options["--epochs"] = str(fitting)
        return [
            f"{left} epochs of {images} images are {images * left / PUBLISHED_PAIRS:.0f} times the length of the "
            f"published pre-training: --epochs {fitting} is as long"
        ]
    return []


# -- the command line


def fitted_command(command: Sequence[str], options: Mapping[str, str], *, out_is_used: bool) -> str:
    """A command line with options replaced or added, quoted for a shell; the options alone where it is unknown.

    Args:
        command: words of the command line; none: unknown.
        options: values by name.
        out_is_used: whether the folder of `--out` is in use by now, so that another must be named.
    """
    if not command:
        return shlex.join(word for option in options.items() for word in option)
    words = list(command)
    out = _value_of(words, "--out")
    if out is not None and out_is_used:
        options = {**options, "--out": _free_folder(out)}
    for name in options:
        words = _without(words, name)
    return shlex.join([*words, *(word for option in options.items() for word in option)])


def program_words() -> list[str]:
    """The words that start this program again: resim, python -m resim, or torchrun with it.

    Empty for a run on several machines, each of which has a different command line.
    """
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if world > local:
        return []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return ["torchrun", "--nproc-per-node", str(local), "-m", "resim"]
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return ["python", "-m", "resim"]
    return [sys.argv[0]] if path.name == "resim" and shutil.which("resim") is None else ["resim"]


def _is_option(word: str, name: str) -> bool:
    return word.partition("=")[0].replace("_", "-") == name


def _value_of(words: Sequence[str], name: str) -> str | None:
    """The value of the last option of this name."""
    value = None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if _is_option(word, name):
            value = word.partition("=")[2] if "=" in word else after
    return value


def _without(words: Sequence[str], name: str) -> list[str]:
    """The words without an option and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif _is_option(word, name):
            skip = "=" not in word
        else:
            kept.append(word)
    return kept


def _free_folder(out: str) -> str:
    number = 2
    while Path(f"{out.rstrip('/')}-{number}").exists():
        number += 1
    return f"{out.rstrip('/')}-{number}"
