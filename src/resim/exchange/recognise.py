"""Whose file is it? Forms of checkpoints, told from the names in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from resim.exchange.names import from_detectron2, from_program, from_torchvision_detection

_MOMENTUM_COPY = re.compile(r"(^|[._])(encoder_k|k|key|ema|momentum|teacher|target)[._]")
_QUERY = re.compile(r"(^|[._])(encoder_q|query|online|student)[._]")
_BLOCK = re.compile(r"(layer[1-4]|res[2-5])\.\d+\.")
_OURS = re.compile(r"backbone\..+|head\.[02]\.\w+|fpn\.(lateral|output)\d\..+|convs\.C\d\.\w+")


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of checkpoint and how its names become ours."""

    name: Literal["published", "detectron2", "torchvision-detection", "resim", "resnet"]
    prefix: str
    """What stands before the ResNet's own names."""
    rename: Callable[[str], str | None]
    """Our name for an entry; None for what we have not."""
    key_prefix: str | None = None
    """Of a published checkpoint: what stands before the key encoder's names."""

    def is_in_block(self, name: str) -> bool:
        """Whether an entry belongs to a block of the ResNet, whatever it is there."""
        bare = name.removeprefix(self.prefix).removeprefix("roi_heads.")
        return name.startswith((self.prefix, "roi_heads.")) and _BLOCK.match(bare) is not None

    def is_training_state(self, name: str) -> bool:
        """Whether an entry belongs to pre-training beside the query encoder: the key encoder's, the queue."""
        if self.key_prefix is None:
            return False
        bare = name.removeprefix("module.")
        return bare in ("queue", "queue_ptr") or from_program(name, self.key_prefix) is not None


def recognise(names: Sequence[str]) -> Form:
    """The form of a state_dict with these names.

    Raises:
        ValueError: there is no ResNet in it.
    """
    if any(re.search(r"(^|\.)res2\.0\.conv1\.weight$", name) for name in names):
        prefix = next(name for name in names if name.endswith("res2.0.conv1.weight"))
        norm = any(re.search(r"fpn_output\d\.(norm|1)\.", name) for name in names)
        return Form(
            name="detectron2",
            prefix=prefix.removesuffix("res2.0.conv1.weight"),
            rename=lambda name: from_detectron2(name, fpn_norm=norm),
        )
    found = [name.removesuffix("layer1.0.conv1.weight") for name in names if name.endswith("layer1.0.conv1.weight")]
    if not found:
        if any(re.fullmatch(r"(blobs|res2_0_branch2a_w|conv1_w)", name) for name in names):
            raise ValueError("a Caffe2 (Detectron 1) ResNet, whose stride is in the 1 x 1 convolutions")
        example = f" (its names are like {sorted(names)[0]!r})" if names else ""
        raise ValueError(f"no ResNet{example}")
    prefix = min(
        found, key=lambda prefix: (not _QUERY.search(prefix), bool(_MOMENTUM_COPY.search(prefix)), len(prefix))
    )
    if prefix in ("encoder_q.", "module.encoder_q."):
        return Form(
            name="published",
            prefix=prefix,
            rename=lambda name: from_program(name, prefix),
            key_prefix=prefix.replace("encoder_q", "encoder_k"),
        )
    if prefix == "backbone.body.":
        norm = any(re.search(r"layer_blocks\.\d\.1\.", name) for name in names)
        return Form(
            name="torchvision-detection",
            prefix=prefix,
            rename=lambda name: from_torchvision_detection(name, fpn_norm=norm),
        )
    if prefix == "backbone." and any(re.match(r"fpn\.lateral\d|head\.0\.weight|convs\.C", name) for name in names):
        return Form(name="resim", prefix=prefix, rename=lambda name: name if _OURS.fullmatch(name) else None)
    return Form(name="resnet", prefix=prefix, rename=lambda name: from_program(name, prefix))
