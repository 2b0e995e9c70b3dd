"""Names of the published program's checkpoints, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

_ENCODERS = {"encoder_q": "query", "encoder_k": "key"}


def from_published(name: str) -> str | None:
    """Our name for an entry of a published `state_dict`; None if the name is not of the published form.

    `module.encoder_q.layer1.0.conv1.weight` -> `query.backbone.layer1.0.conv1.weight`,
    `encoder_k.fc.2.bias` -> `key.head.2.bias`, `encoder_q.fpn_lateral5.0.weight` -> `query.fpn.lateral5.0.weight`.
    """
    name = name.removeprefix("module.")
    if name in ("queue", "queue_ptr"):
        return {"queue": "queue", "queue_ptr": "queue_position"}[name]
    encoder, _, rest = name.partition(".")
    if encoder not in _ENCODERS or not rest:
        return None
    if rest.startswith("fc."):
        rest = "head." + rest.removeprefix("fc.")
    elif re.match(r"fpn_(lateral|output)\d", rest):
        rest = "fpn." + rest.removeprefix("fpn_")
    else:
        rest = "backbone." + rest
    return f"{_ENCODERS[encoder]}.{rest}"


def translate_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A published `state_dict` under our names and in our layout, and the names that have no counterpart.

    The published queue is (dim, K) with a pointer of shape (1,); ours is (K, dim) with a scalar position.
    """
    ours, unknown = {}, []
    for name, value in state.items():
        new = from_published(name)
        if new is None:
            unknown.append(name)
        elif new == "queue" and value.dim() == 2:
            ours[new] = value.T.contiguous()
        elif new == "queue_position" and value.shape == (1,):
            ours[new] = value.reshape(())
        else:
            ours[new] = value
    return ours, unknown


def load_published(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the `state_dict` of a published ReSim-FPN checkpoint, whole, into a `ReSim` of its recipe.

    Args:
        model: the network.
        state: names with or without `module.`.

    Raises:
        ValueError: an entry is missing, left over or of another shape; nothing is loaded then.
    """
    ours, unknown = translate_published(state)
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in ours],
        "left over": unknown + [name for name in ours if name not in own],
        "of another shape": [
            f"{name} {tuple(ours[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in ours and ours[name].shape != own[name].shape
        ],
    }
    reasons = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for what, names in problems.items()
        if names
    ]
    if reasons:
        raise ValueError(f"the state_dict does not fit this model: {'; '.join(reasons)}")
    model.load_state_dict(ours)
