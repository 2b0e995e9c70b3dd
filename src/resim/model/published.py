"""Checkpoints of the published program: translation of their names and layout into those of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

_ENCODERS = {"encoder_q": "query", "encoder_k": "key"}


def from_published(name: str) -> str | None:
    """The name in this package of an entry of a published `state_dict`, or None if it is not a published name.

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
    """Translate a published `state_dict` into the names and layout of this package; also return the unknown names.

    The published queue is (dim, K) with a pointer of shape (1,); that of this package is (K, dim) with a scalar
    position.
    """
    translated, unknown = {}, []
    for name, value in state.items():
        new = from_published(name)
        if new is None:
            unknown.append(name)
        elif new == "queue" and value.dim() == 2:
            translated[new] = value.T.contiguous()
        elif new == "queue_position" and value.shape == (1,):
            translated[new] = value.reshape(())
        else:
            translated[new] = value
    return translated, unknown


def load_published(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the complete `state_dict` of a published ReSim-FPN checkpoint into a `ReSim` of the same recipe.

    Args:
        model: the network.
        state: the published state dict; its names may begin with `module.`.

    Raises:
        ValueError: an entry is missing, unexpected or of another shape. The model is then unchanged.
    """
    translated, unknown = translate_published(state)
    expected = model.state_dict()
    problems = {
        "missing": [name for name in expected if name not in translated],
        "left over": unknown + [name for name in translated if name not in expected],
        "of another shape": [
            f"{name} {tuple(translated[name].shape)} for {tuple(expected[name].shape)}"
            for name in expected
            if name in translated and translated[name].shape != expected[name].shape
        ],
    }
    reasons = [
        f"{len(names)} {problem} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for problem, names in problems.items()
        if names
    ]
    if reasons:
        raise ValueError(f"the state_dict does not fit this model: {'; '.join(reasons)}")
    model.load_state_dict(translated)
