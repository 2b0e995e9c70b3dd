"""ReSim computes the same as the reference: losses, gradients, queue, keys and statistics, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from resim.model.config import ModelConfig
from resim.model.reference import ReferenceReSim
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.views.views import Views

P4 = Level(name="P4", window=24, step=16)
P3 = Level(name="P3", window=16, step=16, negatives="group", weight=0.5)
C4 = Level(name="C4", window=24, step=16, closed=True)
SMALL = ModelConfig(backbone="resnet18", levels=(), fpn_width=16, conv_width=12, dim=8, queue_size=12, group_size=4)
FAR_APART = [(0.0, 0.0, 40.0, 40.0), (60.0, 60.0, 40.0, 40.0)]  # no window of one lies in the other


def views(seed: int, apart: bool) -> tuple[Views, Views]:
    """Two groups of four pairs of 64 px; with `apart` the first group's pairs share nothing."""
    generator = torch.Generator().manual_seed(seed)
    pair = []
    for view in range(2):
        crops = torch.rand(8, 4, generator=generator, dtype=torch.float64) * 20
        crops[:, 2:] += 60
        if apart:
            crops[:4] = torch.tensor(FAR_APART[view], dtype=torch.float64)
        images = torch.randn(8, 3, 64, 64, generator=generator, dtype=torch.float64)
        flipped = torch.rand(8, generator=generator) < 0.5
        pair.append(Views(images, crops, flipped))
    return pair[0], pair[1]


def train(model: ReSim | ReferenceReSim) -> list[dict[str, Tensor]]:
    """Three steps of plain SGD, the batch shuffled differently in each; losses and gradients of each step."""
    steps = []
    for step in range(3):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        losses = model(*views(step, apart=step == 1), order=order)
        losses["total"].backward()
        results = {name: value.detach() for name, value in losses.items() if "/" not in name}
        for name, parameter in model.query.named_parameters():
            assert parameter.grad is not None
            results[f"gradient of {name}"] = parameter.grad.clone()
            parameter.data.sub_(parameter.grad, alpha=0.05)
        steps.append(results)
    return steps


@pytest.mark.parametrize("levels", [(P4, P3), (C4,), ()], ids=["resim-fpn", "resim-c4", "moco-v2"])
def test_three_steps_of_the_model_are_those_of_the_reference(levels: tuple[Level, ...]) -> None:
    config = dataclasses.replace(SMALL, levels=levels, key_momentum=0.9)
    fast, plain = ReSim(config).double(), ReferenceReSim(config).double()
    plain.load_state_dict(fast.state_dict(), strict=False)
    steps, expected = train(fast.train()), train(plain.train())
    for ours, theirs in zip(steps, expected, strict=True):
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            torch.testing.assert_close(
                ours[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
            )
    state = fast.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)
    for level in levels:
        assert 0 < steps[1][level.name] < steps[0][level.name] * 0.75  # a group without a shared window counts as 0
