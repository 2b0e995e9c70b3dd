"""A run that begins with weights that are there already: of another run, of another program, of torchvision."""

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
    """What a run begins with.

    Attributes:
        state: a whole checkpoint of the recipe's network.
        line: what came from where, what is new and what was left over, for people.
        record: the same in full, as plain data for config.json.
    """

    state: dict[str, Any]
    line: str
    record: dict[str, Any]


def read_start(run: RunConfig, recipe: Recipe, processes: Processes | None = None) -> Start | None:
    """What `--start-from` names, fitted to the recipe's network, or None where the run begins with random weights.

    Args:
        run: of which `start_from` and `start_epoch` count.
        recipe: what is trained.
        processes: the first of them downloads what has to be downloaded; None: this one alone.

    Raises:
        UserError: no such weights, those of another backbone, or an epoch to start at that is none.
    """
    from resim.exchange.sources import is_untrained, untrained_model  # exchange builds on this package's configs
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
        fetch_once(run.start_from, processes)
    imported, queue = start_state(run.start_from, recipe)
    weights, momentum = imported.weights, imported.momentum
    query = [name.removeprefix("query.") for name in imported.loaded if name.startswith("query.")]
    fresh = [name.removeprefix("query.") for name in imported.new if name.startswith("query.")]
    loaded, new = list_parts(query, but=fresh), list_parts(fresh, but=query)
    own_keys = any(name.startswith("key.") for name in imported.loaded)
    has_queue = "queue" in imported.loaded
    loaded += ["key encoder"] * own_keys + [f"queue ({queue})"] * has_queue + ["momentum"] * (momentum > 0)
    new += ["key encoder (a copy of the query)"] * (not own_keys)
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


def fetch_once(word: str, processes: Processes) -> None:
    """Let the first process download the weights that a word names, while the others wait. All must call it.

    An error is left to the reading that follows, which all processes do and of which one tells.
    """
    from resim.exchange.sources import is_untrained, locate

    if processes.first and not is_untrained(word):
        with contextlib.suppress(UserError):
            locate(word)
    processes.gather_objects(None)


def start(stepper: Stepper, state: dict[str, Any]) -> None:
    """Load the state of a `Start` into a model and its optimiser; the recipe's settings stay as they are.

    Momentum is taken over by SGD alone: other optimisers begin with moments of their own.
    """
    stepper.model.load_state_dict(state["model"])
    momentum = (state.get("optimizer") or {}).get("state")
    if not momentum or not isinstance(stepper.optimizer, torch.optim.SGD):
        return
    # numbered in the order of the network's parameters, whatever groups this optimiser has them in
    for index, parameter in enumerate(stepper.model.query.parameters()):
        # the fused SGD takes numbers as they lie in memory: momentum must lie as its parameter does (channels last)
        buffer = torch.empty_like(parameter, requires_grad=False).copy_(momentum[index]["momentum_buffer"])
        stepper.optimizer.state[parameter]["momentum_buffer"] = buffer


def list_parts(names: Sequence[str], *, but: Sequence[str]) -> list[str]:
    """The parts of an encoder that its entries belong to: a part whole, or its modules where `but` has some of it too.

    `head.0.weight`, `fpn.lateral5.0.weight` -> `head`, `FPN`; and with `but` holding `fpn.output3.weight`: `head`,
    `FPN's lateral5`.
    """
    titles = {"fpn": "FPN", "convs": "convolutions of C levels"}
    others = {name.partition(".")[0] for name in but}
    modules: dict[str, dict[str, None]] = {}
    for name in names:
        part, _, rest = name.partition(".")
        modules.setdefault(part, {})[rest.partition(".")[0]] = None
    return [
        f"{titles.get(part, part)}'s {' '.join(inner)}" if part in others else titles.get(part, part)
        for part, inner in modules.items()
    ]


def list_counts(names: Sequence[str], at_most: int = 4) -> list[str]:
    """Names by what they begin with, and how many there are of each: `fc (2)`; of many kinds the first few."""
    counts: dict[str, int] = {}
    for name in names:
        words = [word for word in name.split(".") if word != "module"] or [name]
        start = ".".join(words[:2] if words[0] in ("query", "encoder_q", "backbone") else words[:1])
        counts[start] = counts.get(start, 0) + 1
    listed = [f"{name} ({count})" for name, count in counts.items()]
    return listed[:at_most] + ([f"... {len(names)} in all"] if len(listed) > at_most else [])
