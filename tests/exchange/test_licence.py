"""A licence is taken from what a file proves or its user states; otherwise it is unknown, and that is reported."""

from __future__ import annotations

import functools
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from exchange_files import SMALL, own_checkpoint, published, published_name, small, trained
from resim.cli.main import main
from resim.errors import UserError
from resim.exchange.export import export
from resim.exchange.licence import RESIM_FILES
from resim.exchange.names import to_detectron2
from resim.exchange.weights import read_weights

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("thin_resnets")


@functools.cache
def resnet() -> dict[str, Tensor]:
    """The state of a ResNet-18."""
    return torchvision.models.resnet18(weights=None).state_dict()


def as_detectron2_converts(name: str) -> str:
    """Names as Detectron2's converter and MoCo's write them: `fc` becomes `stem.fc`."""
    name = name if "layer" in name else f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def converted(path: Path, author: str, *, two_layers: bool) -> Path:
    """A ResNet-18 as a Detectron2 backbone, with `stem.fc` of one layer or of two."""
    state = {as_detectron2_converts(name): value.numpy() for name, value in resnet().items()}
    if two_layers:
        state = {name: value for name, value in state.items() if not name.startswith("stem.fc.")}
        state |= {"stem.fc.0.weight": torch.zeros(128, 128).numpy(), "stem.fc.0.bias": torch.zeros(128).numpy()}
        state |= {"stem.fc.2.weight": torch.zeros(128, 128).numpy(), "stem.fc.2.bias": torch.zeros(128).numpy()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": author, "matching_heuristics": True}))
    return path


def resim_backbone(path: Path, *, norm: bool = False, head: bool = True) -> Path:
    """A ReSim-FPN backbone as its authors convert it for Detectron2."""
    arrays = {}
    for name, value in trained(small(norm=norm)).query.state_dict().items():
        theirs = f"backbone.{published_name(name)}" if name.startswith("fpn.") else to_detectron2(name)
        if name.startswith("head."):
            theirs = f"stem.{published_name(name)}" if head else None
        if theirs is not None:
            arrays[theirs] = value.numpy()
    torch.save({"model": arrays, "__author__": "MOCO", "matching_heuristics": True}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("two_layers", [False, True])
@pytest.mark.parametrize("author", ["torchvision", "someone"])
def test_a_head_in_the_stem_alone_proves_nothing(tmp_path: Path, author: str, two_layers: bool) -> None:
    weights = read_weights(converted(tmp_path / "r18.pkl", author, two_layers=two_layers))
    assert (weights.licence, weights.origin) == (None, author)
    assert weights.licence_source == "nothing in the file states or proves one"
    done = export(weights.path, "torchvision", tmp_path / "out.pth", licence="BSD-3-Clause")
    assert done.licence == "BSD-3-Clause"
    again = read_weights(tmp_path / "out.pth")
    assert (again.licence, again.licence_source) == ("BSD-3-Clause", "the file's metadata (the user's --licence)")


@pytest.mark.slow
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_resims_detectron2_backbones_are_recognised_by_their_fpn(tmp_path: Path, norm: bool, head: bool) -> None:
    weights = read_weights(resim_backbone(tmp_path / "w.pth", norm=norm, head=head))
    if not norm and not head:  # what any converter may write
        assert weights.licence is None
        return
    proof = "backbone.fpn_lateral5.0.weight" if norm else "backbone.fpn_lateral5.weight"
    assert weights.licence == "CC-BY-NC-4.0"
    assert weights.licence_source == f"a name that only files of the authors' ReSim program have, {proof}"
    with pytest.raises(
        UserError, match=r"these weights are CC-BY-NC-4.0, which an export cannot change \(taken from a"
    ):
        export(weights.path, "torchvision", tmp_path / "out.pth", licence="MIT")


@pytest.mark.slow
def test_our_own_export_to_detectron2_is_not_taken_for_resims(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", small(norm=True))
    path = export(tmp_path / "last.pt", "detectron2", tmp_path / "backbone.pth").paths[0]
    content: Any = torch.load(path, weights_only=True)
    torch.save({"model": content["model"]}, path)  # without the metadata
    assert read_weights(path).licence is None


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fc.0", "fc"])
def test_mocos_names_do_not_prove_a_licence(tmp_path: Path, head: str) -> None:
    content = published(trained(small(levels=())))
    if head == "fc":  # MoCo v1
        state = {name: value for name, value in content["state_dict"].items() if ".fc." not in name}
        heads = {f"module.encoder_{e}.fc.weight": torch.zeros(128, 128) for e in "qk"}
        content["state_dict"] = state | heads
    torch.save(content, tmp_path / "moco.pth.tar")
    weights = read_weights(tmp_path / "moco.pth.tar")
    assert weights.licence is None
    assert "MIT since January 2023, the page of its weights said CC-BY-NC 4.0" in weights.licence_source
    assert "ReSim-C4" in weights.licence_source
    signed = read_weights(converted(tmp_path / "moco.pkl", "MOCO", two_layers=True))
    assert signed.licence is None
    assert "MoCo's converter signs any file" in signed.licence_source


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resim_c4_200ep.pth.tar", "resim_c4_backbone_200ep.pth.tar"])
def test_resim_c4_is_recognised_by_the_name_of_its_file_only(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if "backbone" in name:
        converted(path, "MOCO", two_layers=True)
    else:
        torch.save(published(trained(small(levels=()))), path)
    weights = read_weights(path)
    assert weights.licence == "CC-BY-NC-4.0"
    assert weights.licence_source.endswith(name)
    path.rename(tmp_path / "other.pth.tar")
    assert read_weights(tmp_path / "other.pth.tar").licence is None
    torch.save(resnet(), path)  # the name alone does not make a ResNet ReSim's
    assert read_weights(path).licence is None


@pytest.mark.slow
def test_what_a_file_states_is_kept_and_cannot_be_changed(tmp_path: Path) -> None:
    save_file(resnet(), tmp_path / "model.safetensors", metadata={"license": "apache-2.0"})
    weights = read_weights(tmp_path / "model.safetensors")
    assert (weights.licence, weights.licence_source) == ("apache-2.0", "the file's metadata")
    with pytest.raises(UserError, match=r"these weights are apache-2\.0"):
        export(tmp_path / "model.safetensors", "torchvision", tmp_path / "a.pth", licence="MIT")
    assert export(weights.path, "torchvision", tmp_path / "a.pth", licence="Apache-2.0").licence == "apache-2.0"


def run(capsys: Captured, *words: str) -> list[str]:
    capsys.readouterr()
    assert main(words) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("licence: ")]


@pytest.mark.slow
def test_the_commands_print_the_evidence_for_a_licence(capsys: Captured, tmp_path: Path) -> None:
    torch.save(published(trained(SMALL)), tmp_path / "resim.pth")
    (line,) = run(capsys, "import", str(tmp_path / "resim.pth"))
    proof = "a name that only files of the authors' ReSim program have, module.encoder_q.fpn_lateral"
    assert line.startswith("licence: CC-BY-NC 4.0 (as published): not for commercial use")
    assert f"; taken from {proof}" in line

    torch.save(resnet(), tmp_path / "resnet.pth")
    words = ("import", str(tmp_path / "resnet.pth"), "--recipe", "quick", "--out", str(tmp_path / "start.pt"))
    (line,) = run(capsys, *words)
    assert line.startswith("licence: unknown, nothing in the file states or proves one; --licence")
    (line,) = run(capsys, *words, "--licence", "BSD-3-Clause")
    assert line == "licence: BSD-3-Clause; taken from the user's --licence"
    (line,) = run(capsys, "import", str(tmp_path / "start.pt"))
    assert line.startswith("licence: BSD-3-Clause; taken from the checkpoint's record of the weights")

    own_checkpoint(tmp_path / "last.pt", SMALL)
    out = str(tmp_path / "out.safetensors")
    (line,) = run(capsys, "export", str(tmp_path / "last.pt"), "--to", "safetensors", "--out", out)
    assert line.startswith("licence: unknown, a run of resim has the licence that its owner states; --licence")
    assert "| licence taken from | nowhere: a run of resim" in (tmp_path / "out.md").read_text()
    (line,) = run(capsys, "export", str(tmp_path / "last.pt"), "--to", "safetensors", "--out", out, "--licence", "MIT")
    assert line == "licence: MIT; taken from the user's --licence"
    assert "| licence taken from | the user's --licence |" in (tmp_path / "out.md").read_text()


def test_the_readme_names_the_published_files() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\S+\.pth\.tar)`", text)) == RESIM_FILES
