"""`resim probe`: all probes on files, its output and probe.json, and one line for each error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resim.cli.main import main
from resim.errors import UserError
from resim.exchange.encoders import load_encoder, load_encoders
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.probes.accuracy import Accuracy
from resim.probes.features import Network
from resim.probes.labels import read_images, read_sets
from resim.probes.suite import ProbeConfig, Score, difference, probe_network
from resim.probes.unlabelled import health_probe
from resim.recipes import quick
from resim.runs.checkpoints import load_checkpoint

TINY = [
    "--recipe", "quick", "--batch-size", "4", "--group-size", "4", "--image-size", "64", "--fpn-width", "16",
    "--levels", "P4:window=32,step=16", "--queue-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu",
    "--precision", "float32", "--picture-every", "0",
]  # fmt: skip
Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("thin_resnets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of eight images, each of one colour."""
    home = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for c, name in enumerate(("blue", "green", "red")):
        (home / name).mkdir()
        for i in range(8):
            coarse = rng.integers(0, 90, (8, 10, 3), dtype=np.uint8)
            coarse[..., 2 - c] += 150
            picture = Image.fromarray(coarse).resize((120, 96), Image.Resampling.BICUBIC)
            picture.save(home / name / f"{i}.png")
    return home


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    assert main(["pretrain", str(folder), *TINY, "--out", str(out)]) == 0
    return out


def refusal(capsys: Captured, *argv: str) -> str:
    capsys.readouterr()
    assert main(["probe", *argv]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line.rstrip("\n")


# -- the command


@pytest.fixture(scope="module")
def measured(run: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The probe.json of the run, of an untrained network and of torchvision's network."""
    out = tmp_path_factory.mktemp("measured")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), out / "other.pth")
    argv = [str(run), "random", str(out / "other.pth"), str(folder), "--out", str(out / "p.json"), "--device", "cpu"]
    assert main(["probe", *argv]) == 0
    return json.loads((out / "p.json").read_text())


@pytest.mark.slow
def test_any_network_is_measured(measured: dict[str, Any]) -> None:
    mine, untrained, other = measured["networks"]
    assert [network["name"] for network in (mine, untrained, other)] == ["mine", "random", "other.pth"]
    assert mine["kind"] == "resim checkpoint (quick, resnet18, step 6)"
    assert untrained["kind"] == "untrained resnet18, seed 0"
    assert list(mine["scores"]) == ["knn", "linear", "correspondence", "health"]
    for network in (mine, untrained):
        assert list(network["scores"]["knn"]) == ["C3", "C4", "C5", "P4", "global"]
        for change in ("photometric", "scale", "both", "warp"):
            assert list(network["scores"]["correspondence"][change]) == ["C3", "C4", "C5", "P4"]
    assert list(other["scores"]["health"]) == ["C3", "C4", "C5"]  # no FPN, no head


@pytest.mark.slow
def test_every_score_has_its_counts_chance_and_interval(measured: dict[str, Any]) -> None:
    assert measured["train"]["images"] == 18
    assert measured["test"]["images"] == 6
    assert measured["train"]["classes"] == measured["test"]["classes"] == 3
    assert measured["settings"]["image_size"] == 64
    assert "versions" in measured
    for network in measured["networks"]:
        for score in network["scores"]["knn"].values():
            assert (score["n"], score["n_train"], score["k"]) == (6, 18, 18)
            assert score["interval"][0] <= score["top1"] <= score["interval"][1]
            assert score["chance"] == pytest.approx(1 / 3)
        assert network["scores"]["linear"]["C5"]["converged"]
        for levels in network["scores"]["correspondence"].values():
            for score in levels.values():
                assert score["images"] == 6
                assert score["windows"] > 0
                assert score["interval"][0] <= score["accuracy"] <= score["interval"][1]
        for score in network["scores"]["health"].values():
            assert score["n"] == 6
            assert 1 <= score["rank"] <= score["directions"] == 6


def test_untrained_features_separate_colours(measured: dict[str, Any]) -> None:
    assert measured["networks"][1]["scores"]["linear"]["C5"]["top1"] == 1.0


def test_differences_are_those_of_the_scores(measured: dict[str, Any]) -> None:
    mine, untrained, other = measured["networks"]
    assert list(mine["minus"]) == ["random"]
    assert list(other["minus"]) == ["mine", "random"]
    for name in ("knn/P4", "correspondence/both/P4"):
        assert name in untrained["minus"]["mine"]
        assert name not in other["minus"]["mine"]
    stored = untrained["minus"]["mine"]["correspondence/both/C4"]
    scores = [network["scores"]["correspondence"]["both"]["C4"]["accuracy"] for network in (untrained, mine)]
    assert stored["difference"] == pytest.approx(scores[0] - scores[1])
    assert stored["interval"][0] <= stored["difference"] <= stored["interval"][1]


@pytest.mark.slow
def test_the_output_of_the_command(capsys: Captured, run: Path, folder: Path, tmp_path: Path) -> None:
    argv = [str(run), "random", str(folder), "--probes", "knn", "correspondence", "--k", "5", "--pairs", "3"]
    assert main(["probe", *argv, "--out", str(tmp_path / "p.json"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "views of 64 px, test: 6 images of 3 classes (class folders)" in out
    assert "kNN, k = 5" in out
    assert "of 3 images" in out
    assert "Each network minus mine, points" in out
    where, *verdict = out.rstrip().splitlines()[-4:]
    assert where == f"wrote {tmp_path / 'p.json'}"
    assert [line[:3] for line in verdict] == ["1. ", "2. ", "3. "]
    assert verdict[0].startswith("1. Better than untrained (random)? mine: ")
    assert json.loads((tmp_path / "p.json").read_text())["verdict"] == verdict
    assert "Health" not in out
    assert "linear" not in out


@pytest.mark.slow
def test_without_classes_there_are_correspondence_and_health(capsys: Captured, run: Path, folder: Path) -> None:
    assert main(["probe", str(run), str(folder), "--unlabelled", "--pairs", "4", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "the images have no classes: kNN and linear probes are left out" in out
    assert "Region correspondence" in out
    assert "Health" in out
    assert "Classification" not in out
    written = json.loads((run / "probe.json").read_text())  # by default in the run's folder
    assert list(written["networks"][0]["scores"]) == ["correspondence", "health"]


@pytest.mark.slow
def test_the_published_linear_probe(capsys: Captured, run: Path, folder: Path, tmp_path: Path) -> None:
    argv = ["--probes", "linear-sgd", "--sgd-epochs", "2", "--sgd-steps", "1", "--sgd-lr", "1", "--device", "cpu"]
    assert main(["probe", str(run), str(folder), *argv, "--out", str(tmp_path / "p.json")]) == 0
    assert "linear, SGD" in capsys.readouterr().out
    score = json.loads((tmp_path / "p.json").read_text())["networks"][0]["scores"]["linear-sgd"]["C5"]
    assert (score["epochs"], score["lr"], score["n"], score["n_train"]) == (2, 1.0, 6, 18)


def test_a_k_above_the_number_of_images_is_limited_and_reported(capsys: Captured, run: Path, folder: Path) -> None:
    assert main(["probe", str(run), str(folder), "--probes", "knn", "--device", "cpu"]) == 0
    assert "k is 18, the number of training images, for --k 200" in capsys.readouterr().out


@pytest.mark.slow
def test_options_that_cannot_work_are_one_line(capsys: Captured, run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    mine, data, out = str(run), str(folder), str(tmp_path / "p.json")
    for argv, message in (
        ([], "NETWORK and DATA are needed"),
        ([mine], "NETWORK and DATA are needed"),
        ([mine, str(tmp_path / "gone")], f"{tmp_path / 'gone'}: there is no such folder or file"),
        ([mine, str(tmp_path / "empty")], "no images found"),
        ([str(tmp_path / "gone.pt"), data], f"{tmp_path / 'gone.pt'}: cannot be read"),
        ([str(tmp_path / "empty"), data], str(tmp_path / "empty")),
        (["random:none", data], "random:none: no recipe 'none'"),
        ([mine, data, "--out", "p.txt"], "--out p.txt: must end in .json"),
        ([mine, data, "--out", str(tmp_path / "folder.json")], "folder.json: is a folder"),
        ([mine, data, "--out", str(tmp_path / "file" / "p.json")], "file cannot be written to"),
        ([mine, data, "--image-size", "99999"], "image-size 99999: must be at most 4096 px"),
        ([mine, data, "--k", "0"], "k 0: must be at least 1"),
        ([mine, data, "--temperature", "0"], "temperature 0.0: must be above 0"),
        ([mine, data, "--image-size", "32"], "image-size 32: must be at least 64 px"),
        ([mine, data, "--probes", "knm"], "--probes"),
        ([mine, data, "--sgd-lr", "0"], "lr 0"),
        ([mine, data, "--linear-level", "P7"], f"--linear-level P7: {run.name} has the levels C3, C4, C5, P4, global"),
        ([mine, data, "--linear-level", "C4", "--probes", "knn"], "linear-level C4: linear is not among the probes"),
        (
            ["random", "random:moco-v2", data, "--linear-level", "P4"],
            "random:moco-v2 has the levels C3, C4, C5, global",
        ),
        ([mine, data, "--test", str(tmp_path / "gone")], "there is no such folder or file"),
    ):
        assert message in refusal(capsys, *argv, *([] if "--out" in argv or len(argv) < 2 else ["--out", out]))
    assert not (tmp_path / "p.json").exists()


# -- encoders


def test_the_encoder_of_a_run_is_its_query_encoder(run: Path) -> None:
    loaded = load_encoder(run)
    stored = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    assert loaded.has_head
    assert not loaded.encoder.training
    for name, value in loaded.encoder.state_dict().items():
        assert value.equal(stored[f"query.{name}"]), name


@pytest.mark.slow
def test_random_has_the_initial_weights_of_the_run(run: Path) -> None:
    state = torch.random.get_rng_state()
    trained, untrained = load_encoders([str(run), "random"])
    assert trained.recipe is not None
    started = ReSim(trained.recipe.model, seed=trained.recipe.optim.seed).query.state_dict()
    assert all(value.equal(started[name]) for name, value in untrained.encoder.state_dict().items())
    assert torch.random.get_rng_state().equal(state)
    (other,) = load_encoders(["random:quick"])
    assert other.config == quick().model


@pytest.mark.slow
def test_names_of_networks_are_unique(run: Path) -> None:
    last = str(run / "checkpoints" / "last.pt")
    assert [item.name for item in load_encoders([str(run)])] == ["mine"]
    names = [item.name for item in load_encoders([str(run), last, "random", "random"])]
    assert len(set(names)) == 4


def test_no_network_is_an_error() -> None:
    with pytest.raises(UserError, match="no network: name at least one"):
        load_encoders([])


# -- parts


def small() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(ModelConfig(backbone="resnet18", levels=()))
    return Network(name="small", encoder=encoder.eval())


@pytest.mark.slow
def test_alignment_is_of_two_views_and_all_else_of_the_centre(folder: Path) -> None:
    health = health_probe(small(), read_images(folder), size=64)
    again = health_probe(small(), read_images(folder), size=64, seed=1)
    for level, value in health.items():
        assert value.n == 24
        assert value.alignment is not None
        assert value.alignment > 0
        assert (value.rank, value.uniformity) == (again[level].rank, again[level].uniformity)
        assert value.alignment != again[level].alignment


def test_scores_on_different_images_have_no_difference() -> None:
    def score(n: int) -> Score:
        return Score(value=Accuracy(np.ones(n, dtype=bool), np.ones(n, dtype=bool), 0.5), details={})

    assert difference(score(3), score(3)) == (0, 0, 0)
    assert difference(score(3), score(4)) is None


def test_features_that_separate_classes_score_1(folder: Path) -> None:
    train, test = read_sets(folder)
    config = ProbeConfig(image_size=64, probes=("linear",), linear_level="C3")
    ((path, score),) = probe_network(small(), train, test, config).items()
    assert path == ("linear", "C3")
    assert isinstance(score.value, Accuracy)
    assert score.value.share == 1.0


def test_probes_of_classes_alone_need_classes(capsys: Captured, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    message = refusal(capsys, "random:quick", str(tmp_path), "--probes", "knn")
    assert f"--probes knn: the images of {tmp_path} have no classes: its images lie in no class folders" in message
    message = refusal(capsys, "random:quick", str(tmp_path), "--probes", "knn", "--unlabelled")
    assert "--unlabelled with --probes knn" in message
    message = refusal(capsys, "random:quick", str(tmp_path), "--split", "a", "b")
    assert "--split: is for --probes segmentation retrieval" in message
