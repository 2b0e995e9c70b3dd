"""The convolutions of a detector's FPN by our names: where torchvision has them, and which may be fixed together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

FPN_PARTS = tuple(f"{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5))
RESIM_FPN = ("lateral3", "lateral4", "lateral5", "output3", "output4")
"""What a pre-training on P3 and P4 has of them."""
_BLOCKS = {"lateral": "inner_blocks", "output": "layer_blocks"}  # torchvision counts from C2


def fpn_place(part: str) -> str:
    """The submodule of torchvision's detector that is one of `FPN_PARTS`."""
    return f"backbone.fpn.{_BLOCKS[part[:-1]]}.{int(part[-1]) - 2}"


def fixed_among(parts: Collection[str]) -> tuple[str, ...]:
    """The parts that can be fixed where `parts` are pre-trained: an output only if all laterals that it reads are."""
    return tuple(part for part in FPN_PARTS if part in parts and not _missing(part, parts))


def check_fixed(parts: Sequence[str]) -> None:
    """Check names of parts that are to be fixed.

    Raises:
        ValueError: no such part, one that is named twice, or an output of a lateral that is trained: the lateral's
            gradient would have to pass through it.
    """
    for at, part in enumerate(parts):
        if part not in FPN_PARTS:
            raise ValueError(f"frozen-fpn {part}: must be one of {', '.join(FPN_PARTS)}")
        if part in parts[:at]:
            raise ValueError(f"frozen-fpn {part}: is there twice")
        missing = _missing(part, parts)
        if missing:
            raise ValueError(f"frozen-fpn {part}: reads {', '.join(missing)}: name what it reads too")


def _missing(part: str, parts: Collection[str]) -> list[str]:
    """The laterals that an output reads, its own level's and those above, less `parts`."""
    read = [f"lateral{level}" for level in range(int(part[-1]), 6)] if part.startswith("output") else []
    return [lateral for lateral in read if lateral not in parts]
