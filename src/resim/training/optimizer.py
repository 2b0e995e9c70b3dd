"""The optimiser of a pre-training: SGD as published, AdamW or LARS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resim.optional_packages import import_optional
from resim.runs.config import OptimConfig


def build_optimizer(module: nn.Module, config: OptimConfig, *, plain: bool = False) -> torch.optim.Optimizer:
    """Build the optimiser of a module's parameters; the learning rate is set before each step.

    With `config.decay_norms` all parameters form one group, in the module's order. Otherwise parameters of fewer than
    two dimensions (biases, scales and shifts of BatchNorm) form a second group without weight decay, to which LARS
    does not apply the trust ratio either.

    Args:
        module: the query encoder.
        config: optimiser, momentum, betas, weight decay.
        plain: update one parameter at a time, without PyTorch's fused kernels; updates differ in rounding only.

    Raises:
        UserError: LARS is chosen and timm, which implements it, is not installed.

    Source: Loshchilov and Hutter, arXiv 1711.05101 (AdamW); You et al., arXiv 1708.03888 (LARS).
    """
    groups = _parameter_groups(module, config)
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    kernels: dict[str, bool] = {"foreach": False} if plain else {"fused": True}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=config.betas, **settings, **kernels)
    if config.optimizer == "lars":
        lars = import_optional("timm.optim.lars", "--optimizer lars needs timm: run pip install '.[timm]' in the clone")
        settings |= {"momentum": config.momentum}
        return lars.Lars(groups, **settings)
    return torch.optim.SGD(groups, momentum=config.momentum, **settings, **kernels)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`; returns the norm before scaling."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


@torch.no_grad()
def nan_unless_finite(module: nn.Module) -> Tensor:
    """A scalar to add to the reported loss: 0, or NaN if the norm of the parameters is not finite in their precision.

    The host does not wait for it.
    """
    return 0.0 * torch.nn.utils.get_total_norm([parameter.detach() for parameter in module.parameters()])


def _parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    parameters = list(module.parameters())
    if config.decay_norms:
        return [{"params": parameters}]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
