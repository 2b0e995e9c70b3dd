"""Names of the published program's checkpoints, and ours."""

from __future__ import annotations

import re

from torch import Tensor

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


def translate_published(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
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
