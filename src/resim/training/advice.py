"""What is odd about a recipe for so many images, and the one command line that fits them better."""

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
_MOST_STALE, _LEAST_STALE = 0.25, 0.05  # share of its initial weights in the key encoder at the end of a run
_MOST_LEFT_OUT = 0.2  # share of the images that every epoch leaves out
_STEPS = 8  # of an epoch, at least, where a batch is chosen


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What does not go together, and the options that would."""

    reasons: tuple[str, ...]
    options: dict[str, str]
    """By name, such as `--queue-size`, the value that fits."""

    def lines(self, command: Sequence[str], *, out_is_used: bool = True) -> list[str]:
        """For a person: each reason, and the command with the options that fit; without a command the options alone."""
        told = [f"warning: {reason}" for reason in self.reasons]
        if not self.options:
            return told
        return [*told, f"  fits better: {fitted_command(command, self.options, out_is_used=out_is_used)}"]


def advise(recipe: Recipe, images: int, *, processes: int = 1, start_epoch: int = 0) -> Advice:
    """What is odd about a recipe for a number of images.

    Args:
        recipe: what is trained, with at least one whole batch of images.
        images: how many there are.
        processes: that share a batch.
        start_epoch: where the run begins.
    """
    model, optim = recipe.model, recipe.optim
    reasons: list[str] = []
    options: dict[str, str] = {}
    if model.queue_size > images:
        fitting = 2 ** int(math.log2(images))
        options["--queue-size"] = str(fitting)
        reasons.append(
            f"the queue of {model.queue_size} keys is larger than the data set of {images} images, so it holds keys of "
            f"the same image as negatives: set --queue-size {fitting} or less"
        )
    batch = optim.batch_size
    left_out = images % batch
    if left_out > _MOST_LEFT_OUT * images:
        fitting = _fitting_batch(batch, images, model.group_size * processes)
        if images % fitting < left_out:
            reasons.append(
                f"{left_out} of {images} images are left out of every epoch, as no whole batch of {batch} is left: set "
                f"--batch-size {fitting}"
            )
            batch = fitting
            options["--batch-size"] = str(batch)
    lr = _linear_rule(recipe, batch)
    if lr is not None:
        was, value = lr
        reasons.append(
            f"--lr {optim.lr:g} is meant for a batch of {was} and is not rescaled: for {batch} the linear rule gives "
            f"--lr {value:g}"
        )
        options["--lr"] = f"{value:g}"
    steps = images // batch
    reasons += _length(recipe, images, steps, start_epoch, options)
    return Advice(reasons=tuple(reasons), options=options)


def _fitting_batch(batch: int, images: int, unit: int) -> int:
    """The batch halved until an epoch has some steps, as a multiple of `unit` and at least that."""
    while batch > images // _STEPS and batch % (2 * unit) == 0:
        batch //= 2
    return batch if batch <= images // _STEPS else max(images // _STEPS // unit, 1) * unit


def _linear_rule(recipe: Recipe, batch: int) -> tuple[int, float] | None:
    """The batch that the learning rate is meant for, and the rate that the linear rule gives; None where it fits.

    Source: Goyal et al., arXiv 1706.02677, section 2.1.
    """
    optim = recipe.optim
    base = recipes.RECIPES[recipe.name]().optim if recipe.name in recipes.RECIPES else optim
    meant = base.batch_size if optim.lr == base.lr else optim.batch_size
    return None if batch == meant else (meant, optim.lr * batch / meant)


def _length(recipe: Recipe, images: int, steps: int, start_epoch: int, options: dict[str, str]) -> list[str]:
    """Whether the run is too short for its key encoder, or far longer than the published one; fills `options`."""
    momentum, epochs = recipe.model.key_momentum, recipe.optim.epochs
    left = epochs - start_epoch
    stale = momentum ** (steps * left)
    if stale > _MOST_STALE and 0 < momentum < 1:
        needed = math.ceil(math.log(_LEAST_STALE) / math.log(momentum) / steps)
        if needed > 5 * left and momentum > 0.99:  # hundreds of passes over few images: a faster key encoder instead
            momentum = 0.99
            options["--key-momentum"] = "0.99"
            needed = math.ceil(math.log(_LEAST_STALE) / math.log(momentum) / steps)
        if needed > left:
            options["--epochs"] = str(start_epoch + needed)
        set_ = " ".join(f"{name} {options[name]}" for name in ("--key-momentum", "--epochs") if name in options)
        return [
            f"{steps * left} steps are few for --key-momentum {recipe.model.key_momentum:g}: at the end the key "
            f"encoder is still {stale:.0%} its initial weights: set {set_}"
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
    """A command with options replaced or added, ready to be pasted; the options alone where there is no command.

    Args:
        command: its words; none: unknown.
        options: by name, their values.
        out_is_used: the folder that `--out` names is taken by now: another is named.
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
    """How this program was started, as it can be started again: resim, python -m resim, or torchrun with it.

    Empty where several machines take part, each of which was called by words of its own.
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
    """The words without an option and its one value."""
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
