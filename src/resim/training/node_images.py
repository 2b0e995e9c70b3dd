"""How many images the negatives of `negatives=node` are of: those of the processes of one host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resim.distributed.hosts import processes_of_host
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.config import Recipe

_KEY = "node_images"  # in config.json and in checkpoints


def count_node_images(recipe: Recipe, processes: Processes) -> dict[str, int]:
    """The images of a step on each host, as an entry of config.json; empty if no level has negatives=node.

    All processes must call it.

    Raises:
        UserError: it is not known which processes are on one host, or hosts have different numbers of processes.
    """
    if not any(level.negatives == "node" for level in recipe.model.levels):
        return {}
    counts = processes.gather_objects(len(processes_of_host()))
    if len(set(counts)) > 1:
        raise UserError(
            f"negatives=node on hosts with {' and '.join(map(str, sorted(set(counts))))} processes: windows would have "
            "different numbers of negatives: start as many on each host, or set negatives=all or negatives=group"
        )
    return {_KEY: recipe.optim.batch_size // processes.count * counts[0]}


def check_node_images(state: Mapping[str, Any] | None, ours: Mapping[str, int]) -> None:
    """Check that a resumed run has as many images on each host as when it began.

    Args:
        state: the checkpoint; None: the run is new.
        ours: as `count_node_images` returns it.

    Raises:
        UserError: it has not.
    """
    if state is not None and state.get(_KEY) != ours.get(_KEY):
        raise UserError(
            f"--resume with {ours.get(_KEY)} images on each host, and the run began with {state.get(_KEY)}: with "
            "negatives=node that is another loss: start as many processes on each host, or begin another run with "
            "--start-from this one"
        )
