"""Feature pyramids in foreign files: whose they are, at which level each convolution stands, and what is ours.

A pyramid here is FPN's own: lateral 1 x 1 convolutions, sums from the top down, 3 x 3 outputs, a bias or BatchNorm.
Levels are named (Detectron2, the published ReSim), or numbered from the first map that goes in (torchvision,
MMDetection): then the channels of that map say which it is, as RetinaNet and FCOS begin at C3, Faster R-CNN at C2.

Source: Lin et al., arXiv 1612.03144.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resim.exchange.inert import shape_of
from resim.exchange.states import State

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
    number: int
    is_norm: bool
    leaf: str


def find_pyramid(
    state: State, prefix: str, rivals: Sequence[str], backbone: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The FPN that belongs to a network.

    Args:
        state: the dictionary that both are in.
        prefix: of the network's names.
        rivals: prefixes of the other networks there, whose FPNs are theirs.
        backbone: the network's entries to our names.

    Returns:
        The FPN's entries to our names, {} where there is none, and notes about one that is no plain FPN.
    """
    groups: dict[tuple[int, str], list[_Entry]] = {}
    for bare, name in state.bare.items():
        for number, form in enumerate(_FORMS):
            match = form.fullmatch(bare)
            if match:
                found = match.groupdict()
                entry = _Entry(
                    name=name, part=_PARTS[found["part"]], number=int(found.get("level") or found["index"]),
                    is_norm=found["place"] in _NORMS, leaf=found["leaf"],
                )  # fmt: skip
                groups.setdefault((number, found["prefix"]), []).append(entry)
                break
    own = {key: entries for key, entries in groups.items() if _belongs(key[1], prefix, rivals)}
    if not own:
        return {}, []
    (number, at), entries = max(own.items(), key=lambda item: _common(item[0][1], prefix))
    norms = [entry for entry in entries if entry.is_norm]
    if norms and not any(entry.leaf == "running_var" for entry in norms):
        return {}, ["its FPN has a norm that is no BatchNorm, and is left over"]
    if any(bare.startswith(at) and _MORE.search(bare) for bare in state.bare):
        return {}, ["its FPN is not the plain one, and is left over"]
    levels = _levels(state, entries, backbone) if number >= 2 else {entry.number: entry.number for entry in entries}
    ours: dict[str, str] = {}
    for entry in entries:
        if entry.number in levels:
            place = ("1." if entry.is_norm else "0.") if norms else ""
            ours[entry.name] = f"fpn.{entry.part}{levels[entry.number]}.{place}{entry.leaf}"
    return ours, []


def _levels(state: State, entries: Sequence[_Entry], backbone: Mapping[str, str]) -> dict[int, int]:
    """The level of each number, by the channels that its lateral convolution takes."""
    channels: dict[int, int] = {}
    for name, ours in backbone.items():
        match = re.fullmatch(r"backbone\.layer(\d)\.0\.conv[23]\.weight", ours)
        if match and shape_of(state.entries[name]):
            level = int(match[1]) + 1  # of a block, the convolution named last
            channels[level] = max(channels.get(level, 0), shape_of(state.entries[name])[0])
    by_width = {width: level for level, width in channels.items()}
    found: dict[int, int] = {}
    for entry in entries:
        shape = shape_of(state.entries[entry.name])
        if entry.part == "lateral" and entry.leaf == "weight" and len(shape) == 4 and shape[1] in by_width:
            found[entry.number] = by_width[shape[1]]
    return found


def _belongs(at: str, prefix: str, rivals: Sequence[str]) -> bool:
    """Whether what stands at this prefix is nearer to the network than to each of the others."""
    return all(_common(at, prefix) >= _common(at, rival) for rival in rivals)


def _common(one: str, other: str) -> int:
    """How many parts of two prefixes are the same, from the first on."""
    count = 0
    for mine, theirs in zip(one.split("."), other.split("."), strict=False):
        if mine != theirs or not mine:
            break
        count += 1
    return count
