"""Feature pyramids in foreign files: the network of each, the level of each convolution, and our names.

A pyramid is that of FPN: lateral 1 x 1 convolutions, sums from the top down, 3 x 3 outputs, a bias or BatchNorm. Its
levels are named (Detectron2, the published ReSim), or numbered from its first input map (torchvision, MMDetection). The
channels of that map then determine its level: RetinaNet and FCOS begin at C3, Faster R-CNN at C2.

Source: Lin et al., arXiv 1612.03144.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resim.exchange.files.pickle_values import shape_of
from resim.exchange.networks.state_dicts import State

_FORMS = (
    re.compile(
        r"(?P<prefix>(?:.*\.)?)fpn_(?P<part>lateral|output)(?P<level>\d)\.(?:(?P<place>norm|[01])\.)?(?P<leaf>\w+)"
    ),
    re.compile(r"(?P<prefix>(?:.*\.)?)fpn\.(?P<part>lateral|output)(?P<level>\d)\.(?:(?P<place>[01])\.)?(?P<leaf>\w+)"),
    re.compile(
        r"(?P<prefix>(?:.*\.)?)(?P<part>inner|layer)_blocks\.(?P<index>\d)\.(?:(?P<place>[01])\.)?(?P<leaf>\w+)"
    ),
    re.compile(
        r"(?P<prefix>(?:.*\.)?)(?P<part>lateral|fpn)_convs\.(?P<index>\d)\.(?P<place>conv|bn|gn|norm|ln)\.(?P<leaf>\w+)"
    ),
)
_PARTS = {"lateral": "lateral", "output": "output", "inner": "lateral", "layer": "output", "fpn": "output"}
_NORMS = ("norm", "1", "bn", "gn", "ln")
_MORE = re.compile(r"(downsample_convs|pafpn_convs|bifpn|stack_layers|fpn_stages)\.")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    """In the file."""
    part: str
    """lateral or output."""
    number: int
    """The level, or its index."""
    is_norm: bool
    leaf: str


def find_pyramid(
    state: State, prefix: str, rivals: Sequence[str], backbone: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The FPN that belongs to a network.

    Args:
        state: the dictionary that contains both.
        prefix: of the network's names.
        rivals: prefixes of the other networks in it, which may have FPNs too.
        backbone: the network's entries to our names.

    Returns:
        The FPN's entries to our names, {} where there is none, and notes on an FPN of another kind.
    """
    groups: dict[tuple[int, str], list[_Entry]] = {}
    for bare, name in state.bare.items():
        for number, form in enumerate(_FORMS):
            match = form.fullmatch(bare)
            if match:
                parts = match.groupdict()
                entry = _Entry(
                    name=name, part=_PARTS[parts["part"]], number=int(parts.get("level") or parts["index"]),
                    is_norm=parts["place"] in _NORMS, leaf=parts["leaf"],
                )  # fmt: skip
                groups.setdefault((number, parts["prefix"]), []).append(entry)
                break
    candidates = {key: entries for key, entries in groups.items() if _belongs(key[1], prefix, rivals)}
    if not candidates:
        return {}, []
    (number, fpn_prefix), entries = max(candidates.items(), key=lambda item: _num_common(item[0][1], prefix))
    norms = [entry for entry in entries if entry.is_norm]
    if norms and not any(entry.leaf == "running_var" for entry in norms):
        return {}, ["its FPN has norms other than BatchNorm and is left over"]
    if any(bare.startswith(fpn_prefix) and _MORE.search(bare) for bare in state.bare):
        return {}, ["its FPN is not a plain one and is left over"]
    levels = _levels(state, entries, backbone) if number >= 2 else {entry.number: entry.number for entry in entries}
    ours: dict[str, str] = {}
    for entry in entries:
        if entry.number in levels:
            place = ("1." if entry.is_norm else "0.") if norms else ""
            ours[entry.name] = f"fpn.{entry.part}{levels[entry.number]}.{place}{entry.leaf}"
    return ours, []


def _levels(state: State, entries: Sequence[_Entry], backbone: Mapping[str, str]) -> dict[int, int]:
    """The level of each number, by the input channels of its lateral convolution."""
    channels: dict[int, int] = {}
    for name, ours in backbone.items():
        match = re.fullmatch(r"backbone\.layer(\d)\.0\.conv[23]\.weight", ours)
        if match and shape_of(state.entries[name]):
            level = int(match[1]) + 1  # the last convolution of a block
            channels[level] = max(channels.get(level, 0), shape_of(state.entries[name])[0])
    by_width = {width: level for level, width in channels.items()}
    levels: dict[int, int] = {}
    for entry in entries:
        shape = shape_of(state.entries[entry.name])
        if entry.part == "lateral" and entry.leaf == "weight" and len(shape) == 4 and shape[1] in by_width:
            levels[entry.number] = by_width[shape[1]]
    return levels


def _belongs(fpn_prefix: str, prefix: str, rivals: Sequence[str]) -> bool:
    """Whether the prefix of an FPN has at least as much in common with the network's as with those of its rivals."""
    return all(_num_common(fpn_prefix, prefix) >= _num_common(fpn_prefix, rival) for rival in rivals)


def _num_common(one: str, other: str) -> int:
    """The number of equal parts at the beginning of two prefixes."""
    count = 0
    for first, second in zip(one.split("."), other.split("."), strict=False):
        if first != second or not first:
            break
        count += 1
    return count
