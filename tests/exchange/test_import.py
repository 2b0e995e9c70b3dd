"""A published checkpoint is imported with keys, queue and momentum, and pre-training continues as from our own."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from exchange_files import SMALL, own_checkpoint, published, small, trained
from golden_state import golden_config, published_state
from resim.cli.main import main
from resim.distributed.processes import start_processes
from resim.errors import UserError
from resim.exchange.load import load_published
from resim.exchange.training_state import import_state
from resim.exchange.weights import read_weights
from resim.model.resim import ReSim
from resim.recipes import moco_v2, resim_fpn
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import Recipe, RunConfig
from resim.training.starting import load_start, read_start
from resim.training.step import Stepper, make_stepper
from resim.views.views import Views

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("thin_resnets")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- the published names, shapes and losses


@pytest.mark.slow
@pytest.mark.parametrize("fpn_norm", [False, True], ids=["plain-fpn", "normalised-fpn"])
def test_a_published_checkpoint_is_imported_as_the_model_with_the_golden_losses(
    full_resnets: None, golden_data: Path, tmp_path: Path, fpn_norm: bool
) -> None:
    suffix = "_fpn_bn" if fpn_norm else ""
    shapes = json.loads((golden_data / f"reference_state_dict_keys{suffix}.json").read_text())
    state = published_state(shapes, seed=int(fpn_norm))
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": state}, tmp_path / "published.pth.tar")
    assert main(["import", str(tmp_path / "published.pth.tar"), "--out", str(tmp_path / "ours.pt")]) == 0

    # the same network with the same numbers, whose losses, gradients and queue test_golden.py compares
    checkpoint = load_checkpoint(tmp_path / "ours.pt")
    assert Recipe.from_json(checkpoint["recipe"]).model == golden_config(fpn_norm)
    expected = ReSim(golden_config(fpn_norm)).double()
    load_published(expected, state)
    assert equal(checkpoint["model"], expected.state_dict())


# -- going on


def stepper_of(recipe: Recipe) -> Stepper:
    with start_processes("cpu") as processes:
        return make_stepper(recipe.model, recipe.optim, processes, precision="float32")


def take(stepper: Stepper, seed: int) -> dict[str, Tensor]:
    """A step on views made of a seed."""
    generator = torch.Generator().manual_seed(seed)
    crops = torch.tensor([[0.0, 0.0, 90.0, 90.0], [5.0, 5.0, 100.0, 100.0]])
    views = [
        Views(torch.randn(4, 3, 128, 128, generator=generator), crops[index].expand(4, 4).clone()) for index in (0, 1)
    ]
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.05
    return stepper(views[0], views[1], torch.tensor([2, 0, 3, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("fpn_first", [False, True])
def test_pre_training_continues_from_a_published_file_as_from_the_model(tmp_path: Path, fpn_first: bool) -> None:
    stepper = stepper_of(SMALL)
    for seed in (1, 2):
        take(stepper, seed)
    momentum = {
        name: stepper.optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in stepper.model.query.named_parameters()
    }
    torch.save(published(stepper.model, momentum, fpn_first=fpn_first), tmp_path / "published.pth")
    imported = import_state(tmp_path / "published.pth", SMALL)
    assert imported.momentum == len(momentum)
    assert imported.new == imported.copied == imported.left_over == ()
    assert len(imported.loaded) == len(stepper.model.state_dict())
    save_checkpoint(tmp_path / "ours.pt", imported.state)

    again = stepper_of(imported.recipe)
    first = read_start(RunConfig(start_from=str(tmp_path / "ours.pt")), imported.recipe)
    assert first is not None
    load_start(again, first.state)
    assert equal(again.model.state_dict(), stepper.model.state_dict())
    for seed in (3, 4):
        assert equal(take(again, seed), take(stepper, seed))
    assert equal(again.model.state_dict(), stepper.model.state_dict())


@pytest.mark.slow
def test_momentum_of_another_order_is_left_out(tmp_path: Path) -> None:
    model = trained(SMALL)
    momentum = {name: torch.zeros_like(value) for name, value in model.query.named_parameters()}
    content = published(model, momentum)
    names = list(content["optimizer"]["state"])
    entries = content["optimizer"]["state"]
    entries[names[0]], entries[names[-1]] = entries[names[-1]], entries[names[0]]
    torch.save(content, tmp_path / "published.pth")
    imported = import_state(tmp_path / "published.pth", SMALL)
    assert imported.momentum == 0
    assert imported.state["optimizer"]["state"] == {}


@pytest.mark.slow
def test_old_optimisers_have_other_parameter_numbers(tmp_path: Path) -> None:
    model = trained(SMALL)
    momentum = {name: torch.randn_like(value) for name, value in model.query.named_parameters()}
    content = published(model, momentum)
    group = content["optimizer"]["param_groups"][0]
    own = {index: 140_000_000_000_000 + 77 * index for index in group["params"]}
    group["params"] = list(own.values())
    content["optimizer"]["state"] = {own[index]: entry for index, entry in content["optimizer"]["state"].items()}
    torch.save(content, tmp_path / "published.pth")
    imported = import_state(tmp_path / "published.pth", SMALL)
    assert imported.momentum == len(momentum)
    loaded = [entry["momentum_buffer"] for entry in imported.state["optimizer"]["state"].values()]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded, momentum.values(), strict=True))


# -- what is loaded, copied, new and left over


@pytest.mark.slow
def test_a_plain_backbone_starts_resim(tmp_path: Path) -> None:
    model = trained(small(levels=()))
    backbone = {f"{name.removeprefix('backbone.')}": value for name, value in model.query.state_dict().items()}
    torch.save({name: value for name, value in backbone.items() if "head" not in name}, tmp_path / "resnet.pth")
    imported = import_state(tmp_path / "resnet.pth", SMALL)
    state = imported.state["model"]
    for name, value in state.items():
        part = name.split(".")[1] if "." in name else ""
        where = [name in names for names in (imported.loaded, imported.copied, imported.new)]
        assert where == [
            part == "backbone" and name.startswith("query."),
            part == "backbone" and name.startswith("key."),
            part != "backbone",
        ], name
        if name.startswith("key."):
            assert torch.equal(value, state[name.replace("key.", "query.", 1)])
    load_start(stepper_of(imported.recipe), imported.state)


@pytest.mark.slow
def test_the_file_determines_the_recipe(tmp_path: Path) -> None:
    torch.save(published(trained(SMALL)), tmp_path / "fpn.pth")
    recipe = import_state(tmp_path / "fpn.pth").recipe
    assert recipe.name == "resim-fpn"
    assert recipe.model.backbone == "resnet18"
    assert recipe.model.queue_size == 8
    assert recipe.model.levels == resim_fpn().model.levels
    assert recipe.optim == resim_fpn().optim
    torch.save(published(trained(small(levels=()))), tmp_path / "moco.pth")
    recipe = import_state(tmp_path / "moco.pth").recipe
    assert (recipe.name, recipe.views) == ("moco-v2", moco_v2().views)
    assert import_state(tmp_path / "moco.pth", resim_fpn()).recipe.model.levels == resim_fpn().model.levels


@pytest.mark.slow
def test_our_own_checkpoint_is_imported_bit_equal(tmp_path: Path) -> None:
    model = trained(SMALL)
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    imported = import_state(tmp_path / "last.pt")
    assert equal(imported.state["model"], model.state_dict())
    assert imported.recipe == SMALL
    assert imported.state["data"] == load_checkpoint(tmp_path / "last.pt")["data"]


@pytest.mark.slow
def test_a_queue_position_beyond_the_queue_is_wrapped(tmp_path: Path) -> None:
    content = published(trained(SMALL))
    content["state_dict"]["module.queue_ptr"] = torch.tensor([11])
    torch.save(content, tmp_path / "published.pth")
    assert import_state(tmp_path / "published.pth").state["model"]["queue_position"].item() == 3


# -- starting a run


@pytest.mark.slow
def test_a_run_that_starts_from_another_network_is_refused(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", small(backbone="resnet34"))
    last = RunConfig(start_from=str(tmp_path / "last.pt"))
    with pytest.raises(
        UserError, match=r"last.pt: contains a resnet34, the recipe's backbone is resnet18: set --backbone"
    ):
        read_start(last, SMALL)
    with pytest.raises(UserError, match="--start-epoch 3: needs --start-from"):
        read_start(RunConfig(start_epoch=3), SMALL)
    with pytest.raises(UserError, match="--start-epoch 10: must be below --epochs 10"):
        read_start(dataclasses.replace(last, start_epoch=10), SMALL)


@pytest.mark.slow
def test_a_run_records_licence_and_origin_of_its_weights(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(4):
        noise = np.random.default_rng(index).integers(0, 255, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    torch.save(published(trained(SMALL)), tmp_path / "published.pth")
    ours, out = str(tmp_path / "ours.pt"), tmp_path / "run"
    assert main(["import", str(tmp_path / "published.pth"), "--recipe", "quick", "--out", ours]) == 0
    words = [
        "pretrain",
        str(tmp_path),
        "--recipe",
        str(tmp_path / "ours.json"),
        "--start-from",
        ours,
        "--out",
        str(out),
    ]
    words += ["--start-epoch", "1", "--epochs", "2", "--batch-size", "4", "--group-size", "4", "--workers", "0"]
    assert (
        main([*words, "--image-size", "96", "--device", "cpu", "--precision", "float32", "--picture-every", "0"]) == 0
    )
    weights = read_weights(out)
    assert weights.licence == "CC-BY-NC-4.0"
    assert weights.origin == "published ReSim-FPN checkpoint (resnet18 with an FPN, epoch 200)"
    assert (weights.step, weights.epoch) == (2, 2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 1)]


# -- the command


def run(capsys: Captured, *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_import_prints_every_entry_and_the_licence(capsys: Captured, tmp_path: Path) -> None:
    content = published(trained(SMALL))
    content["state_dict"]["module.extra.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "published.pth")
    output = run(capsys, "import", str(tmp_path / "published.pth"), "--out", str(tmp_path / "ours.pt"), "--verbose")
    lines = output.splitlines()
    assert lines[0] == f"{tmp_path / 'published.pth'}: published ReSim-FPN checkpoint (resnet18 with an FPN, epoch 200)"
    assert lines[1].startswith("licence: CC-BY-NC 4.0 (as published): not for commercial use")
    assert lines[2] == "loaded: 270"
    assert "  key.backbone.layer4.1.bn2.{weight,bias,running_mean,running_var,num_batches_tracked}" in lines
    start = lines.index("left over: 1")
    assert lines[start - 2 : start + 2] == [
        "key encoder copied from the query: none",
        "new: none",
        "left over: 1",
        "  module.extra.weight",
    ]
    assert "in all 270 loaded, 0 copied, 0 new, 1 left over, momentum of 0 parameters" in lines
    assert f"--start-from {tmp_path / 'ours.pt'} --start-epoch 200 --epochs 400" in lines[-1]


@pytest.mark.slow
def test_import_prints_some_twenty_lines(capsys: Captured, tmp_path: Path) -> None:
    content = published(trained(SMALL))
    content["args"] = argparse.Namespace(lr=0.03)
    content["state_dict"] |= {f"module.extra{number}.weight": torch.zeros(1) for number in range(9)}
    torch.save(content, tmp_path / "published.pth")
    lines = run(capsys, "import", str(tmp_path / "published.pth")).splitlines()
    assert lines[2:] == [
        "passed over, as it is no plain data: argparse.Namespace",
        "loaded: 270",
        "  query.backbone.* (120)",
        "  key.backbone.* (120)",
        "  query.fpn.* (10)",
        "  ... and 20 more (--verbose lists all)",
        "key encoder copied from the query: none",
        "new: none",
        "left over: 9",
        "  module.extra0.weight",
        "  module.extra1.weight",
        "  module.extra2.weight",
        "  ... and 6 more (--verbose lists all)",
        "in all 270 loaded, 0 copied, 0 new, 9 left over, momentum of 0 parameters",
    ]


@pytest.mark.slow
def test_prefix_takes_another_of_several_networks(capsys: Captured, tmp_path: Path) -> None:
    student, teacher = good(), good()
    state = {f"module.backbone.{name}": value for name, value in student.items() if name[:3] != "fc."}
    other = {f"backbone.{name}": value for name, value in teacher.items() if name[:3] != "fc."}
    torch.save({"student": state, "teacher": other, "epoch": 3}, tmp_path / "dino.pth")
    path, out = str(tmp_path / "dino.pth"), str(tmp_path / "start.pt")
    output = run(capsys, "import", path)
    assert output.startswith(
        "warning: the network below 'student.module.backbone.' is read; there are others below 'teacher.backbone.': "
        f"resim import {path} --prefix teacher.backbone. --out dino-teacher-backbone.pt writes one of them to a file"
    )
    for words in ([], ["--prefix", "student.module.backbone"], ["--prefix", "teacher.backbone."]):
        run(capsys, "import", path, "--out", out, *words)
        loaded = read_weights(out).tensors["backbone.layer3.1.conv2.weight"]
        expected = teacher if "teacher.backbone." in words else student
        assert torch.equal(loaded, expected["layer3.1.conv2.weight"])
    assert main(["import", path, "--prefix", "online."]) == 2
    error = capsys.readouterr().err
    assert "no ResNet below --prefix 'online.'; those in it are below 'student.module.backbone.', 'teacher.b" in error
    assert error.count("\n") == 1
    assert main(["import", out, "--prefix", "teacher."]) == 2
    assert "is resim's own, which has one network: leave --prefix out" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["query", "key", "queue"])
def test_values_that_are_not_finite_are_refused_by_name(capsys: Captured, tmp_path: Path, place: str) -> None:
    content = published(trained(SMALL))
    name = {"query": "encoder_q.layer1.0.bn1.bias", "key": "encoder_k.layer1.0.bn1.bias", "queue": "queue"}[place]
    content["state_dict"][f"module.{name}"].view(-1)[3] = float("nan")
    torch.save(content, tmp_path / "w.pth")
    assert main(["import", str(tmp_path / "w.pth"), "--out", str(tmp_path / "out.pt")]) == 2
    shown = {"query": f"module.{name}", "key": "key.backbone.layer1.0.bn1.bias", "queue": "queue"}[place]
    assert re.search(rf" {shown} has 1 of \d+ numbers that are NaN or infinite", capsys.readouterr().err)
    assert not (tmp_path / "out.pt").exists()


def test_a_run_that_diverged_starts_nothing(tmp_path: Path) -> None:
    model = trained(SMALL)
    model.state_dict()["query.backbone.bn1.running_var"][2] = float("inf")
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    for read in (read_weights, import_state):
        with pytest.raises(UserError, match=r"backbone\.bn1\.running_var has 1 of 16 numbers that are NaN or infinite"):
            read(tmp_path / "last.pt")
    assert read_weights(tmp_path / "last.pt", check_finite=False).kind.startswith("resim checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", ["module._orig_mod.", "_orig_mod.module.", "_orig_mod.", ""])
def test_a_compiled_moco_is_imported_completely(tmp_path: Path, wrapping: str) -> None:
    model = trained(SMALL)
    momentum = {name: torch.randn_like(value) for name, value in model.query.named_parameters()}
    content = published(model, momentum)
    content["state_dict"] = {name.replace("module.", wrapping): v for name, v in content["state_dict"].items()}
    torch.save(content, tmp_path / "w.pth")
    imported = import_state(tmp_path / "w.pth", SMALL)
    assert imported.new == imported.copied == imported.left_over == ()
    assert imported.momentum == len(momentum)
    assert equal(imported.state["model"], model.state_dict())
    assert imported.weights.kind == "published ReSim-FPN checkpoint (resnet18 with an FPN, epoch 200)"
    assert imported.weights.warnings == ()


def good() -> dict[str, Tensor]:
    return torchvision.models.resnet18().state_dict()


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


FAULTS: dict[str, Any] = {
    "missing": (lambda path: None, "cannot be read (No such file or directory)"),
    "folder": (lambda path: path.mkdir(), "is a folder without checkpoints/last.pt"),
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "header": (lambda path: path.write_bytes(struct.pack("<Q", 3 << 30) + b"{}" + bytes(99)), "no safetensors file"),
    "truncated": (lambda path: path.write_bytes(saved(good())[:-4000]), "damaged, or no file of weights"),
    "another network": (lambda path: path.write_bytes(saved({"blocks.0.qkv": torch.zeros(1)})), "contains no ResNet"),
    "shape off": (
        lambda path: path.write_bytes(saved(good() | {"bn1.bias": torch.zeros(7)})),
        "bn1.bias (7,) for (16,)",
    ),
    "zeros": (lambda path: path.write_bytes(bytes(99)), "is without content: its first 99 bytes are 0"),
}


@pytest.mark.parametrize("verb", ["import", "export"])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_file_that_cannot_be_read_writes_nothing(capsys: Captured, tmp_path: Path, verb: str, fault: str) -> None:
    make, expected = FAULTS[fault]
    path, out = tmp_path / "file.pth", tmp_path / "out.pt"
    make(path)
    capsys.readouterr()
    words = [verb, str(path), "--out", str(out), *(["--to", "torchvision"] if verb == "export" else [])]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"resim {verb}: {path}: ")
    assert expected in message
    assert message.count("\n") == 1
    assert [entry for entry in tmp_path.iterdir() if entry != path] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "resim import --help"),
        (["FILE", "--out", "x.pth"], "--out x.pth: must end in .pt"),
        (["FILE", "--out", "folder.pt"], "--out folder.pt: is a folder, a file is needed"),
        (["FILE", "--out", "link.pt"], "--out link.pt: is the file that was read"),
        (["FILE", "--recipe", "slow"], "no recipe 'slow'"),
        (["FILE", "--to", "timm"], "--to"),
    ],
)
def test_options_of_import_that_cannot_work(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.pt").mkdir()
    torch.save(published(trained(SMALL)), "published.pth")
    Path("link.pt").symlink_to("published.pth")
    capsys.readouterr()
    assert main(["import", *("published.pth" if word == "FILE" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"folder.pt", "link.pt", "published.pth"}
