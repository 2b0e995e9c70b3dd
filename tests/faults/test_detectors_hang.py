"""A file system that hangs in a fine-tuning, while it trains or evaluates, and images that become pipes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resim.exit_codes import STOPPED
from resim.scenes.scenes import write_scenes

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
STEPS, IMAGES = 6, 8
END_SECONDS = 30  # torchrun kills what needs longer; 10 s are waited for the batch, 6 s for processes to end
DRIVER = """
import os, sys, time
from pathlib import Path
from resim.cli.main import main
from resim.detection import samples
from resim.views import loader
from thin_resnets import ThinResNet, resnets_of

hang, mark = sys.argv[1], Path(sys.argv[2])
open_photo = samples.Photo


def hanging(path, **settings):
    while hang != "never" and mark.exists() and hang in str(path) and int(Path(path).stem) % 2:
        if os.environ.get("RANK", "1") != "1":
            break  # of two processes, the second one's file system hangs
        time.sleep(0.05)
    return open_photo(path, **settings)


samples.Photo = hanging
loader.Loader.read.__defaults__ = ((), 0.2)  # seconds after which a file is named
with resnets_of(ThinResNet):
    sys.exit(main(sys.argv[3:]))
"""
RECIPE = (
    "--recipe quick --backbone resnet18 --fpn-width 16 --rpn-regions 16 --box-regions 16 --proposals-train 30 "
    "--proposals-test 20 --min-sizes 64 --max-size 128 --test-size 64 --batch-size 2 --drops 4 --warmup-steps 2 "
    f"--steps {STEPS} --eval-every 3 --device cpu --precision float32 --log-every 1"
).split()


class Tuning:
    """`resim detect train`, on one process or two."""

    def __init__(self, data: Path, out: Path, hang: str, mark: Path, processes: int, *options: str) -> None:
        val = data.parent.parent / "val" / "instances.json"
        words = ["detect", "train", str(data), "--val", str(val), "--out", str(out), *RECIPE, *options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
        if processes > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
            environment |= {"LOCAL_WORLD_SIZE": str(processes)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, hang, str(mark), *words],
                env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]

    def wait_until_it_hangs(self) -> str:
        """The line that names the file, of the last process."""
        line = ""
        while "has been read for" not in line:
            assert self.processes[-1].stderr is not None
            line = self.processes[-1].stderr.readline()
            assert line, "it ended without a word about the file that hangs"
        return line

    def end(self, seconds: float = 300) -> tuple[list[int], list[str], list[str]]:
        """Exit codes, output and errors of all processes."""
        outputs = [process.communicate(timeout=seconds) for process in self.processes]
        return [process.returncode for process in self.processes], [o for o, _ in outputs], [e for _, e in outputs]

    def kill(self) -> None:
        """End what is left."""
        for process in self.processes:
            process.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file to train on; next to its folder is one to evaluate on."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "val", IMAGES, seed=3, width=96, height=72)
    return write_scenes(folder / "train", IMAGES, seed=2, width=96, height=72)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of processes, the folder of a run that nothing stopped."""
    runs = {}
    for processes in (1, 2):
        runs[processes] = tmp_path_factory.mktemp("whole") / "run"
        tuning = Tuning(data, runs[processes], "never", data, processes, "--workers", "0")
        codes, _, errors = tuning.end()
        assert codes == [0] * processes, errors
    return runs


def is_end_of(out: Path, whole: Path) -> bool:
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (out, whole)]
    scores = [(run / "scores.jsonl").read_text() for run in (out, whole)]
    weights = [state["model"] for state in states]
    return scores[0] == scores[1] and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("part", "processes", "workers", "number"),
    [
        ("train", 2, 1, signal.SIGTERM),
        ("val", 1, 1, signal.SIGINT),
        pytest.param("train", 1, 2, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("train", 1, 0, signal.SIGINT, marks=pytest.mark.long),
        pytest.param("val", 2, 0, signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_ends_a_fine_tuning_whose_loader_hangs(
    data: Path, whole: dict[int, Path], tmp_path: Path, part: str, processes: int, workers: int, number: int
) -> None:
    out, mark = tmp_path / "run", tmp_path / "hangs"
    options = ("--workers", str(workers))
    if part == "train":  # from the third step on
        Tuning(data, out, "never", mark, processes, *options, "--stop-after", "2").end()
    mark.touch()
    tuning = Tuning(data, out, f"/{part}/", mark, processes, *options, "--resume", "auto")
    try:
        line = tuning.wait_until_it_hangs()
        assert Path(line.partition(": ")[0]).parent.parent.name == part
        for process in tuning.processes:
            process.send_signal(number)
        codes, outputs, errors = tuning.end(END_SECONDS)
    finally:
        tuning.kill()
    assert codes == [STOPPED] * processes, errors
    step = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert f"stopped after step {step} of {STEPS}, saved; go on with --out {out} --resume" in outputs[0]
    assert 2 <= step <= 3
    assert (out / "scores.jsonl").exists() is False  # the evaluation after step 3 is still to come
    codes, _, errors = Tuning(data, out, "never", mark, processes, *options, "--resume").end()
    assert codes == [0] * processes, errors
    assert is_end_of(out, whole[processes])


def test_a_signal_ends_an_evaluation_whose_loader_hangs(data: Path, whole: dict[int, Path], tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    mark.touch()
    val = data.parent.parent / "val" / "instances.json"
    words = ["detect", "eval", str(whole[1]), str(val), "--out", str(tmp_path / "out"), "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "/val/", str(mark), *words],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "has been read for" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_SECONDS)
    finally:
        process.kill()
    assert process.returncode == STOPPED
    line = "resim detect: stopped by SIGTERM: no scores are written: the same command starts from the beginning"
    assert errors.splitlines()[-1] == line
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def test_images_that_become_pipes_are_bad_images(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train"
    write_scenes(folder, IMAGES, seed=2, width=96, height=72)
    (tmp_path / "data" / "val").symlink_to(data.parent.parent / "val")
    labels, out = folder / "instances.json", tmp_path / "run"
    tuning = Tuning(labels, out, "never", tmp_path / "mark", 1, "--workers", "1", "--stop-after", "1")
    assert tuning.end()[0] == [0]
    driver = DRIVER.replace(
        "def hanging(", "def pipe(path):\n    os.unlink(path)\n    os.mkfifo(path)\n\n\ndef hanging("
    )
    driver = driver.replace(
        "    return open_photo(path", "    if path.endswith('3.jpg'):\n        pipe(path)\n    return open_photo(path"
    )
    words = ["detect", "train", str(labels), "--val", str(data.parent.parent / "val" / "instances.json")]
    words += ["--out", str(out), "--resume", "--workers", "1", "--max-bad-share", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", driver, "/train/", str(tmp_path / "mark"), *words],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "000003.jpg\ta named pipe, not a file\n" in (out / "bad_files.txt").read_text()
    assert json.loads((out / "scores.jsonl").read_text().splitlines()[-1])["step"] == STEPS
