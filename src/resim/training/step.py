"""One optimisation step, in bounded memory and on any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from resim.acceleration import allocator
from resim.distributed.processes import Processes, averaging, in_parallel
from resim.layers.grouped_norm import count_groups
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.runs.config import OptimConfig
from resim.training.optimizer import build_optimizer, clip_gradients, nan_unless_finite
from resim.views.views import Views


@dataclass(frozen=True)
class Stepper:
    """A model with its optimiser and the settings of a step."""

    model: ReSim
    optimizer: torch.optim.Optimizer
    query: nn.Module
    """The query encoder, possibly compiled and in DistributedDataParallel."""
    key: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
    """The key encoder, possibly compiled."""
    groups_at_a_time: int
    precision: Literal["float32", "bf16"]
    clip_norm: float = 0.0
    """Largest L2 norm of all gradients together; 0: no clipping."""

    def __call__(self, views_q: Views, views_k: Views, order: Tensor | None) -> dict[str, Tensor]:
        """Take one step: losses, gradients averaged over all processes, one step of the optimiser.

        All keys are computed first. Then the queries go forward and backward `groups_at_a_time` groups at a time, which
        gives the same gradients in less memory.

        Args:
            views_q: this process's query views.
            views_k: the key views of the same images.
            order: permutation of the global batch for the key encoder; None: no shuffle.

        Returns:
            Losses and shares of this process's images as in `ReSim.forward`, detached; the total is NaN if the weights
            are not finite after the step.
        """
        images = len(views_q)
        groups = count_groups(images, self.model.config.group_size)
        per_pass = images // groups * min(groups, self.groups_at_a_time)
        starts = range(0, images, per_pass)
        device = views_q.images.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            keys = self.model.encode_keys(
                views_q, views_k, order=order, groups_at_a_time=self.groups_at_a_time, encoder=self.key
            )
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for start in starts:
            part = views_q.images[start : start + per_pass]
            share = len(part) / images
            with averaging(self.query, last=start == starts[-1]):
                with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                    losses = self.model.query_losses(
                        part, keys, first_group=start * groups // images, encoder=self.query
                    )
                if start == starts[-1]:
                    keys = keys.without_levels()  # frees memory for the backward pass
                (losses["total"] * share).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
        if self.clip_norm:
            sums["gradient/norm"] = clip_gradients(self.model.query.parameters(), self.clip_norm)
        self.optimizer.step()
        spoiled = self.model.finish_step(keys)
        if spoiled is not None:
            sums["total"] = sums["total"] + spoiled
        sums["total"] = sums["total"] + nan_unless_finite(self.model.query)
        if device == "cpu" and (memory := allocator()) is not None:
            memory.keep_memory()  # all lasting tensors are allocated by now
        return sums


def make_stepper(
    model_config: ModelConfig,
    optim: OptimConfig,
    processes: Processes,
    *,
    precision: Literal["float32", "bf16"],
    groups_at_a_time: int = 0,
    compile_encoders: bool = False,
) -> Stepper:
    """Build the model on this process's device with its optimiser.

    Args:
        model_config: the network.
        optim: seed, optimiser and clipping; the learning rate is set before each step.
        processes: all processes of the training.
        precision: precision of convolutions.
        groups_at_a_time: groups in one pass through the encoders; 0: one on a CPU, all on a GPU.
        compile_encoders: whether the encoders are compiled with torch.compile.
    """
    device = processes.device
    if device.type == "cpu" and (memory := allocator()) is not None:
        memory.part_memory()
    model = ReSim(model_config, seed=optim.seed).to(device).train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model.query, optim)
    query: nn.Module = model.query
    key: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]] = model.key
    if compile_encoders:
        query, key = torch.compile(query), torch.compile(key)  # type: ignore[assignment]
    query = in_parallel(query, processes)
    at_a_time = groups_at_a_time or (1 if device.type == "cpu" else 2**31)
    return Stepper(model, optimizer, query, key, at_a_time, precision, optim.clip_norm)
