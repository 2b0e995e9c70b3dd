"""Negatives of one host: the cells of its processes' images, gathered by hand; on one host those of all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from forked import on_processes
from resim.distributed import hosts
from resim.distributed.hosts import gather_rows_of_host, is_one_host, processes_of_host
from resim.errors import UserError
from resim.model.losses import pool_regions
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.views.views import Views
from small_model import gradients, pair, same, small

IMAGES = 8
ORDER = torch.tensor([5, 0, 7, 2, 6, 1, 3, 4])
CASES = {2: (1, 2), 4: (1, 2, 4)}
"""By the number of processes, the processes of each host."""


def levels(negatives: Any) -> tuple[Level, ...]:
    return (Level(name="P4", window=24, step=16, negatives=negatives),)


def part(views: Views, mine: slice) -> Views:
    return Views(views.images[mine], views.crops[mine])


def step(negatives: str, mine: slice) -> tuple[ReSim, dict[str, Tensor], Any, Views]:
    model = ReSim(small(levels=levels(negatives)), seed=1).double()
    views_q, views_k = (part(views, mine) for views in pair(IMAGES))
    keys = model.encode_keys(views_q, views_k, order=ORDER)
    losses = model.query_losses(views_q.images, keys)
    losses["total"].backward()
    return model, losses, keys, views_q


def by_hand(model: ReSim, keys: Any, views_q: Views, host: range, n: int) -> Tensor:
    """The loss of P4 against the cells of the host's images, which are chosen from those of all."""
    level, level_keys = model.config.levels[0], keys.levels["P4"]
    cells = level_keys.cells.wait().unflatten(0, (IMAGES, -1))[torch.argsort(ORDER)]  # in the order of the queries
    negatives = cells[host.start * n : host.stop * n].flatten(0, 1)
    regions = pool_regions(model.query(views_q.images)[1]["P4"], level_keys.windows, level.stride)
    logits = torch.cat([(regions * level_keys.positives.wait()).sum(-1, keepdim=True), regions @ negatives.T], dim=-1)
    losses = -F.log_softmax(logits / model.config.temperature, dim=-1)[..., 0]
    groups = [range(i, i + 2) for i in range(0, n, 2)]  # of two images
    return torch.stack([losses[g][level_keys.valid[g]].mean() for g in groups]).mean()


def work(rank: int, processes: int, folder: str) -> None:
    """A step with every number of processes of a host."""
    torch.set_num_threads(1)
    result = {}
    n = IMAGES // processes
    mine = slice(rank * n, (rank + 1) * n)
    for count in CASES[processes]:
        os.environ.update(LOCAL_RANK=str(rank % count), LOCAL_WORLD_SIZE=str(count))
        meeting = f"file://{folder}/{processes}-{count}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
        host = processes_of_host()
        gathered = gather_rows_of_host(torch.full((1, 2), rank))
        assert gathered.tolist() == [[other, other] for other in host]
        model, losses, keys, views_q = step("all", mine)
        node_model, node_losses, node_keys, _ = step("node", mine)
        own = torch.equal(node_keys.levels["P4"].positives.wait(), keys.levels["P4"].positives.wait())
        expected = by_hand(model, keys, views_q, host, n)
        result[count] = {
            "node": node_losses["P4"].detach(), "all": losses["P4"].detach(), "by hand": expected.detach(), "own": own,
            "host": list(host), "one": is_one_host(), "cells": len(node_keys.levels["P4"].cells.wait()),
            "same gradients": same(gradients(model), gradients(node_model)),
        }  # fmt: skip
        dist.destroy_process_group()
    torch.save(result, Path(folder, f"{rank}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", CASES)
def test_negatives_of_a_node_are_the_cells_of_its_processes(processes: int, tmp_path: Path) -> None:
    on_processes(work, (processes, str(tmp_path)), processes)
    for rank in range(processes):
        for count, result in torch.load(tmp_path / f"{rank}.pt").items():
            first = rank // count * count
            assert result["host"] == list(range(first, first + count))
            assert result["own"]
            assert result["cells"] == count * IMAGES // processes * 4  # 4 x 4 positions of 64 px, 2 x 2 cells
            torch.testing.assert_close(result["node"], result["by hand"], rtol=1e-12, atol=0)
            if count == processes:
                assert result["one"]
                assert result["node"] == result["all"]
                assert result["same gradients"]
            else:
                assert not result["one"]
                assert result["node"] < result["all"]  # fewer negatives
                assert not result["same gradients"]


def test_on_one_process_a_node_is_all() -> None:
    whole = slice(0, IMAGES)
    model, losses, *_ = step("all", whole)
    node_model, node_losses, *_ = step("node", whole)
    assert all(torch.equal(losses[name], node_losses[name]) for name in losses)
    assert same(gradients(model), gradients(node_model))


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, range(4, 6)),
        ({"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, range(8)),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, range(5, 6)),
    ],
)
def test_processes_of_a_host_have_consecutive_ranks(
    variables: dict[str, str], ranks: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "world", lambda: (5, 8))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes_of_host() == ranks


@pytest.mark.parametrize(
    ("local_rank", "local_count", "message"),
    [
        (None, "2", "LOCAL_RANK and LOCAL_WORLD_SIZE say which processes are on one host, and are not set"),
        ("1", None, "start the processes by torchrun, or set negatives=all or negatives=group"),
        ("one", "2", "are not set"),
        ("2", "2", "LOCAL_RANK 2 and LOCAL_WORLD_SIZE 2 do not fit rank 5 of 8"),
        ("6", "8", "LOCAL_RANK 6 and LOCAL_WORLD_SIZE 8 do not fit rank 5 of 8"),
        ("0", "4", "LOCAL_RANK 0 and LOCAL_WORLD_SIZE 4 do not fit rank 5 of 8"),
    ],
)
def test_variables_that_say_nothing_are_refused(
    local_rank: str | None, local_count: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "world", lambda: (5, 8))
    for name, value in (("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_count)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes_of_host()
