"""Which network a set of weights belongs to, and whether it is complete."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.recipes import resim_fpn
from resim.regions.level import Level

# by the number of blocks in each stage, and whether a block has three convolutions; the plainest first
_RESNETS: dict[tuple[tuple[int, ...], bool], tuple[str, ...]] = {
    ((2, 2, 2, 2), False): ("resnet18",),
    ((3, 4, 6, 3), False): ("resnet34",),
    ((3, 4, 6, 3), True): ("resnet50", "resnext50_32x4d", "wide_resnet50_2"),
    ((3, 4, 23, 3), True): ("resnet101", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2"),
    ((3, 8, 36, 3), True): ("resnet152",),
}
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@functools.lru_cache(maxsize=16)
def encoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each entry of an `Encoder`'s state_dict; no memory is allocated."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Encoder(config).state_dict().items()}


def infer_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The network that foreign weights belong to, from their names (ours) and shapes.

    Its levels are those whose FPN outputs are present. Their windows are those of the published recipe, because no
    file states them.

    Raises:
        ValueError: no ResNet of torchvision's, or an FPN without outputs.
    """
    pyramid = sorted({name.split(".")[1] for name in tensors if name.startswith("fpn.")})
    outputs = [part for part in pyramid if part in ("output3", "output4", "output5")]
    if pyramid and not outputs:
        raise ValueError(f"an FPN without outputs ({', '.join(pyramid)})")
    published = {level.name: level for level in resim_fpn().model.levels}
    names = [f"P{part[-1]}" for part in sorted(outputs, reverse=True)]
    config = ModelConfig(
        backbone=_resnet_name(tensors), levels=tuple(published.get(name) or Level(name=name) for name in names)
    )
    if outputs:
        norm = any(re.fullmatch(r"fpn\.output\d\.1\.weight", name) for name in tensors)
        weight = tensors.get(f"fpn.lateral5.{'0.' if norm else ''}weight")
        width = weight.shape[0] if weight is not None and weight.dim() else config.fpn_width
        config = dataclasses.replace(config, fpn_norm=norm, fpn_width=int(width))
    last = tensors.get("head.2.weight")
    return dataclasses.replace(config, dim=last.shape[0]) if last is not None and last.dim() == 2 else config


def list_mismatches(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    left_over: Sequence[str] = (),
    *,
    required: Collection[str] | None = None,
) -> str:
    """The differences between a state_dict and the entries that a network has, in one line; "" if there are none.

    Args:
        expected: names and shapes of the network's entries.
        tensors: the state_dict, under the same names.
        left_over: names that have no counterpart in the network.
        required: the expected names that must be present; None: all of them.
    """
    present = [name for name in expected if name in tensors]
    problems = {
        "missing": [name for name in (expected if required is None else required) if name not in tensors],
        "left over": list(left_over),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {expected[name]}"
            for name in present
            if tuple(tensors[name].shape) != expected[name]
        ],
        "not of real numbers": [
            name
            for name in present
            if not tensors[name].is_floating_point() and not name.endswith(("num_batches_tracked", "queue_position"))
        ],
    }
    return "; ".join(f"{len(names)} {problem} ({shorten(names)})" for problem, names in problems.items() if names)


def check_complete(
    path: object, tensors: Mapping[str, Tensor], config: ModelConfig, *, all_parts: bool = False, hint: str = ""
) -> None:
    """Check that each part of the network (backbone, FPN, head) that has any entry is complete, with the right shapes.

    Args:
        path: the file, for the message.
        tensors: under our names.
        config: their network.
        all_parts: whether each part must be present.
        hint: for the message, what else the file shows.

    Raises:
        UserError: which entries are missing, of another shape or of integers or complex numbers.
    """
    shapes = encoder_shapes(config)
    parts = {name.partition(".")[0] for name in (shapes if all_parts else tensors)} | {"backbone"}
    parts |= {"fpn"} if any(level.from_fpn for level in config.levels) else set()
    required = [name for name in shapes if name.partition(".")[0] in parts]
    missing = [name for name in required if name not in tensors]
    running = [name for name in missing if name.endswith(_RUNNING)]
    if missing and len(running) == len(missing) == sum(name.endswith(_RUNNING) for name in shapes):
        raise UserError(
            f"{path}: is no {config.backbone} with BatchNorm: its norms have no running statistics, as GroupNorm, "
            "LayerNorm and files of parameters without buffers; another network is not read: save a state_dict"
        )
    mismatches = list_mismatches(shapes, tensors, required=required)
    if mismatches:
        hint = hint or describe_stem(tensors, shapes)
        raise UserError(f"{path}: is no complete {config.backbone}{_with_fpn(config)}: {mismatches}{hint}")


def refuse_infinite(path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> None:
    """Refuse weights with NaN, infinite numbers or negative variances.

    Args:
        path: the file, for the message.
        tensors: under our names.
        names: our names to those of the file.

    Raises:
        UserError: which tensor, and how many of its numbers.
    """
    for name, value in tensors.items():
        if not value.is_floating_point():
            continue
        shown = (names or {}).get(name, name)
        num_wrong = int((~value.isfinite()).sum())
        if num_wrong:
            raise UserError(
                f"{path}: {shown} has {num_wrong} of {value.numel()} numbers that are NaN or infinite: the training "
                "diverged or the file is damaged; take an earlier checkpoint"
            )
        if name.endswith("running_var") and bool((value < 0).any()):
            raise UserError(f"{path}: {shown} has variances below 0: the file is damaged")


def add_counters(tensors: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """Add BatchNorm's counters of batches (0) where its running statistics are present: some programs omit them.

    A counter of shape (1,), as some programs convert it, becomes a scalar.

    Returns:
        The names added.
    """
    for name, value in tensors.items():
        if name.endswith(".num_batches_tracked") and value.shape == (1,):
            tensors[name] = value.reshape(())
    added = [
        name
        for name in encoder_shapes(config)
        if name.endswith(".num_batches_tracked")
        and name not in tensors
        and name.replace("num_batches_tracked", "running_var") in tensors
    ]
    tensors.update({name: torch.zeros((), dtype=torch.int64) for name in added})
    return added


def shorten(names: Sequence[str], at_most: int = 3) -> str:
    """The first names of a list, for one line."""
    return ", ".join(names[:at_most]) + (f", ... {len(names)} in all" if len(names) > at_most else "")


def describe_stem(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the shape of the first convolution shows of another network, for a message; "" if it shows nothing."""
    name = "backbone.conv1.weight"
    actual = tuple(tensors[name].shape) if name in tensors else ()
    expected = shapes.get(name, actual)
    if len(actual) == 5:
        return "; it is a network for volumes or video"
    if len(actual) != 4 or actual == expected:
        return ""
    if actual[1] != 3:
        return f"; its input has {actual[1]} channels, ours has 3"
    if actual[2:] == (3, 3):
        return "; its first convolution is 3 x 3, as in networks for small images (CIFAR) and in CLIP's"
    if actual[0] == expected[0]:
        return ""
    return f"; it has {actual[0]} channels after its first convolution, ours has {expected[0]}"


def _resnet_name(tensors: Mapping[str, Tensor]) -> str:
    """The torchvision ResNet of which the most entries have the right shape.

    Raises:
        ValueError: its blocks are those of none.
    """
    blocks = tuple(
        len({name.split(".")[2] for name in tensors if name.startswith(f"backbone.layer{stage}.")})
        for stage in range(1, 5)
    )
    bottleneck = any(name.startswith("backbone.layer") and ".conv3." in name for name in tensors)
    candidates = _RESNETS.get((blocks, bottleneck), ())
    similar = [
        names[0] for (counts, deep), names in _RESNETS.items() if counts[:3] == blocks[:3] and deep == bottleneck
    ]
    if similar and not blocks[3]:
        raise ValueError(
            f"a ResNet without its last stage (layer4), perhaps of a {similar[0]}; a complete one is needed"
        )
    if not candidates:
        kind = "bottleneck blocks" if bottleneck else "blocks"
        raise ValueError(f"a ResNet of {'-'.join(map(str, blocks))} {kind}, which is none of torchvision's")

    def num_fitting(name: str) -> int:
        shapes = encoder_shapes(ModelConfig(backbone=name, levels=()))
        return sum(tuple(tensors[key].shape) == shape for key, shape in shapes.items() if key in tensors)

    return max(candidates, key=num_fitting)


def _with_fpn(config: ModelConfig) -> str:
    levels = [level.name for level in config.levels if level.from_fpn]
    return f" with an FPN for {', '.join(levels)}" if levels else ""
