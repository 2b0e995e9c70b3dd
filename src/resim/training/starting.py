"""The start of a run from existing weights: of another run, of another program, or of torchvision."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.config import Recipe, RunConfig
from resim.training.step import Stepper


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that a run starts from.

    Attributes:
        state: a complete checkpoint of the recipe's network.
        line: what was loaded and from where, what is new and what was left over, to print.
        record: the same in full, as plain data for config.json.
    """

    state: dict[str, Any]
    line: str
    record: dict[str, Any]


def read_start(run: RunConfig, recipe: Recipe, processes: Processes | None = None) -> Start | None:
    """Read the weights that `--start-from` names, fitted to the recipe's network; None: the run has random weights.

    Args:
        run: its `start_from` and `start_epoch` are read.
        recipe: what is trained.
        processes: the first one downloads weights that are not on the disk; None: there is this process alone.

    Raises:
        UserError: no such weights, weights of another backbone, or an epoch that is not in the schedule.
    """
    from resim.exchange.sources import is_untrained, untrained_model  # slow to import, and rarely needed
    from resim.exchange.training_state import start_state

    if run.start_from is None or is_untrained(run.start_from):
        if run.start_epoch:
            raise UserError(f"--start-epoch {run.start_epoch}: needs --start-from, the checkpoint of that epoch")
        model = None if run.start_from is None else untrained_model(run.start_from)
        if model is not None and model.backbone != recipe.model.backbone:
            raise UserError(
                f"{run.start_from}: is a {model.backbone}, the recipe's backbone is {recipe.model.backbone}: set "
                f"--backbone {model.backbone}"
            )
        return None
    if run.start_epoch >= recipe.optim.epochs:
        raise UserError(f"--start-epoch {run.start_epoch}: must be below --epochs {recipe.optim.epochs}")
    if processes is not None:
        download_once(run.start_from, processes)
    imported, queue = start_state(run.start_from, recipe)
    weights, momentum = imported.weights, imported.momentum
    query = [name.removeprefix("query.") for name in imported.loaded if name.startswith("query.")]
    new_query = [name.removeprefix("query.") for name in imported.new if name.startswith("query.")]
    loaded, new = list_parts(query, without=new_query), list_parts(new_query, without=query)
    has_keys = any(name.startswith("key.") for name in imported.loaded)
    has_queue = "queue" in imported.loaded
    loaded += ["key encoder"] * has_keys + [f"queue ({queue})"] * has_queue + ["momentum"] * (momentum > 0)
    new += ["key encoder (a copy of the query)"] * (not has_keys)
    new += [f"queue ({queue})"] * (not has_queue) + ["momentum (0)"] * (not momentum)
    left_over = list_counts(imported.left_over)
    line = (
        f"starts from {run.start_from} ({weights.path}: {weights.kind}): loaded {', '.join(loaded)}; "
        f"new, from seed {recipe.optim.seed}: {', '.join(new) or 'nothing'}; "
        f"left over: {', '.join(left_over) or 'nothing'}"
    )
    record = {
        "source": run.start_from, "path": str(weights.path), "kind": weights.kind, "queue": queue,
        "momentum": momentum, "loaded": imported.loaded, "copied": imported.copied, "new": imported.new,
        "left_over": imported.left_over,
    }  # fmt: skip
    return Start(state=imported.state, line=line, record=record)


def download_once(source: str, processes: Processes) -> None:
    """Download the weights that `source` names, on the first process, while the others wait. All must call it.

    An error is ignored: it occurs again when all processes read the weights, and one of them reports it.
    """
    from resim.exchange.sources import is_untrained, locate

    if processes.first and not is_untrained(source):
        with contextlib.suppress(UserError):
            locate(source)
    processes.gather_objects(None)


def load_start(stepper: Stepper, state: dict[str, Any]) -> None:
    """Load the state of a `Start` into a model and its optimiser; the settings of the optimiser are not changed.

    Only SGD takes the momentum; the moments of other optimisers start at zero.
    """
    stepper.model.load_state_dict(state["model"])
    momentum = (state.get("optimizer") or {}).get("state")
    if not momentum or not isinstance(stepper.optimizer, torch.optim.SGD):
        return
    # numbered in the order of the network's parameters, independent of the groups of this optimiser
    for index, parameter in enumerate(stepper.model.query.parameters()):
        # the fused SGD ignores strides: momentum must have the memory format of its parameter (channels last)
        buffer = torch.empty_like(parameter, requires_grad=False).copy_(momentum[index]["momentum_buffer"])
        stepper.optimizer.state[parameter]["momentum_buffer"] = buffer


def list_parts(names: Sequence[str], *, without: Sequence[str]) -> list[str]:
    """The parts of an encoder that its entries belong to, or a part's modules where `without` has entries of it too.

    `head.0.weight`, `fpn.lateral5.0.weight` -> `head`, `FPN`; and without `fpn.output3.weight`: `head`,
    `FPN's lateral5`.
    """
    titles = {"fpn": "FPN", "convs": "convolutions of C levels"}
    others = {name.partition(".")[0] for name in without}
    modules: dict[str, dict[str, None]] = {}
    for name in names:
        part, _, rest = name.partition(".")
        modules.setdefault(part, {})[rest.partition(".")[0]] = None
    return [
        f"{titles.get(part, part)}'s {' '.join(inner)}" if part in others else titles.get(part, part)
        for part, inner in modules.items()
    ]


def list_counts(names: Sequence[str], at_most: int = 4) -> list[str]:
    """The beginnings of names and how many names have each, such as `fc (2)`; at most the first few, and the total."""
    counts: dict[str, int] = {}
    for name in names:
        words = [word for word in name.split(".") if word != "module"] or [name]
        beginning = ".".join(words[:2] if words[0] in ("query", "encoder_q", "backbone") else words[:1])
        counts[beginning] = counts.get(beginning, 0) + 1
    listed = [f"{name} ({count})" for name, count in counts.items()]
    return listed[:at_most] + ([f"... {len(names)} in all"] if len(listed) > at_most else [])
