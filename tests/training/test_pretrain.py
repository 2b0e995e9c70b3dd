"""A pre-training from end to end in this process: the files that it writes, and what changes its result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import resim
from equal import same
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.model.encoder import ModelConfig
from resim.recipes import moco_v2, resim_c4
from resim.regions.level import Level
from resim.runs import folder as run_folder
from resim.runs.bad_files import BadFiles
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import OptimConfig, Recipe, RunConfig, read_recipe
from resim.runs.log import read_metrics
from resim.scenes.scenes import write_scenes
from resim.training import pretrain as loop
from resim.training.pretrain import RunResult, pretrain
from resim.training.schedule import learning_rate
from resim.views.crops import ViewsConfig
from resim.views.folder import find_images
from resim.views.loader import PairDataset, epoch_order

IMAGES, BATCH, STEPS = 24, 8, 3  # steps an epoch
TIMING = ("images_per_second", "data_wait")
LEVELS = tuple(
    Level.parse(text) for text in ("P4:window=32,step=16,negatives=all", "P3:window=16,step=16,negatives=group")
)


def small(**changes: Any) -> Recipe:
    """A small recipe; a change replaces the field of its name in any part."""
    model = {
        "backbone": "resnet18", "levels": LEVELS, "fpn_width": 16, "conv_width": 16, "dim": 16, "queue_size": 16,
        "group_size": 4,
    }  # fmt: skip
    parts: list[dict[str, Any]] = [
        model,
        {"image_size": 64, "flip": "shared", "photometric_order": "blur-jitter-gray"},
        {"epochs": 2, "batch_size": BATCH, "lr": 0.03, "seed": 5},
    ]
    for name, value in changes.items():
        (part,) = (part for part in parts if name in part)
        part[name] = value
    return Recipe(
        name="small", model=ModelConfig(**parts[0]), views=ViewsConfig(**parts[1]), optim=OptimConfig(**parts[2])
    )


def go(out: Path, images: Path, recipe: Recipe | None = None, **settings: Any) -> RunResult:
    """Pre-train, by default without pictures."""
    usual: dict[str, Any] = {"device": "cpu", "precision": "float32", "workers": 0, "picture_every": 0}
    return pretrain(recipe or small(), RunConfig(out=out, **(usual | settings)), [images])


def numbers(out: Path) -> list[dict[str, float]]:
    """All numbers of a run, without its speed."""
    lines = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def same_end(a: Path, b: Path) -> bool:
    """Two runs ended with the same weights, statistics, queue, optimizer and numbers."""
    states = [load_checkpoint(out / "checkpoints" / "last.pt") for out in (a, b)]
    return same(*states) and numbers(a) == numbers(b)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "made"
    write_scenes(folder, IMAGES, seed=1, width=96, height=72)
    return folder / "images"


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = go(out, images, picture_every=1, keep_every=1)
    assert (result.out, result.step, result.finished) == (out, 2 * STEPS, True)
    return out


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, stopped in the middle of its first epoch."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    result = go(out, images, keep_every=1, stop_after=2)
    assert (result.step, result.finished) == (2, False)
    return out


# -- what a run writes


@pytest.mark.slow
def test_the_folder_of_a_run(whole: Path) -> None:
    files = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    (events,) = (name for name in files if name.startswith("tensorboard/events"))
    assert [name for name in files if name != events] == [
        "checkpoints/epoch_0001.pt",
        "checkpoints/epoch_0002.pt",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "pictures/epoch_0001.png",
        "pictures/epoch_0002.png",
    ]


@pytest.mark.slow
def test_the_config_says_what_ran(whole: Path, images: Path) -> None:
    assert read_recipe(whole / "config.json") == small()
    config = json.loads((whole / "config.json").read_text())
    assert config["recipe"]["model"]["levels"] == [str(level) for level in LEVELS]
    assert (config["run"]["precision"], config["processes"]) == ("float32", 1)
    assert config["run"]["out"] == str(whole)
    assert (config["run"]["workers"], config["run"]["keep_every"]) == (0, 1)
    assert "resume" not in config["run"]
    assert config["data"] == {
        "sources": [str(images)], "images": IMAGES, "hash": find_images([images]).fingerprint()
    }  # fmt: skip
    assert config["versions"]["torch"] == metadata.version("torch")
    assert config["versions"]["resim"] == resim.__version__
    assert set(config["git"]) == {"package", "working_folder"}
    package = config["git"]["package"]
    assert package is None or re.fullmatch("[0-9a-f]{40}", package["commit"])
    assert config["command"]


def test_one_line_of_metrics_a_step(whole: Path) -> None:
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(2 * STEPS))
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["epoch_progress"] for line in lines] == [step / STEPS for step in range(2 * STEPS)]
    expected = {"step", "epoch", "epoch_progress", "lr", *TIMING, "loss/total"}
    expected |= {f"{kind}/{name}" for kind in ("loss", "accuracy") for name in ("instance", "P4", "P3")}
    assert all(set(line) == expected | {"valid/P4", "valid/P3"} for line in lines)
    for line in lines:
        assert line["loss/total"] == pytest.approx(line["loss/instance"] + line["loss/P4"] + line["loss/P3"], rel=1e-5)
        assert line["images_per_second"] > 0
        shares = [value for name, value in line.items() if name.startswith(("accuracy", "valid", "data_wait"))]
        assert all(0 <= share <= 1 for share in shares)


def test_the_learning_rate_matches_the_schedule(whole: Path) -> None:
    assert [line["lr"] for line in numbers(whole)] == [0.03] * STEPS + [pytest.approx(0.015)] * STEPS
    state = load_checkpoint(whole / "checkpoints" / "last.pt")
    assert state["optimizer"]["param_groups"][0]["lr"] == learning_rate(small().optim, STEPS, STEPS)


def test_the_checkpoints(whole: Path) -> None:
    first, second, last = (
        load_checkpoint(whole / "checkpoints" / f"{name}.pt") for name in ("epoch_0001", "epoch_0002", "last")
    )
    assert [(state["step"], state["epoch"]) for state in (first, second, last)] == [(3, 1), (6, 2), (6, 2)]
    assert same(second, last)
    assert not same(first["model"], last["model"])
    assert Recipe.from_json(last["recipe"]) == small()
    assert last["model"]["queue_position"] == 2 * STEPS * BATCH % 16


def test_the_pictures(whole: Path) -> None:
    for name in ("pictures/epoch_0001.png", "pictures/epoch_0002.png", "curves.png"):
        with Image.open(whole / name) as picture:
            assert min(picture.size) >= 64
            assert len(set(picture.convert("L").getextrema())) == 2  # not one colour


def test_tensorboard_reads_the_run(whole: Path) -> None:
    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    lines = numbers(whole)
    assert set(board.Tags()["scalars"]) == {*lines[0], *TIMING} - {"step", "epoch"}
    for name in ("loss/total", "lr", "valid/P3"):
        assert [event.step for event in board.Scalars(name)] == list(range(2 * STEPS))
        expected = [line[name] for line in lines]
        assert [event.value for event in board.Scalars(name)] == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in board.Images("views")] == [0, STEPS]


@pytest.mark.slow
def test_a_run_without_pictures_and_kept_checkpoints(whole: Path, images: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", images, small(epochs=1, lr=0.05), keep_every=0)
    assert not (tmp_path / "run" / "pictures").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.pt"]
    # another rate: the first step's losses are those of the same weights, the second's are not
    other, one = numbers(tmp_path / "run"), numbers(whole)
    assert other[0]["loss/total"] == one[0]["loss/total"]
    assert other[1]["loss/total"] != one[1]["loss/total"]


# -- what does not change the result


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"workers": 2, "log_every": 4}, {"log_every": 1, "checkpoint_minutes": 0}],
    ids=["workers", "log_every"],
)
def test_the_settings_of_a_run_do_not_change_the_result(
    whole: Path, images: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    go(tmp_path / "run", images, keep_every=1, **settings)
    assert same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_another_seed_changes_the_result(whole: Path, images: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", images, small(seed=6), stop_after=1)
    assert numbers(tmp_path / "run")[0]["loss/total"] != numbers(whole)[0]["loss/total"]


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_as_one_that_was_not(
    whole: Path, stopped: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    again = go(out, images, keep_every=1, log_every=4, stop_after=3, resume=True)  # in the middle of the second epoch
    assert (again.step, again.finished) == (5, False)
    assert go(out, images, keep_every=1, log_every=4, resume=True).finished
    assert same_end(out, whole)
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/total")] == list(range(2 * STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    images: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = signal.getsignal(number)

    def order(batch: int, seed: int, step: int) -> torch.Tensor:
        if step == 1:
            os.kill(os.getpid(), number)
        return torch.arange(batch)

    monkeypatch.setattr(loop, "shuffle_order", order)
    result = go(tmp_path / "run", images)
    assert (result.step, result.finished) == (2, False)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 2
    assert [line["step"] for line in numbers(tmp_path / "run")] == [0, 1]
    output = capsys.readouterr().out
    assert f"stopped after step 2 of 6, saved; go on with --out {tmp_path / 'run'} --resume" in output
    assert signal.getsignal(number) == before


@pytest.mark.slow
def test_what_a_killed_run_wrote_after_its_last_checkpoint_is_written_once(
    whole: Path, stopped: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    (out / "checkpoints" / ".last.pt.x1y2z3.tmp").write_bytes(b"half of a checkpoint")
    lines = (out / "metrics.jsonl").read_text()
    later = json.loads(lines.splitlines()[-1]) | {"step": 2}
    (out / "metrics.jsonl").write_text(lines + json.dumps(later) + "\n" + '{"step": 3, "epo')  # cut off
    go(out, images, keep_every=1, resume=True, stop_after=1)
    assert numbers(out) == numbers(whole)[:3]
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["epoch_0001.pt", "last.pt", "previous.pt"]
    cut = (out / "metrics.jsonl.cut").read_text()
    assert cut == json.dumps(later) + "\n" + '{"step": 3, "epo\n'


@pytest.mark.slow
def test_a_finished_run_does_nothing_when_resumed(
    whole: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    watched = [*out.rglob("*.pt"), out / "metrics.jsonl", out / "config.json"]
    before = [path.read_bytes() for path in watched]
    monkeypatch.setattr(PairDataset, "__getitem__", lambda dataset, key: pytest.fail(f"it reads image {key}"))
    shutil.copytree(images, tmp_path / "moved")  # a data set that moved is the same
    result = go(out, tmp_path / "moved", resume=True)
    assert (result.step, result.finished) == (6, True)
    assert [path.read_bytes() for path in watched] == before
    output = capsys.readouterr().out
    assert f"done: {out / 'checkpoints' / 'last.pt'}, {out / 'curves.png'}, {out / 'pictures'}" in output
    assert "warning" not in output  # the queue is smaller than the data set


@pytest.mark.slow
def test_a_run_killed_while_it_keeps_an_epoch_keeps_it_when_resumed(
    whole: Path, stopped: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)

    class Killed(BaseException):
        """Simulates a kill."""

    write: Callable[..., None] = run_folder.save_checkpoint

    def write_once(path: Path, state: dict[str, Any]) -> None:
        write(path, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_checkpoint", write_once)
        with pytest.raises(Killed):
            go(out, images, keep_every=1, resume=True)
    go(out, images, keep_every=1, resume=True, stop_after=1)
    kept = [load_checkpoint(folder / "checkpoints" / "epoch_0001.pt") for folder in (out, whole)]
    assert same(*kept)


# -- what it does not continue


@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.jsonl"])
def test_a_folder_with_lines_of_another_run_is_refused(name: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(UserError, match=f"contains a {name} that a run would overwrite: name another folder"):
        go(tmp_path, images)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_is_not_overwritten(whole: Path, images: Path) -> None:
    with pytest.raises(UserError, match=r"already contains a run: continue it with --resume"):
        go(whole, images)


def test_there_must_be_a_run_to_resume(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no run \(no config.json\)"):
        go(tmp_path / "run", images, resume=True)


def test_another_recipe_is_not_resumed(whole: Path, images: Path) -> None:
    changed = small(lr=0.05, levels=LEVELS[:1])
    with pytest.raises(UserError) as caught:
        go(whole, images, changed, resume=True)
    assert "--lr 0.03 -> 0.05" in str(caught.value)
    assert f"--levels {LEVELS[0]} {LEVELS[1]} -> {LEVELS[0]}" in str(caught.value)


def test_other_images_are_not_resumed(whole: Path, images: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "000003.jpg").rename(fewer / "renamed.jpg")
    with pytest.raises(
        UserError, match=r"--resume with other images: the run started with 24 \(\w+\), now there are 24"
    ):
        go(whole, fewer, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 32}, "24 images are fewer than one batch of 32: set --batch-size 24, or add images"),
        ({"batch_size": 64, "group_size": 32}, "set --batch-size 24 --group-size 24, or add images"),
    ],
)
def test_fewer_images_than_a_batch(images: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        go(tmp_path / "run", images, small(**changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the weights or BatchNorm.s statistics overflow at step 0 .lr 1e.30."):
        go(tmp_path / "run", images, small(lr=1e30), checkpoint_minutes=0)
    assert not (tmp_path / "run" / "checkpoints").exists()


# -- warnings and bad files


@pytest.mark.slow
def test_a_queue_larger_than_the_data_set_is_warned_of(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path / "large", images, small(queue_size=32), stop_after=1)
    output = capsys.readouterr().out
    assert "warning: the queue of 32 keys is larger than the data set of 24 images" in output
    assert "set --queue-size 16 or less" in output


@pytest.mark.slow
def test_bad_files_are_replaced_and_listed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed, out = tmp_path / "mixed", tmp_path / "run"
    shutil.copytree(images, mixed)
    junk = {mixed / f"{name}.jpg" for name in "abcdef"}
    for number, path in enumerate(sorted(junk)):
        path.write_bytes(b"no image " * number)

    def drawn(epoch: int) -> set[Path]:
        paths = find_images([mixed])
        return {Path(paths[int(i)]) for i in epoch_order(len(paths), 5, epoch)[: STEPS * BATCH]} & junk

    def listed() -> set[Path]:
        lines = (out / "bad_files.txt").read_text().splitlines()
        assert all(len(line.split("\t")) == 2 for line in lines)
        return {Path(line.split("\t")[0]) for line in lines}

    assert drawn(0)
    assert drawn(1) != drawn(0)
    go(out, mixed, max_bad_share=0.5, stop_after=STEPS)
    first = listed()
    assert drawn(0) <= first <= junk
    assert go(out, mixed, max_bad_share=0.5, resume=True).finished
    assert first | drawn(1) <= listed() <= junk
    assert f"{len(listed())} files could not be decoded and were replaced: see {out / 'bad_files.txt'}" in (
        capsys.readouterr().out
    )
    assert all(torch.tensor(list(line.values())).isfinite().all() for line in numbers(out))


def test_bad_files_of_an_earlier_invocation_stay_listed(tmp_path: Path) -> None:
    alone = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    for reasons in ({"a.jpg": "empty"}, {"b.jpg": "no image"}, {}):
        bad = BadFiles(tmp_path, alone, 1.0)
        bad.count(8, reasons)
        bad.write()
    assert (tmp_path / "bad_files.txt").read_text() == "a.jpg\tempty\nb.jpg\tno image\n"


def test_too_many_bad_files_stop_the_run(images: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    for number in range(72):
        (mixed / f"junk{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\d+ of \d+ files read cannot be decoded, more than --max-bad-share 0.1"):
        go(tmp_path / "run", mixed)
    assert "junk" in (tmp_path / "run" / "bad_files.txt").read_text()


# -- other recipes


def variants() -> dict[str, Recipe]:
    c4, moco = resim_c4(), moco_v2()
    return {
        "resim-c4": small(epochs=1, levels=c4.model.levels),
        "moco-v2": small(
            epochs=1, levels=moco.model.levels, flip=moco.views.flip, photometric_order=moco.views.photometric_order
        ),
        "timm": small(epochs=1, backbone="timm/resnet10t"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resim-c4", "moco-v2", "timm"])
def test_other_recipes_run_an_epoch(images: Path, tmp_path: Path, name: str) -> None:
    recipe = variants()[name]
    assert go(tmp_path / "run", images, recipe, picture_every=1).finished
    lines = numbers(tmp_path / "run")
    levels = [level.name for level in recipe.model.levels]
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert [key for key in line if key.startswith("loss/")] == [f"loss/{n}" for n in ["instance", *levels, "total"]]
        assert all(torch.tensor(list(line.values())).isfinite().all() for line in lines)
    assert read_recipe(tmp_path / "run" / "config.json") == recipe
    assert (tmp_path / "run" / "pictures" / "epoch_0001.png").exists()
