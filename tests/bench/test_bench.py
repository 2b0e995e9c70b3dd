"""The benchmarks compare the same work, and their advice follows from the measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resim import recipes
from resim.bench import measure
from resim.bench.measure import PlainStepper, Rate
from resim.bench.plain import plain_loader
from resim.bench.report import advice, fewest_workers, groups_to_try, verdict, worker_counts
from resim.cli.main import main
from resim.distributed.processes import Processes
from resim.exit_codes import USER_ERROR
from resim.model.encoder import ModelConfig
from resim.regions.level import Level
from resim.runs.config import Recipe
from resim.training.step import make_stepper
from resim.views.folder import find_images
from resim.views.views import Views

LEVELS = (
    Level(name="P4", window=32, step=16, negatives="all"),
    Level(name="P3", window=16, step=16, negatives="group"),
)
CPU = torch.device("cpu")


def small(batch: int = 8) -> Recipe:
    recipe = recipes.quick()
    model = ModelConfig(backbone="resnet18", levels=LEVELS, fpn_width=8, dim=8, queue_size=32, group_size=4)
    views = dataclasses.replace(recipe.views, image_size=64)
    optim = dataclasses.replace(recipe.optim, batch_size=batch)
    return dataclasses.replace(recipe, model=model, views=views, optim=optim)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return folder


@pytest.mark.slow
def test_the_plain_step_equals_our_step() -> None:
    recipe = small()
    alone = Processes(rank=0, count=1, device=CPU, cores=1)
    ours = make_stepper(recipe.model, recipe.optim, alone, precision="float32")
    plain = PlainStepper(recipe, CPU)
    plain.model.load_state_dict(ours.model.state_dict(), strict=False)  # all but the queue's position
    generator = torch.Generator().manual_seed(0)
    for step in range(2):
        crops = torch.rand(2, 8, 4, generator=generator, dtype=torch.float64) * 20
        crops[..., 2:] += 60
        views_q, views_k = (Views(torch.randn(8, 3, 64, 64, generator=generator), crops[i]) for i in range(2))
        expected, losses = ours(views_q, views_k, None), plain(views_q, views_k)
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-3 if step else 1e-5)
        assert 0 < losses["P3"] < losses["total"]
    state = ours.model.state_dict()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value.float(), state[name].float(), rtol=1e-2, atol=1e-2)


def test_the_plain_loader_returns_two_views_and_their_crops(images: Path) -> None:
    recipe = small(batch=4)
    (batch,) = plain_loader(find_images(images), recipe.views, 4, workers=0)
    for views, crops in ((batch[0], batch[1]), (batch[2], batch[3])):
        assert (views.shape, views.dtype) == ((4, 3, 64, 64), torch.float32)
        assert (crops.shape, crops.dtype) == ((4, 4), torch.float64)
        assert (crops[:, :2] + crops[:, 2:] <= torch.tensor([80, 100])).all()
    assert not torch.equal(batch[0], batch[2])


def test_batches_that_are_ready_at_first_do_not_count(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, lengths, steps = small(), list[int](), list[int]()

    def loader(paths: list[str], *_: object, **__: object) -> Iterator[tuple[torch.Tensor, ...]]:
        lengths.append(len(paths))
        yield from [(torch.zeros(8, 3, 4, 4), torch.zeros(8, 4)) * 2] * 100

    plain = PlainStepper(recipe, CPU)
    monkeypatch.setattr(PlainStepper, "__call__", lambda *_: steps.append(1))
    monkeypatch.setattr(measure, "plain_loader", loader)
    measure.plain_together_rate(plain, find_images(images), recipe, 5, 0.0)
    assert len(steps) == 5 + 3  # each of 5 workers has a batch ready; 3 are timed at least
    assert lengths[0] >= 4 * 5 * 8  # several batches for each of them before they are started again


def test_a_folder_with_fewer_images_than_a_batch_is_repeated(images: Path) -> None:
    source = measure.batches(find_images(images), small(batch=16), 0)
    first, second = next(source), next(source)
    assert len(first) == len(second) == 16
    assert first.indices != second.indices


def test_a_rate_is_printed_with_its_spread() -> None:
    assert str(Rate((2.0, 1.0, 4.0))) == "2.0 (1.0 to 4.0)"


def test_worker_counts_and_groups_to_try() -> None:
    assert worker_counts(1) == [1]
    assert worker_counts(6) == [1, 2, 4, 6]
    assert worker_counts(64) == [1, 2, 4, 8, 16]
    assert groups_to_try(8) == [1, 2, 8]
    assert groups_to_try(1) == [1]


def test_the_fewest_workers_that_are_about_as_fast_as_any() -> None:
    assert fewest_workers({1: 50, 2: 98, 4: 100, 8: 99}) == 2
    assert fewest_workers({1: 50, 2: 90, 4: 100}) == 4


@pytest.mark.parametrize(
    ("loader", "step", "fed", "waiting", "message"),
    [
        (100.0, 400.0, 99.0, 0.7, "the loader limits: 4 workers load 100.0 images/s, the step takes 400.0"),
        (900.0, 400.0, 396.0, 0.01, "the step limits; fed, it reaches 99% of the step alone and waits 1.0%"),
        (90.0, 40.0, 30.0, 0.02, "the step limits, and loader and step share the same cores"),
    ],
)
def test_the_verdict_names_what_limits(loader: float, step: float, fed: float, waiting: float, message: str) -> None:
    assert verdict(loader, step, Rate((fed,), waiting), 4).startswith(message)


def test_the_advice_matches_numbers_by_hand() -> None:
    # 1000 images in batches of 256: 768 an epoch, 200 epochs, 100 a second: 1,536 s
    text = advice(recipes.resim_fpn(), 1000, 100.0, 4, 2, 8)
    assert text == (
        "use --workers 4 --groups-at-a-time 2 with --batch-size 256: 200 epochs of 1000 images take 25.6 minutes"
    )


@pytest.mark.slow
def test_the_command_measures_and_advises(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--recipe", "quick", "--levels", "P4:window=32,step=16", "--fpn-width", "8", "--queue-size", "16"]
    size = ["--group-size", "2", "--batch-size", "4", "--image-size", "64", "--seconds", "0.01"]
    assert main(["bench", str(images), *model, *size, "--precision", "float32", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "6 images" in out
    for row in (
        "loader alone",
        "step alone",
        "  1 groups at a time",
        "  2 groups at a time",
        "waiting for data",
        "use ",
    ):
        assert row in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "missing: there is no such folder or file"),
        (["IMAGES", "--seconds", "0"], "seconds 0.0: must be above 0"),
        (["IMAGES", "--batch-size", "30"], "batch-size 30 is no whole number of groups"),
    ],
)
def test_what_cannot_be_measured_is_reported_in_one_line(
    images: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *(word.replace("IMAGES", str(images)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_loader_process_that_is_killed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed.")

    monkeypatch.setattr("resim.bench.report.bench", fail)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["bench", str(tmp_path), "--recipe", "quick"]) == USER_ERROR
    err = capsys.readouterr().err
    assert err.startswith("resim bench: a worker process of the loader was killed")
    assert err.count("\n") == 1
