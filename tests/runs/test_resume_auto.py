"""One command starts a run and continues it: `--resume auto`, what it continues and what it never overwrites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from resim.cli.main import main
from resim.cli.options import with_resume_values
from resim.datasets.coco import read_coco
from resim.detection.config import DetectRun
from resim.detection.train import train_detector
from resim.errors import UserError
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import RunConfig, read_run_settings
from resim.runs.folder import should_resume
from resim.runs.log import read_metrics
from tiny_detectors import tiny_recipe, tiny_run, write_things

Captured = pytest.CaptureFixture[str]
TINY = [
    "--recipe", "quick", "--levels", "P4:window=32,step=16", "--image-size", "64", "--fpn-width", "8", "--dim", "8",
    "--group-size", "4", "--batch-size", "4", "--queue-size", "4", "--epochs", "2", "--workers", "0", "--device", "cpu",
    "--precision", "float32", "--picture-every", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four images: an epoch is one step."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        pixels = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def begun(images: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `--resume auto` started and that was stopped after its first step."""
    out = tmp_path_factory.mktemp("runs") / "begun"
    assert main(["pretrain", images, *TINY, "--out", str(out), "--resume", "auto", "--stop-after", "1"]) == 0
    return out


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def auto(images: str, out: Path, *words: str) -> int:
    return main(["pretrain", images, *TINY, "--out", str(out), "--resume", "auto", *words])


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# -- the option


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["DIR", "--resume"], ["DIR", "--resume", "yes"]),
        (["--resume", "DIR", "--out", "x"], ["--resume", "yes", "DIR", "--out", "x"]),
        (["--resume", "--out", "x"], ["--resume", "yes", "--out", "x"]),
        (["--resume", "auto", "DIR"], ["--resume", "auto", "DIR"]),
        (["--resume=auto"], ["--resume=auto"]),
        (["--resume", "no"], ["--resume", "no"]),
        ([], []),
    ],
)
def test_a_bare_resume_is_yes(words: list[str], expected: list[str]) -> None:
    assert with_resume_values(words) == expected


@pytest.mark.parametrize("kind", [RunConfig, DetectRun])
def test_python_and_old_files_say_true_and_false(kind: type[RunConfig] | type[DetectRun], tmp_path: Path) -> None:
    settled = {value: kind(resume=value).resume for value in (True, False, "yes", "no", "auto")}  # type: ignore[arg-type]
    assert settled == {True: True, False: False, "yes": True, "no": False, "auto": "auto"}
    with pytest.raises(ValueError, match="resume 'maybe': must be true or false or one of no, yes, auto"):
        kind(resume="maybe")  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(json.dumps({"run": {"resume": True, "log_every": 3}}))
    assert read_run_settings(tmp_path / "config.json") == RunConfig(log_every=3)


@pytest.mark.parametrize("verb", ["pretrain", "detect train"])
def test_invalid_values_are_refused(verb: str, images: str, capsys: Captured) -> None:
    for words, message in (
        (["--resume", "auto"], "--resume needs --out"),
        (["--resume=always"], "--resume always: must be one of no, yes, auto"),
    ):
        assert main([*verb.split(), images, *words]) == 2
        assert message in capsys.readouterr().err


def test_auto_needs_a_folder() -> None:
    with pytest.raises(UserError, match="--resume auto needs --out"):
        should_resume(None, "auto")
    assert should_resume(None, True)
    assert not should_resume(None, False)


# -- start and continue


@pytest.mark.slow
def test_without_a_run_it_starts_one(begun: Path, images: str, tmp_path: Path) -> None:
    assert load_checkpoint(begun / "checkpoints" / "last.pt")["step"] == 1
    assert not (begun / "resumed.jsonl").exists()
    (tmp_path / "slurm-17.out").write_text("a scheduler's log\n")
    assert auto(images, tmp_path, "--stop-after", "1") == 0
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0]
    assert (tmp_path / "slurm-17.out").exists()


@pytest.mark.slow
def test_the_same_command_continues_to_the_end_and_then_does_nothing(run: Path, images: str, capsys: Captured) -> None:
    assert auto(images, run) == 0
    assert "resumed after step 1" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1]
    assert len((run / "resumed.jsonl").read_text().splitlines()) == 1
    last = (run / "checkpoints" / "last.pt").read_bytes()
    assert auto(images, run) == 0
    assert "resumed after step 2, the last one: nothing is left to do" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.pt").read_bytes() == last
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1]


@pytest.mark.slow
def test_without_a_recipe_it_takes_that_of_the_run(run: Path, images: str, capsys: Captured) -> None:
    words = ["--out", str(run), "--resume", "auto", "--workers", "0", "--device", "cpu", "--precision", "float32"]
    assert main(["pretrain", images, *words]) == 0
    assert "quick: resnet18" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_starts_from_the_beginning(
    run: Path, images: str, capsys: Captured
) -> None:
    (run / "checkpoints" / "last.pt").unlink()
    lines = (run / "metrics.jsonl").read_bytes()
    assert auto(images, run, "--stop-after", "1") == 0
    output = capsys.readouterr().out
    assert (
        f"{run / 'checkpoints'} has no checkpoint yet; starts from the beginning, step 0; 1 step in metrics.jsonl will "
        "be repeated"
    ) in output
    assert f"metrics.jsonl: 1 line after step 0 moved to {run / 'metrics.jsonl.cut'}" in output
    assert (run / "metrics.jsonl.cut").read_bytes() == lines
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [0]


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_is_refused(run: Path, images: str, capsys: Captured) -> None:
    assert auto(images, run) == 0  # two epochs of one step
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    before = content(run)
    assert auto(images, run) == 2
    assert (
        f"{run / 'checkpoints'} has no checkpoint, though {run / 'metrics.jsonl'} has steps up to 1 and one was "
        "written after step 1 at the latest: restore last.pt, or name another --out"
    ) in capsys.readouterr().err
    assert content(run) == before


@pytest.mark.slow
def test_a_kept_epoch_alone_is_continued(run: Path, images: str, capsys: Captured) -> None:
    folder = run / "checkpoints"
    saved = (folder / "last.pt").read_bytes()
    (folder / "last.pt").rename(folder / "epoch_0001.pt")
    assert auto(images, run) == 0
    assert (
        "checkpoints/last.pt is missing; resumes from checkpoints/epoch_0001.pt, step 1 of 2" in capsys.readouterr().out
    )
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1]
    assert (folder / "epoch_0001.pt").read_bytes() == (folder / "previous.pt").read_bytes() == saved
    assert load_checkpoint(folder / "last.pt")["step"] == 2


# -- what it does not overwrite


def test_a_run_of_another_recipe(run: Path, images: str, capsys: Captured) -> None:
    before = content(run)
    assert auto(images, run, "--lr", "0.5") == 2
    error = capsys.readouterr().err
    assert "--resume with another recipe than the run's: --lr 0.03 -> 0.5; leave these options out to continue" in error
    assert error.endswith("or name another --out\n")
    assert auto(images, run, "--epochs", "4") == 2
    error = capsys.readouterr().err
    assert f"start a run with --start-from {run} --start-epoch 2 --epochs 4 and another --out" in error
    assert content(run) == before


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (
            "config.json",
            "contains checkpoints/last.pt but no config.json, so the run is incomplete and is not",
        ),
        ("checkpoints", None),
    ],
)
def test_parts_of_a_run_are_not_overwritten(
    run: Path, images: str, capsys: Captured, gone: str, message: str | None
) -> None:
    (run / "config.json").unlink()
    if gone == "checkpoints":
        shutil.rmtree(run / "checkpoints")
    before = content(run)
    assert auto(images, run) == 2
    assert (message or "contains metrics.jsonl but no config.json") in capsys.readouterr().err
    assert content(run) == before


def test_damaged_files_are_not_overwritten(run: Path, images: str, capsys: Captured) -> None:
    last = run / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    last.write_bytes(whole[:1000])
    for name in ("last.pt", "epoch_0001.pt"):
        last = last.rename(last.with_name(name))
        before = content(run)
        assert auto(images, run) == 2
        error = capsys.readouterr().err
        assert f"no checkpoint in {run / 'checkpoints'} is whole: {name} (1000 bytes; " in error
        assert error.endswith("restore one of them, or name another --out\n")
        assert content(run) == before
    (run / "config.json").write_text("{")
    assert auto(images, run) == 2
    assert "config.json: contains no recipe" in capsys.readouterr().err


def test_kept_checkpoints_alone_are_a_run_too(run: Path, images: str, capsys: Captured) -> None:
    (run / "config.json").unlink()
    (run / "checkpoints" / "last.pt").rename(run / "checkpoints" / "epoch_0001.pt")
    assert main(["pretrain", images, *TINY, "--out", str(run)]) == 2
    assert "already contains a run" in capsys.readouterr().err


# -- detectors


@pytest.mark.slow
def test_a_detector_begins_and_should_resume(tmp_path: Path, capsys: Captured) -> None:
    data, out = read_coco(write_things(tmp_path / "data", 2)), tmp_path / "run"
    recipe = tiny_recipe(steps=2)
    results = [
        train_detector(recipe, tiny_run(out, resume="auto", stop_after=1), data, None, init="random:quick")
        for _ in range(3)
    ]
    assert [(result.step, result.finished) for result in results] == [(1, False), (2, True), (2, True)]
    assert "resumed after step 2, the last one: nothing is left to do" in capsys.readouterr().out
    assert len((out / "resumed.jsonl").read_text().splitlines()) == 2
    (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"contains checkpoints/last.pt but no config.json"):
        train_detector(recipe, tiny_run(out, resume="auto"), data, None, init="random:quick")
