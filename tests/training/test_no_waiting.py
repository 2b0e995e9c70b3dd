"""A training step never reads a number from the device: it runs on the meta device, which has no numbers.

Copies to the device must not wait for it either (`non_blocking`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resim.distributed.processes import Processes
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.runs.config import OptimConfig
from resim.training.step import Stepper, make_stepper
from resim.views.crops import Draw, ViewsConfig, draw_views, sample_generator
from resim.views.loader import PairBatch

META = torch.device("meta")
GROUP, BATCH, SIZE = 2, 4, 64
LEVELS = (
    Level(name="P4", window=32, step=16, negatives="all"),
    Level(name="P3", window=16, step=16, negatives="group"),
)


class Crossings(TorchDispatchMode):
    """Collects the copies between devices, and whether each waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {x.device.type for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
        after = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        if func is torch.ops.aten._to_copy.default and before != after:
            self.waits.append(not (kwargs or {}).get("non_blocking", False))
        return out


def batch(config: ViewsConfig) -> PairBatch:
    pairs: list[tuple[Draw, Draw]] = [draw_views(config, 96, 72, sample_generator(0, 0, i))[1] for i in range(BATCH)]
    wild = dataclasses.replace(pairs[0][0], gray=True, sigma=1.0, jitter=(0.8, 1.2, 0.7, 0.05))
    return PairBatch(
        pieces=tuple(torch.zeros(2, BATCH // 2, SIZE, SIZE, 3, dtype=torch.uint8) for _ in range(2)),
        draws=([wild, *(a for a, _ in pairs[1:])], [b for _, b in pairs]),
        flips=[False] * BATCH,
        indices=list(range(BATCH)),
        bad=[],
    )


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not support the meta device; in single precision it is off anyway."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def stepper() -> Stepper:
    model = ModelConfig(backbone="resnet18", levels=LEVELS, fpn_width=8, dim=8, queue_size=12, group_size=GROUP)
    alone = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    made = make_stepper(model, OptimConfig(), alone, precision="float32", groups_at_a_time=2)
    made.model.to(META)
    return made


@pytest.mark.slow
@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("flip", ["shared", "independent"])
def test_a_step_reads_nothing_from_the_device_and_waits_for_nothing(flip: Any) -> None:
    config = ViewsConfig(image_size=SIZE, flip=flip)
    made = stepper()
    pixels = batch(config)
    with Crossings() as crossings:
        views_q, views_k = pixels.views(config, META)
        losses = made(views_q, views_k, torch.tensor([2, 0, 3, 1]))
    assert all(value.device == META for value in losses.values())
    assert views_q.images.device == META
    assert views_q.crops.device.type == "cpu"
    assert len(crossings.waits) > 10
    assert not any(crossings.waits)


def test_the_meta_device_refuses_to_be_read() -> None:
    model = ReSim(ModelConfig(backbone="resnet18", levels=(), queue_size=8)).to(META)
    with pytest.raises(RuntimeError, match="meta"):
        model.queue_position.item()
    with pytest.raises(RuntimeError, match=r"[Mm]eta"):
        model.queue[model.queue[:, 0] > 0]
    with Crossings() as crossings:
        torch.zeros(3).to(META)
    assert crossings.waits == [True]
