"""The configuration of a pre-training: a recipe (what is computed) and a run (where and how it is computed).

The recipe determines the resulting weights; the settings of a run determine speed, memory and what is written. Of the
latter, precision, compiling, groups at a time and the number of threads change the result too, but only by rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_type_hints

from resim.acceleration import Kernels
from resim.errors import UserError
from resim.fields import AtLeast, AtMost, Decay, Seed, check_fields
from resim.json_text import parse_json
from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.views.config import ViewsConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule. Source: Xiao et al., ICCV 2021, section 4.1; He et al., 1911.05722."""

    epochs: Annotated[int, AtLeast(1)] = 200
    """Passes over the images."""
    batch_size: Annotated[int, AtLeast(1)] = 256
    """Images a step, over all processes; an incomplete last batch is dropped. --lr is not rescaled with it: the linear
    rule is lr times the new batch over the recipe's."""
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    """SGD with momentum as published, AdamW, or LARS (timm's)."""
    lr: Annotated[float, AtLeast(0)] = 0.03
    """Peak learning rate."""
    schedule: Literal["cosine", "cosine-per-step", "constant"] = "cosine"
    """Cosine to 0 over the epochs, constant within an epoch as published or lowered at every step; or constant."""
    warmup_epochs: Annotated[float, AtLeast(0)] = 0.0
    """Epochs over which the learning rate rises linearly from 0 at the start, step by step."""
    momentum: Annotated[float, AtLeast(0)] = 0.9
    """Momentum of SGD and LARS."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: Annotated[float, AtLeast(0)] = 1e-4
    """L2 penalty of SGD and LARS, decoupled decay of AdamW."""
    decay_norms: bool = True
    """Decay biases and the scales and shifts of BatchNorm too, as published."""
    clip_norm: Annotated[float, AtLeast(0)] = 0.0
    """Largest L2 norm of all gradients together; larger ones are scaled down to it; 0: no clipping."""
    seed: Seed = 0
    """Seed of the weights, the order of the images, the views and the shuffle."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(f"warmup-epochs {self.warmup_epochs:g}: must be below epochs {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that determine the result of a pre-training.

    Raises:
        ValueError: parts that do not fit each other, for example a window larger than the view.
    """

    name: str = "resim-fpn"
    """Name of the recipe."""
    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        size = self.views.image_size
        for level in self.model.levels:
            level.check_windows(size)
            if math.ceil(size / level.stride) < 3:
                raise ValueError(
                    f"level {level.name}: its map of a {size} px view has fewer than the 3 x 3 cells "
                    f"over which a negative is averaged: set --image-size to {2 * level.stride + 1} or more"
                )
        batch, group = self.optim.batch_size, self.model.group_size
        if group * math.ceil(size / 32) ** 2 < 2:
            raise ValueError(
                f"group-size {group}: BatchNorm needs more than one value a channel on the top map of a {size} px view"
            )
        if batch < group or batch % group:
            raise ValueError(
                f"batch-size {batch} is no whole number of groups of {group} images: set --batch-size to a multiple of "
                f"{group}, or --group-size to a divisor of {batch}"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain data; levels in the form of the command line."""
        data = dataclasses.asdict(self)
        data["model"]["levels"] = [str(level) for level in self.model.levels]
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: an unknown field, or a value that does not fit.
        """
        try:
            model, views, optim = dict(data["model"]), dict(data["views"]), dict(data["optim"])
            model["levels"] = tuple(Level.parse(str(text)) for text in model["levels"])
            for part in (views, optim):
                part |= {name: tuple(value) for name, value in part.items() if isinstance(value, list)}
            return Recipe(
                name=data["name"],
                model=ModelConfig(**model),
                views=ViewsConfig(**views),
                optim=OptimConfig(**optim),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a recipe of this version: {error}") from None


Resume = bool | Literal["no", "yes", "auto"]
"""Whether a run continues: yes (or True), no, or auto: it continues where --out contains a run, and else starts."""


def normalize_resume(config: Any) -> None:
    """Replace `resume` "yes" and "no" by True and False, in the `__post_init__` of a frozen config; "auto" stays."""
    object.__setattr__(config, "resume", {"yes": True, "no": False}.get(config.resume, config.resume))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a recipe is run."""

    out: Path | None = None
    """Folder of the run; default: runs/RECIPE-DATE-TIME."""
    resume: Resume = False
    """Continue the run in --out exactly where its last checkpoint is; auto: if there is one, else start. --resume alone
    is --resume yes."""
    start_from: str | None = None
    """Weights to start from: random, a run's folder, a file of weights of any program that resim import reads, or
    torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once). What fits the recipe's network
    is loaded, key encoder, queue and momentum too; the rest is new."""
    start_epoch: Annotated[int, AtLeast(0)] = 0
    """Epoch of the schedule at which a run with --start-from starts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 runs convolutions in bfloat16 (autocast), weights stay float32; auto: bf16 where it is faster."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    kernels: Kernels = "auto"
    """The package's kernels (C on a CPU, Triton on a GPU), which make a bf16 step faster; auto: all that run on this
    machine; norms: on a CPU those of BatchNorm alone; off: plain PyTorch."""
    keep_memory: bool = True
    """On a CPU, keep freed memory in the process: faster steps, but the memory is not free for other programs."""
    groups_at_a_time: Annotated[int, AtLeast(0)] = 0
    """Groups in one pass through the encoders; fewer take less memory; 0: one on a CPU, all on a GPU."""
    workers: Annotated[int, AtLeast(-1), AtMost(512)] = -1
    """Processes that decode images, for each training process; -1: one a core, 16 at most."""
    log_every: Annotated[int, AtLeast(1)] = 10
    """Steps between two readings of the metrics; a line is written for every step in any case."""
    checkpoint_minutes: Annotated[float, AtLeast(0)] = 15.0
    """Minutes between two checkpoints within an epoch; 0: after every step."""
    keep_every: Annotated[int, AtLeast(0)] = 20
    """Epochs between two checkpoints that are kept, in addition to the last one; 0: only the last."""
    picture_every: Annotated[int, AtLeast(0)] = 1
    """Epochs between two pictures of view pairs; 0: none."""
    probe_every: Annotated[int, AtLeast(0)] = 0
    """Epochs between two readings of the probes (kNN, linear segmentation, region correspondence, health); 0: only the
    queue's health."""
    probe_data: Path | None = None
    """Images for the probes, with classes if kNN is wanted: a folder, a CSV file, tar shards; with label maps for
    linear segmentation: a COCO file, a VOC folder, a folder of images and segmentation; default: the training images,
    without classes."""
    probe_labels: Path | None = None
    """Label maps of the images of --probe-data, for linear segmentation: a folder of PNGs, or a COCO file."""
    probe_images: Annotated[int, AtLeast(0)] = 1024
    """Maximum number of images in the probes' training set, and in their test set; 0: all."""
    max_bad_share: Annotated[float, AtLeast(0)] = 0.1
    """Stop when more than this share of the files read cannot be decoded."""
    stop_after: Annotated[int, AtLeast(0)] = 0
    """Stop with a checkpoint after this many steps of this invocation; 0: run to the end."""

    def __post_init__(self) -> None:
        check_fields(self)
        normalize_resume(self)


class AnyRecipe(Protocol):
    """All settings that determine the result of a training: groups of settings by name, to and from plain data."""

    @property
    def name(self) -> str:
        """Name of the recipe."""
        ...

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        ...

    @staticmethod
    def from_json(data: dict[str, Any]) -> Any:
        """The recipe that `to_json` wrote; a ValueError where it is none."""
        ...


def differences(before: AnyRecipe, now: AnyRecipe) -> list[str]:
    """Settings in which two recipes differ, as `--name old -> new`; the recipes' names are not compared."""
    old, new = before.to_json(), now.to_json()
    return [
        f"--{key.replace('_', '-')} {_text_of(old[part][key])} -> {_text_of(new[part][key])}"
        for part in old
        if isinstance(old[part], dict)
        for key in old[part]
        if old[part][key] != new[part][key]
    ]


def _text_of(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


R = TypeVar("R", bound=AnyRecipe)
D = TypeVar("D")

_KEPT_ON_RESUME = (
    "compile", "kernels", "keep_memory", "groups_at_a_time", "log_every", "checkpoint_minutes", "keep_every",
    "picture_every", "probe_every", "probe_data", "probe_labels", "probe_images", "max_bad_share", "start_from",
    "start_epoch",
)  # fmt: skip


def read_run_settings(path: Path) -> RunConfig:
    """The settings with which the run of a `config.json` continues, without device, precision and workers."""
    return read_settings(path, RunConfig, _KEPT_ON_RESUME)


def read_settings(path: Path, kind: type[D], names: Sequence[str]) -> D:
    """Read settings from the `config.json` of a run.

    Args:
        path: the file.
        kind: dataclass of the settings.
        names: fields to read; the others have their defaults.

    Raises:
        UserError: the file cannot be read, or a setting does not fit.
    """
    try:
        stored = parse_json(path.read_text(encoding="utf-8")).get("run", {})
        hints = get_type_hints(kind)
        kept = {name: stored[name] for name in names if name in stored}
        paths = {name for name, value in kept.items() if isinstance(value, str) and Path in get_args(hints[name])}
        return kind(**{name: Path(value) if name in paths else value for name, value in kept.items()})
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: contains no settings of a run ({error})") from None


def read_recipe(path: Path, kind: type[R] = Recipe) -> R:
    """Read the recipe in a run's `config.json`, or in a JSON file of the same form.

    Args:
        path: the file.
        kind: the kind of recipe.

    Raises:
        UserError: the file cannot be read, or contains no such recipe.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        return kind.from_json(data.get("recipe", data))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: contains no recipe ({error})") from None
