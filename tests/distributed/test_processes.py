"""The same groups give the same step on any number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from forked import on_processes
from resim.distributed.rows import exchange_rows, gather_rows, inverse_order, world
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.views.views import Views

GLOBAL_BATCH, GROUP_SIZE, SIZE = 8, 2, 64
QUEUE_SIZE = 12  # a second step wraps around
ORDER = torch.tensor([5, 0, 3, 6, 1, 7, 2, 4])  # moves keys between groups and between processes
DTYPES = {"float64": torch.float64, "float32": torch.float32}
# one step in float32: after it, an activation within rounding of 0 may fall on either side
STEPS = {"float64": 2, "float32": 1}


@dataclass(frozen=True)
class Case:
    """One way to run the same steps."""

    fpn_norm: bool
    dtype: str
    ddp: bool

    def __str__(self) -> str:
        fpn = "normalised" if self.fpn_norm else "plain"
        return f"{fpn}-{self.dtype}-{'ddp' if self.ddp else 'averaged'}"


CASES = [
    Case(fpn_norm=False, dtype="float64", ddp=True),
    Case(fpn_norm=True, dtype="float64", ddp=False),
    Case(fpn_norm=False, dtype="float32", ddp=False),
    Case(fpn_norm=True, dtype="float32", ddp=True),
]
ROWS = {
    "float64": torch.arange(24, dtype=torch.float64).reshape(8, 3),
    "bfloat16": torch.arange(8).bfloat16(),
    "bool": torch.arange(16).reshape(8, 2) % 3 == 0,
    "maps": torch.arange(64.0).reshape(8, 2, 2, 2).to(memory_format=torch.channels_last),
}


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Images (2, 8, 3, S, S) and crops (2, 8, 4): query, key."""
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(2, GLOBAL_BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    crops = torch.rand(2, GLOBAL_BATCH, 4, generator=generator, dtype=torch.float64) * 30
    crops[..., 2:] += 60
    crops[1, :GROUP_SIZE, :2] += 500  # the first group has no valid window
    return images, crops


def average_gradients(model: ReSim) -> None:
    """Average the gradients at once, as DistributedDataParallel does during backward."""
    gradients = [parameter.grad for parameter in model.query.parameters()]
    flat = torch.cat([grad.flatten() for grad in gradients if grad is not None])
    dist.all_reduce(flat)
    flat /= world()[1]
    for grad, mean in zip(gradients, flat.split([g.numel() for g in gradients if g is not None]), strict=True):
        assert grad is not None
        grad.copy_(mean.view_as(grad))


def sample(tensor: Tensor) -> Tensor:
    """A small tensor, or the norm and 2,048 entries of a large one, to keep results small."""
    flat = tensor.detach().flatten()
    if len(flat) <= 4096:
        return tensor.detach().clone()
    return torch.cat([flat.norm()[None], flat[:: len(flat) // 2048] * len(flat) ** 0.5])


def run_case(case: Case) -> dict[str, Tensor]:
    """Run some steps on this process's part of the batch."""
    rank, processes = world()
    dtype = DTYPES[case.dtype]
    levels = (
        Level(name="P4", window=24, step=16, negatives="all"),
        Level(name="P3", window=16, step=12, negatives="group"),
    )
    model = ReSim(
        ModelConfig(
            backbone="resnet18", levels=levels, fpn_width=8, dim=8, queue_size=QUEUE_SIZE, group_size=GROUP_SIZE,
            key_momentum=0.5, fpn_norm=case.fpn_norm,
        ),
        seed=3,
    ).to(dtype)  # fmt: skip
    encoder: Any = None
    if case.ddp and processes > 1:
        encoder = DistributedDataParallel(model.query, find_unused_parameters=False, broadcast_buffers=False)
    n = GLOBAL_BATCH // processes
    mine = slice(rank * n, (rank + 1) * n)
    result: dict[str, Tensor] = {}
    for step in range(STEPS[case.dtype]):
        images, crops = (x[:, mine] for x in global_batch(step))
        views_q, views_k = (Views(images[i].to(dtype), crops[i]) for i in range(2))
        keys = model.encode_keys(views_q, views_k, order=ORDER.roll(step))
        losses = model.query_losses(views_q.images, keys, encoder=encoder)
        model.query.zero_grad()
        losses["total"].backward()
        if encoder is None and processes > 1:
            average_gradients(model)
        model.finish_step(keys)
        for name, loss in losses.items():
            result[f"{step}/loss/{name}"] = loss.detach()
        for name, parameter in model.query.named_parameters():
            assert parameter.grad is not None
            result[f"{step}/gradient/{name}"] = sample(parameter.grad)
            with torch.no_grad():
                parameter -= 1e-3 * parameter.grad  # the momentum update then changes the key encoder
    return result | {f"state/{name}": sample(value) for name, value in model.state_dict().items()}


def differs_by_process(name: str) -> bool:
    """Whether a result differs between processes: losses and running statistics, whose mean is that of one process."""
    return "/loss/" in name or name.endswith(("running_mean", "running_var"))


def move_rows() -> dict[str, Tensor]:
    """The results of the collective operations on this process."""
    rank, processes = world()
    n = GLOBAL_BATCH // processes
    mine = slice(rank * n, (rank + 1) * n)
    result = {}
    for name, rows in ROWS.items():
        gathered = gather_rows(rows[mine]).wait()
        moved = exchange_rows(rows[mine], ORDER).wait()
        back = exchange_rows(moved, inverse_order(ORDER)).wait()
        assert len(moved) == len(back) == n
        result |= {f"{name}/gathered": gathered, f"{name}/moved": moved, f"{name}/back": back}
    return result


def work(rank: int, processes: int, folder: str) -> None:
    """Run one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{processes}", rank=rank, world_size=processes)
    try:
        result: dict[str, Any] = {str(case): run_case(case) for case in CASES}
        result["rows"] = move_rows()
        torch.save(result, Path(folder) / f"{processes}-{rank}.pt")
    finally:
        dist.destroy_process_group()


Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def one() -> Results:
    """All results on one process without a process group."""
    assert world() == (0, 1)
    return {str(case): run_case(case) for case in CASES}


@pytest.fixture(scope="module", params=[2, 4], ids=["2-processes", "4-processes"])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """The results of each of several processes."""
    processes: int = request.param
    folder = tmp_path_factory.mktemp("processes")
    on_processes(work, (processes, str(folder)), processes)
    return [torch.load(folder / f"{processes}-{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_does_not_depend_on_the_layout(one: Results, several: list[Results], case: Case) -> None:
    results, expected = [result[str(case)] for result in several], one[str(case)]
    rounding = {"float64": 1e-9, "float32": 1e-4}[case.dtype]
    for name, value_on_one_process in expected.items():
        tolerance = max(rounding, 1e-6) if "/accuracy/" in name or "/valid/" in name else rounding
        values = torch.stack([result[name] for result in results])
        if differs_by_process(name):
            values = values.mean(dim=0, keepdim=True)
        for value in values:
            if value.is_floating_point():
                assert (value - value_on_one_process).norm() <= tolerance * value_on_one_process.norm(), name
            else:
                assert torch.equal(value, value_on_one_process), name
    assert all(list(result) == list(expected) for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_compared_results_are_not_trivial(one: Results, case: Case) -> None:
    result, steps = one[str(case)], STEPS[case.dtype]
    for step in range(steps):
        assert all(result[f"{step}/loss/{name}"] > 0 for name in ("instance", "P4", "P3"))
        assert all(0 < result[f"{step}/loss/valid/{name}"] < 1 for name in ("P4", "P3"))
    assert all(value.any() for name, value in result.items() if "/gradient/" in name)
    assert result["state/queue_position"] == steps * GLOBAL_BATCH % QUEUE_SIZE
    query, key = (result[f"state/{name}.backbone.conv1.weight"] for name in ("query", "key"))
    assert not torch.equal(query, key)


@pytest.mark.slow
def test_every_process_ends_with_the_same_key_encoder_and_queue(several: list[Results]) -> None:
    for case in CASES:
        first, *others = (result[str(case)] for result in several)
        for other in others:
            for name, value in other.items():
                assert differs_by_process(name) or torch.equal(value, first[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(ROWS))
def test_rows_are_gathered_moved_and_moved_back(several: list[Results], kind: str) -> None:
    rows = ROWS[kind]
    assert all(torch.equal(result["rows"][f"{kind}/gathered"], rows) for result in several)
    assert torch.equal(torch.cat([result["rows"][f"{kind}/moved"] for result in several]), rows[ORDER])
    assert torch.equal(torch.cat([result["rows"][f"{kind}/back"] for result in several]), rows)


# -- one process


@pytest.mark.parametrize("kind", list(ROWS))
def test_on_one_process_rows_are_only_reordered(kind: str) -> None:
    rows = ROWS[kind]
    assert world() == (0, 1)
    assert torch.equal(gather_rows(rows).wait(), rows)
    assert torch.equal(exchange_rows(rows, None).wait(), rows)
    moved = exchange_rows(rows, ORDER).wait()
    assert all(torch.equal(moved[place], rows[row]) for place, row in enumerate(ORDER.tolist()))
    assert torch.equal(exchange_rows(moved, inverse_order(ORDER)).wait(), rows)


def test_the_inverse_of_an_order() -> None:
    inverse = inverse_order(torch.tensor([2, 0, 3, 1]))
    assert inverse is not None
    assert inverse.tolist() == [1, 3, 0, 2]
    assert inverse_order(None) is None
