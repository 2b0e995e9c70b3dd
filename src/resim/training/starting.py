"""A run that begins with the weights, keys, queue and momentum of another checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resim.errors import UserError
from resim.training.checkpoints import load_checkpoint
from resim.training.config import OptimConfig, RunConfig
from resim.training.step import Stepper


def read_start(run: RunConfig, optim: OptimConfig) -> dict[str, Any] | None:
    """The checkpoint of `--start-from`, or None where the run starts new.

    Raises:
        UserError: no such checkpoint, or an epoch to start at that is none.
    """
    if run.start_from is None:
        if run.start_epoch:
            raise UserError(f"--start-epoch {run.start_epoch}: needs --start-from, the checkpoint of that epoch")
        return None
    if run.start_epoch >= optim.epochs:
        raise UserError(f"--start-epoch {run.start_epoch}: must be below --epochs {optim.epochs}")
    path = Path(run.start_from)
    path = path / "checkpoints" / "last.pt" if path.is_dir() else path
    state = load_checkpoint(path)
    model = state.get("model")
    if not isinstance(model, dict) or not any(str(name).startswith("query.backbone.") for name in model):
        raise UserError(f"--start-from {path}: holds no state of pre-training; make one with resim import FILE --out")
    return state


def start(stepper: Stepper, state: dict[str, Any], source: str) -> None:
    """Load a checkpoint into a model and its optimiser; the recipe's settings stay as they are.

    Raises:
        UserError: a checkpoint of another network.
    """
    own, theirs = stepper.model.state_dict(), state["model"]
    missing = [name for name in own if name not in theirs]
    wrong = [
        f"{name} {tuple(theirs[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in theirs and theirs[name].shape != own[name].shape
    ]
    surplus = [name for name in theirs if name not in own]
    problems = {"missing": missing, "of another shape": wrong, "without a place": surplus}
    told = [f"{len(names)} {what} ({names[0]})" for what, names in problems.items() if names]
    if told:
        raise UserError(
            f"--start-from {source}: is of another network than the recipe's: {'; '.join(told)}; give its own recipe, "
            "or fit it by resim import --recipe"
        )
    stepper.model.load_state_dict(theirs)
    momentum = (state.get("optimizer") or {}).get("state")
    if momentum:
        groups = stepper.optimizer.state_dict()["param_groups"]
        stepper.optimizer.load_state_dict({"state": momentum, "param_groups": groups})
        # the fused SGD takes numbers as they lie in memory: momentum must lie as its parameter does (channels last)
        for parameter, entry in stepper.optimizer.state.items():
            entry["momentum_buffer"] = torch.empty_like(parameter).copy_(entry["momentum_buffer"])
