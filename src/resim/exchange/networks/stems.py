"""The first convolution and norm of a ResNet under names of their own: `layer0.0`, `stem.conv`, `firstconv`."""

from __future__ import annotations

import re
from collections.abc import Collection

from resim.exchange.files.pickle_values import shape_of
from resim.exchange.networks.state_dicts import State

_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def find_stem(state: State, prefix: str, taken: Collection[str]) -> dict[str, str]:
    """The entries of a stem below a prefix to our names; {} unless there is exactly one.

    A stem is the only 7 x 7 convolution of three channels and the only norm with its number of channels in the same
    module, or next to it where it has no module of its own.

    Args:
        state: the dictionary that contains the network.
        prefix: of the network's names.
        taken: its entries that have names of ours already.
    """
    rest = {
        short.removeprefix(prefix): name
        for short, name in state.bare.items()
        if short.startswith(prefix) and name not in taken
    }
    shapes = {short: shape_of(state.entries[name]) for short, name in rest.items()}
    stems = [short for short, shape in shapes.items() if shape[1:] == (3, 7, 7) and short.endswith(".weight")]
    if len(stems) != 1:
        return {}
    convolution = stems[0].removesuffix(".weight")
    module = convolution.rpartition(".")[0]
    norms = [
        short.removesuffix(".running_var")
        for short, shape in shapes.items()
        if re.fullmatch(rf"{re.escape(module)}{'[.]' if module else ''}[^.]+[.]running_var", short)
        and shape == shapes[stems[0]][:1]
    ]
    more = [short for short, shape in shapes.items() if module and short.startswith(f"{module}.") and len(shape) == 4]
    if len(norms) != 1 or len(more) > 1 or f"{convolution}.bias" in rest:
        return {}
    stem = {f"{norms[0]}.{leaf}": f"backbone.bn1.{leaf}" for leaf in _LEAVES} | {stems[0]: "backbone.conv1.weight"}
    return {rest[short]: ours for short, ours in stem.items() if short in rest}
