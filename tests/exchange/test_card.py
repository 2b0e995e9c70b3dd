"""The licence of the weights is in each export, and the model card describes the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from exchange_files import ENDING, SMALL, own_checkpoint, published, trained
from resim.errors import UserError
from resim.exchange.export import export
from resim.exchange.targets import Target
from resim.exchange.weights import read_weights
from resim.runs.config import Recipe


@pytest.mark.slow
@pytest.mark.parametrize("to", list(ENDING))
def test_the_licence_of_published_weights_is_in_every_export(tmp_path: Path, to: Target) -> None:
    torch.save(published(trained(SMALL)), tmp_path / "published.pth")
    path = export(tmp_path / "published.pth", to, tmp_path / f"out{ENDING[to]}").paths[0]
    origin = "published ReSim-FPN checkpoint (resnet18 with an FPN, epoch 200)"
    weights = read_weights(path)
    assert (weights.licence, weights.origin) == ("CC-BY-NC-4.0", origin)
    with pytest.raises(UserError, match=r"--licence MIT: these weights are CC-BY-NC-4\.0, which an export cannot"):
        export(path, to, tmp_path / f"other{ENDING[to]}", licence="MIT")


@pytest.mark.slow
def test_the_licence_of_our_own_weights_is_ours_to_state(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    assert export(tmp_path / "last.pt", "torchvision", tmp_path / "none.pth").licence is None
    done = export(tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors", licence="Apache-2.0")
    assert read_weights(done.paths[0]).licence == "Apache-2.0"
    with safe_open(done.paths[0], framework="pt") as file:
        assert file.metadata()["licence"] == "Apache-2.0"


@pytest.mark.slow
def test_the_card_describes_the_weights(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    knn = {"accuracy": 0.123, "n": 1500}
    path, kind = str(tmp_path / "last.pt"), read_weights(tmp_path / "last.pt").kind
    earlier = {"path": path, "kind": kind.replace("step ", "step 1"), "scores": "another, of an earlier step"}
    networks = [{"path": path, "kind": kind, "scores": knn}, {"path": "/x", "scores": "another"}, earlier]
    probed = {"networks": networks, "test": {"source": "/secret/places", "images": 1500}, "command": ["/secret/resim"]}
    (tmp_path / "probe.json").write_text(json.dumps(probed))
    export(tmp_path / "last.pt", "hub", tmp_path / "hub", licence="Apache-2.0")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    card = (tmp_path / "hub" / "README.md").read_text()
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: apache-2.0" in header.splitlines()
    for fact in (
        "# quick, resnet18", "1234 images (holidays; fingerprint abcdef)", "3 of 10", '"accuracy": 0.123', '"n": 1500',
        "| licence | Apache-2.0 |", '"source": "places"', "xiao2021region", '"queue_size": 8',
    ):  # fmt: skip
        assert fact in body, fact
    for elsewhere in ("/photographs", str(tmp_path), "/secret", "another"):  # other networks, and where things lie
        assert elsewhere not in card
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert Recipe.from_json(config["recipe"]) == SMALL
    assert "/photographs" not in str(read_weights(tmp_path / "hub").data)
    (tmp_path / "probe.json").unlink()
    export(tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors")
    plain = (tmp_path / "w.md").read_text()
    assert "There were none when this card was written." in plain
    assert "license:" not in plain
    assert "not stated: to be stated by the publisher of these weights" in plain


def test_probes_of_another_step_are_refused(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    probes = tmp_path / "mine.json"
    networks = [{"path": str(tmp_path / "last.pt"), "kind": "another step", "scores": 1}, {"path": "/x", "scores": 2}]
    probes.write_text(json.dumps({"networks": networks}))
    with pytest.raises(UserError, match=r"is of another step of .*: run resim probe again"):
        export(tmp_path / "last.pt", "safetensors", tmp_path / "a.safetensors", probes=probes)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_the_card_of_a_file_does_not_show_the_probes_of_another(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    probes = tmp_path / "probe.json"
    probes.write_text(json.dumps({"networks": [{"path": str(tmp_path / "other.pt"), "scores": {"knn": 0.987}}]}))
    export(tmp_path / "last.pt", "safetensors", tmp_path / "a.safetensors")
    assert "There were none when this card was written." in (tmp_path / "a.md").read_text()
    export(tmp_path / "last.pt", "safetensors", tmp_path / "b.safetensors", probes=probes)  # a run that was moved
    assert "0.987" in (tmp_path / "b.md").read_text()
