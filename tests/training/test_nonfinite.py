"""A batch whose loss is not finite: it is written to a file, and the run stops, or goes back and passes it over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from equal import same
from resim.errors import UserError
from resim.runs import nonfinite
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import RunConfig, read_run_settings
from resim.runs.log import NonFiniteLossError, read_metrics
from resim.scenes.scenes import write_scenes
from resim.training import pretrain as loop
from resim.training.optimizer import nan_unless_finite
from resim.training.pair_records import rebuild_pairs
from resim.views.finish import Finisher
from resim.views.folder import find_images
from resim.views.loader import PairBatch, PairDataset, collate, epoch_order
from resim.views.views import Views
from training.test_pretrain import BATCH, IMAGES, STEPS, go, numbers, small

BAD = 4  # the second step of the second epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "made"
    write_scenes(folder, IMAGES, seed=1, width=96, height=72)
    return folder / "images"


def keys_of(step: int) -> list[tuple[int, int]]:
    """The epoch and the index of each image of a batch."""
    epoch, in_epoch = divmod(step, STEPS)
    order = epoch_order(IMAGES, small().optim.seed, epoch)[in_epoch * BATCH : (in_epoch + 1) * BATCH]
    return [(epoch, int(index)) for index in order]


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the query views of some batches NaN."""
    bad = [[index for _, index in keys_of(step)] for step in steps]

    class Poisoned(Finisher):
        def __call__(self, batch: PairBatch) -> tuple[Views, Views]:
            views_q, views_k = super().__call__(batch)
            if list(batch.indices) in bad:
                views_q.images.fill_(torch.nan)
            return views_q, views_k

    monkeypatch.setattr(loop, "Finisher", Poisoned)


def record(out: Path, step: int = BAD) -> dict[str, Any]:
    return json.loads((out / "nonfinite" / f"step_{step:06d}.json").read_text())


@pytest.mark.slow
def test_the_run_stops_and_the_file_has_all_that_the_views_are_made_of(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, BAD)
    out = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        go(out, images)
    assert str(caught.value) == (
        f"the loss is nan at step {BAD} (lr 0.015): its batch is in {out}/nonfinite/step_000004.json; "
        f"{out}/checkpoints/last.pt is of the last good state: start another run with a lower --lr from it "
        f"(--start-from {out}), or from an earlier one if its losses rise already, since --resume keeps the lr, or "
        "pass over the batch (--resume --on-nonfinite skip)"
    )
    assert load_checkpoint(out / "checkpoints" / "last.pt")["step"] == STEPS
    stored = record(out)
    assert (stored["step"], stored["loss"], stored["passed_over"]) == (BAD, "nan", False)
    assert sorted(stored["shuffle"]) == list(range(BATCH))

    paths = find_images([images])
    dataset = PairDataset(paths, small().views, small().optim.seed)
    batch = collate([dataset[key] for key in keys_of(BAD)])
    assert [image["path"] for image in stored["images"]] == [paths[index] for index in batch.indices]
    again = rebuild_pairs(stored["images"], small().views)
    assert torch.equal(again.pixels, batch.pixels)
    assert (again.draws, again.flips) == (batch.draws, batch.flips)


@pytest.mark.slow
def test_a_batch_that_is_passed_over_leaves_no_trace(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = tmp_path / "never"  # a run that never computes the batch
    (never / "nonfinite").mkdir(parents=True)
    (never / "nonfinite" / "step_000004.json").write_text(json.dumps({"step": BAD, "passed_over": True}))
    go(never, images)
    assert "passes over 1 batch: step 4, see " in capsys.readouterr().out

    poison(monkeypatch, BAD)
    out = tmp_path / "run"
    result = go(out, images, on_nonfinite="skip", stop_after=STEPS + 2)
    assert (result.step, result.finished) == (
        STEPS + 2,
        False,
    )  # counted from the start, not from where it goes back to
    output = capsys.readouterr().out
    assert "it is passed over (1 of at most 5), and the run goes back to its last checkpoint" in output
    assert f"resumed after step {STEPS}" in output
    assert record(out)["passed_over"] is True
    assert go(out, images, resume=True).finished  # what was passed over stays so

    states = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (never, out)]
    assert same(*states)
    assert numbers(never) == numbers(out)
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [0, 1, 2, 3, 5]


@pytest.mark.slow
def test_before_the_first_checkpoint_the_run_goes_back_to_its_start(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = tmp_path / "never"
    (never / "nonfinite").mkdir(parents=True)
    (never / "nonfinite" / "step_000001.json").write_text(json.dumps({"step": 1, "passed_over": True}))
    go(never, images, small(epochs=1))
    poison(monkeypatch, 1)
    go(tmp_path / "run", images, small(epochs=1), on_nonfinite="skip")
    states = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (never, tmp_path / "run")]
    assert same(*states)


@pytest.mark.slow
def test_only_so_many_batches_are_passed_over(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "MOST_PASSED_OVER", 1)
    poison(monkeypatch, 3, BAD)
    with pytest.raises(UserError, match=r"at step 4 .*; 1 batch has been passed over, the limit; ") as caught:
        go(tmp_path / "run", images, on_nonfinite="skip")
    assert "--on-nonfinite" not in str(caught.value)
    assert [record(tmp_path / "run", step)["passed_over"] for step in (3, BAD)] == [True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_weights_that_overflow_make_the_loss_nan(value: float) -> None:
    module = torch.nn.Linear(3, 2)
    assert nan_unless_finite(module) == 0
    with torch.no_grad():
        module.weight[1, 2] = value
    assert nan_unless_finite(module).isnan()


def test_the_message_names_what_is_not_finite() -> None:
    line = {"step": 7, "lr": 0.5, "loss/total": torch.nan, "loss/instance": 2.0}
    assert str(NonFiniteLossError(line)) == "the weights or BatchNorm's statistics overflow at step 7 (lr 0.5)"
    line = {"step": 7, "lr": 0.5, "loss/total": torch.inf, "loss/instance": torch.inf}
    assert str(NonFiniteLossError(line)) == "the loss is inf at step 7 (lr 0.5)"


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "nonfinite").mkdir()
    (tmp_path / "nonfinite" / "step_000004.json").write_text("{")
    with pytest.raises(UserError, match=r"step_000004.json: cannot be read"):
        nonfinite._passed_over(tmp_path)


def test_a_resumed_run_keeps_its_policy(tmp_path: Path) -> None:
    stored = {"run": {"on_nonfinite": "skip", "timeout_minutes": 3.0}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    settings = read_run_settings(tmp_path / "config.json")
    assert (settings.on_nonfinite, settings.timeout_minutes) == ("skip", 3.0)
    assert (RunConfig().on_nonfinite, RunConfig().timeout_minutes) == ("stop", 10.0)
