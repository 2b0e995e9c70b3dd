"""Each form of file that is read, under our names, and the messages about other files."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from exchange_files import SMALL, own_checkpoint, published, published_name, small, trained
from needs import need
from resim.errors import UserError
from resim.exchange.names import to_detectron2, to_torchvision_detection
from resim.exchange.networks.recognise import recognise
from resim.exchange.weights import read_weights
from resim.model.encoder import Encoder
from resim.model.resim import ReSim
from resim.regions.level import Level

State = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("thin_resnets")


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def part(state: State, *parts: str) -> State:
    return {name: value for name, value in state.items() if name.startswith(parts)}


@pytest.fixture(scope="module", params=[False, True], ids=["plain-fpn", "normalised-fpn"])
def model(request: pytest.FixtureRequest) -> ReSim:
    return trained(small(norm=request.param))


# -- every form


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_checkpoint(model: ReSim, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "resim_fpn_200ep.pth.tar"
    torch.save(published(model), path, _use_new_zipfile_serialization=not legacy)
    weights = read_weights(path)
    assert equal(weights.tensors, model.query.state_dict())
    norm = " with BatchNorm" if model.config.fpn_norm else ""
    assert weights.kind == f"published ReSim-FPN checkpoint (resnet18 with an FPN{norm}, epoch 200)"
    assert weights.left_over == ()
    assert weights.licence == "CC-BY-NC-4.0"
    assert weights.epoch == 200
    config = weights.config
    assert (config.fpn_norm, config.fpn_width, config.dim) == (model.config.fpn_norm, 256, 128)
    assert [level.name for level in config.levels] == ["P4", "P3"]


@pytest.mark.slow
def test_a_moco_v2_checkpoint_and_one_of_moco_v1(tmp_path: Path) -> None:
    model = trained(small(levels=()))
    content = published(model)
    torch.save(content, tmp_path / "v2.pth.tar")
    weights = read_weights(tmp_path / "v2.pth.tar")
    assert equal(weights.tensors, model.query.state_dict())
    assert weights.kind == "published MoCo v2 (or ReSim-C4) checkpoint (resnet18, epoch 200)"
    assert weights.config.levels == ()

    for prefix in ("module.encoder_q.", "module.encoder_k."):
        for place in ("0", "2"):
            for leaf in ("weight", "bias"):
                del content["state_dict"][f"{prefix}fc.{place}.{leaf}"]
        content["state_dict"] |= {f"{prefix}fc.weight": torch.zeros(128, 512), f"{prefix}fc.bias": torch.zeros(128)}
    torch.save(content, tmp_path / "v1.pth.tar")
    weights = read_weights(tmp_path / "v1.pth.tar")
    assert equal(weights.tensors, part(model.query.state_dict(), "backbone."))
    assert weights.kind == "published MoCo v1 checkpoint (resnet18, epoch 200)"
    assert set(weights.left_over) == {f"module.encoder_{e}.fc.{leaf}" for e in "qk" for leaf in ("weight", "bias")}


@pytest.mark.slow
def test_the_unknown_head_of_resim_c4_is_reported_and_not_fatal(tmp_path: Path) -> None:
    model = trained(small(levels=()))
    content = published(model)
    heads = {f"module.encoder_{e}.conv_head.0.weight": torch.zeros(128, 256, 3, 3) for e in "qk"}
    content["state_dict"] |= heads
    torch.save(content, tmp_path / "c4.pth")
    weights = read_weights(tmp_path / "c4.pth")
    assert equal(weights.tensors, model.query.state_dict())
    assert weights.kind == "published ReSim-C4 or similar checkpoint (resnet18, epoch 200)"
    assert set(weights.left_over) == set(heads)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pkl-2", "pkl-5", "pth"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_published_detectron2_backbone(model: ReSim, tmp_path: Path, form: str, prefix: str) -> None:
    """As `golden/README.md` has it: arrays, `backbone.fpn_*`, numbered norms, and the head in `stem.fc`."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in model.query.state_dict().items():
        theirs = to_detectron2(name)
        if name.startswith("fpn."):
            theirs = prefix + published_name(name)
        elif name.startswith("head."):
            theirs = "stem." + published_name(name)
        assert theirs is not None
        arrays[theirs] = value.numpy()
    content = {"model": arrays, "__author__": "MOCO", "matching_heuristics": True}
    path = tmp_path / f"backbone.{form[:3]}"
    if form == "pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    weights = read_weights(path)
    assert equal(weights.tensors, model.query.state_dict())
    assert weights.kind.startswith("Detectron2 backbone (resnet18 with an FPN")
    assert weights.left_over == ()
    assert weights.licence == "CC-BY-NC-4.0"
    assert weights.origin == "MOCO"


def test_a_frozen_norm_has_no_counter(tmp_path: Path) -> None:
    model = trained(small(levels=()))
    state = {to_detectron2(name): value for name, value in part(model.query.state_dict(), "backbone.").items()}
    state = {f"backbone.{name}": value for name, value in state.items() if "num_batches" not in str(name)}
    heads = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(81, 512)}
    torch.save({"model": state | heads, "iteration": 3}, tmp_path / "model_final.pth")
    weights = read_weights(tmp_path / "model_final.pth")
    assert weights.kind == "Detectron2 detector (resnet18)"
    assert weights.left_over == tuple(heads)
    assert len(weights.added) == 20  # one for each BatchNorm of a ResNet-18
    assert all(weights.tensors[name].item() == 0 for name in weights.added)
    Encoder(weights.config).backbone.load_state_dict(
        {name.removeprefix("backbone."): value for name, value in weights.tensors.items()}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_a_resnet_of_torchvision(tmp_path: Path, name: str) -> None:
    state = torchvision.models.get_model(name, weights=None).state_dict()
    torch.save(state, tmp_path / "resnet.pth")
    weights = read_weights(tmp_path / "resnet.pth")
    assert equal(weights.tensors, {f"backbone.{key}": value for key, value in state.items() if key[:3] != "fc."})
    assert weights.kind == f"ResNet with torchvision's names, as torchvision and timm save it ({name})"
    assert weights.left_over == ("fc.weight", "fc.bias")
    assert weights.config.backbone == name
    assert weights.licence is None


def test_a_resnet_of_timm_in_safetensors(full_resnets: None, tmp_path: Path) -> None:
    timm = need("timm", "files of timm's ResNets are read", "timm")
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path):
        weights = read_weights(path)
        assert equal(weights.tensors, {f"backbone.{key}": value for key, value in state.items() if key[:3] != "fc."})


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_a_detector_of_torchvision(tmp_path: Path, norm: bool) -> None:
    levels = (Level(name="P5"), Level(name="P4"), Level(name="P3"))
    model = trained(small(norm=norm, levels=levels))
    state = {to_torchvision_detection(name): value for name, value in model.query.state_dict().items()}
    del state[None]
    others = {f"backbone.fpn.{kind}_blocks.0.0.weight": torch.zeros(1) for kind in ("inner", "layer")}
    others |= {"rpn.head.conv.0.0.weight": torch.zeros(1)}
    torch.save(state | others, tmp_path / "detector.pth")
    weights = read_weights(tmp_path / "detector.pth")
    assert equal(weights.tensors, part(model.query.state_dict(), "backbone.", "fpn."))
    assert weights.kind.startswith("torchvision detector (resnet18 with an FPN")
    assert set(weights.left_over) == set(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "wrapper", "others"),
    [
        ("", "state_dict", {}),  # DenseCL's extracted backbone
        ("backbone.", "state_dict", {"neck.mlp.0.weight": torch.zeros(3)}),
        ("encoder_q.0.", "state_dict", {"encoder_k.0.layer1.0.conv1.weight": torch.zeros(1), "queue2": torch.zeros(2)}),
        ("module.encoder.", "model", {"module.encoder_k.layer1.0.conv1.weight": torch.zeros(1)}),
        ("module.online_encoder.net.", "model", {"module.target_encoder.net.layer1.0.conv1.weight": torch.zeros(1)}),
        ("student.", "network", {"teacher.layer1.0.conv1.weight": torch.zeros(1)}),
    ],
)
def test_a_backbone_below_any_prefix(tmp_path: Path, prefix: str, wrapper: str, others: State) -> None:
    backbone = {key: v for key, v in torchvision.models.resnet18().state_dict().items() if key[:3] != "fc."}
    state = {prefix + key: value for key, value in backbone.items()} | others
    torch.save({wrapper: state, "epoch": 5, "meta": {"author": "x"}}, tmp_path / "any.pth")
    weights = read_weights(tmp_path / "any.pth")
    assert equal(weights.tensors, {f"backbone.{key}": value for key, value in backbone.items()})
    assert set(weights.left_over) == set(others)
    assert weights.licence is None


@pytest.mark.slow
def test_our_own_checkpoint_a_run_and_half_precision(tmp_path: Path) -> None:
    level = Level(name="C4", window=32, step=16)
    for number, recipe in enumerate((SMALL, small(norm=True), small(levels=(level,)), small(levels=()))):
        run = tmp_path / str(number)
        state = own_checkpoint(run / "checkpoints" / "last.pt", recipe)
        for path in (run, run / "checkpoints" / "last.pt"):
            weights = read_weights(path)
            assert equal(weights.tensors, state)
            assert weights.recipe == recipe
            assert weights.config == recipe.model
            assert weights.kind == "resim checkpoint (quick, resnet18, step 12)"
            assert (weights.step, weights.epoch, weights.left_over) == (12, 3, ())
    backbone = torchvision.models.resnet18().bfloat16().state_dict()
    torch.save(backbone, tmp_path / "half.pth")
    tensors = read_weights(tmp_path / "half.pth").tensors
    assert tensors["backbone.conv1.weight"].dtype == torch.float32
    assert torch.equal(tensors["backbone.conv1.weight"], backbone["conv1.weight"].float())


@pytest.mark.slow
def test_a_fine_tuned_detector_of_our_own_gives_its_backbone(tmp_path: Path) -> None:
    model = trained(SMALL)
    state = {to_torchvision_detection(name): value for name, value in model.query.state_dict().items()}
    del state[None]
    content = {"resim": "0", "kind": "detect", "recipe": {"detector": {}}, "step": 9, "model": state}
    torch.save(content, tmp_path / "last.pt")
    weights = read_weights(tmp_path / "last.pt")
    assert weights.kind == "torchvision detector (resnet18 with an FPN)"
    assert equal(weights.tensors, part(model.query.state_dict(), "backbone.", "fpn."))


@pytest.mark.slow
def test_a_timm_backbone_of_our_own_keeps_its_names(tmp_path: Path) -> None:
    need("timm", "a timm backbone of our own keeps its names", "timm")
    state = own_checkpoint(tmp_path / "last.pt", small(backbone="timm/resnet18"))
    assert equal(read_weights(tmp_path / "last.pt").tensors, state)
    assert "backbone.network.conv1.weight" in state


# -- names there and back


def test_every_name_goes_to_the_other_programs_and_back(model: ReSim) -> None:
    own = part(model.query.state_dict(), "backbone.", "fpn.")
    others = {
        name: torch.zeros(1) for name in ("roi_heads.box_head.fc1.weight", "res6.0.conv1.weight", "fpn_top.weight")
    }
    for body, top, pyramid in (
        ("", "", ""),
        ("backbone.", "backbone.", "backbone."),
        ("backbone.bottom_up.", "backbone.bottom_up.", "backbone."),
        ("backbone.", "roi_heads.", "backbone."),
    ):
        file = {}
        for name in own:
            prefix = pyramid if name.startswith("fpn.") else top if name.startswith("backbone.layer4.") else body
            file[f"{prefix}{to_detectron2(name)}"] = name
        assert recognise({theirs: own[name] for theirs, name in file.items()} | others).ours == file
    file = {str(to_torchvision_detection(name)): name for name in own}
    assert recognise({theirs: own[name] for theirs, name in file.items()} | others).ours == file
    for name in ("head.0.weight", "convs.C4.weight"):
        assert to_detectron2(name) is None
        assert to_torchvision_detection(name) is None


def test_detectron2_finds_every_entry_that_resim_has_by_its_end(full_resnets: None, golden_data: Path) -> None:
    """Its checkpointer gives a model's entry the file's entry that is its end; golden data has the models' entries."""
    golden: dict[str, dict[str, list[int]]] = json.loads((golden_data / "detectron2_backbone_keys.json").read_text())
    assert len(golden) == 3
    for title, entries in golden.items():
        norm = title == "mask_rcnn_R_50_FPN syncbn"
        with torch.device("meta"):
            state = Encoder(dataclasses.replace(SMALL.model, backbone="resnet50", fpn_norm=norm)).state_dict()
        file = {to_detectron2(name): list(value.shape) for name, value in state.items() if to_detectron2(name)}
        used = set()
        new = set()
        for entry, shape in entries.items():
            ends = [name for name in file if name and (entry == name or entry.endswith(f".{name}"))]
            if ends:
                assert file[max(ends, key=len)] == shape, entry
                used.add(max(ends, key=len))
            else:
                new.add(entry)
        modules = {".".join(entry.split(".")[:2]) for entry in new}
        fpn = {"backbone.fpn_lateral2", "backbone.fpn_output2", "backbone.fpn_output5"}
        assert modules == (fpn if "FPN" in title else set())
        unused = {name for name in file if name not in used}
        if "frozenbn" in title:  # frozen norms count no batches
            unused = {name for name in unused if not str(name).endswith("num_batches_tracked")}
        assert all(str(name).startswith("fpn_") for name in unused)
        assert not unused or "C4" in title


# -- files that are not read

Fault = tuple[str, str]
FAULTS: list[Fault] = [
    ("one missing", "1 missing (backbone.layer3.1.bn1.running_var)"),
    ("stage missing", "a ResNet without its last stage (layer4), perhaps of a resnet18; a complete one is needed"),
    ("one shape off", "1 of another shape (backbone.layer2.0.conv1.weight (32, 16, 3, 4) for (32, 16, 3, 3))"),
    (
        "level missing",
        "is no complete resnet18 with an FPN for P4, P3: 2 missing (fpn.lateral3.weight, fpn.lateral3.bias)",
    ),
    ("output missing", "an FPN without outputs (lateral3, lateral4, lateral5)"),
    ("half a head", "2 missing (head.0.weight, head.0.bias)"),
    ("narrow output", "1 of another shape (fpn.output3.weight (64, 256, 3, 3) for (256, 256, 3, 3))"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault for fault, _ in FAULTS])
@pytest.mark.parametrize("form", ["published", "detectron2", "own"])
def test_incomplete_weights_are_refused(tmp_path: Path, fault: str, message: str, form: str) -> None:
    state = dict(trained(SMALL).query.state_dict())
    if fault == "one missing":
        del state["backbone.layer3.1.bn1.running_var"]
    elif fault == "stage missing":
        state = {name: value for name, value in state.items() if "layer4" not in name}
    elif fault == "one shape off":
        state["backbone.layer2.0.conv1.weight"] = torch.zeros(32, 16, 3, 4)
    elif fault == "level missing":
        state = {name: value for name, value in state.items() if not name.startswith("fpn.lateral3")}
    elif fault == "output missing":
        state = {name: value for name, value in state.items() if not name.startswith("fpn.output")}
    elif fault == "half a head":
        state = {name: value for name, value in state.items() if not name.startswith("head.0")}
    elif fault == "narrow output":
        state["fpn.output3.weight"] = torch.zeros(64, 256, 3, 3)
    path = tmp_path / "weights.pth"
    if form == "published":
        torch.save({f"module.encoder_q.{published_name(name)}": value for name, value in state.items()}, path)
    elif form == "detectron2":
        renamed = {to_detectron2(name) or f"stem.{published_name(name)}": value for name, value in state.items()}
        torch.save({"model": renamed, "matching_heuristics": True}, path)
    else:
        whole = {f"{encoder}.{name}": value for encoder in ("query", "key") for name, value in state.items()}
        torch.save({"resim": "0", "recipe": SMALL.to_json(), "model": whole}, path)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    if form != "own":
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SURPLUS = {
    "layer2.0.se.fc1.weight": "a squeeze of timm's seresnet18",
    "layer1.1.conv2_offset.weight": "a deformable convolution",
    "layer1.0.conv1.bias": "a convolution with a bias",
    "conv1.bias": "a stem with a bias",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SURPLUS), ids=list(SURPLUS.values()))
@pytest.mark.parametrize("form", ["torchvision", "published", "detectron2", "torchvision-detection"])
def test_a_network_with_more_in_its_blocks_is_another_network(tmp_path: Path, name: str, form: str) -> None:
    state = {key: value for key, value in trained(SMALL).query.state_dict().items() if key.startswith("backbone.")}
    state[f"backbone.{name}"] = torch.ones(64)
    if form == "detectron2":
        state = {f"backbone.bottom_up.{to_detectron2(key)}": value for key, value in state.items()}
    elif form == "torchvision-detection":
        state = {key.replace("backbone.", "backbone.body."): value for key, value in state.items()}
    else:
        prefix = "module.encoder_q." if form == "published" else ""
        state = {key.replace("backbone.", prefix): value for key, value in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"is no plain resnet18, which has no \S+(offset|bias|se\.fc1)\S*;"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(dtype)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"1 not of real numbers \(backbone.layer1.0.conv1.weight\)"):
        read_weights(tmp_path / "weights.pth")


HUGE = small(levels=()).to_json()["model"] | {"dim": 2**62}


def other_files() -> dict[str, tuple[Any, str]]:
    vit = {"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(3)}
    return {
        "transformer": (vit, "contains no ResNet (its names are like 'blocks.0.attn.qkv.weight')"),
        "list": ([torch.zeros(1)], "contains no named weights (a list): save a state_dict"),
        "tensor": (torch.zeros(3), "contains no named weights (a Tensor)"),
        "nothing": ({}, "contains no ResNet"),
        "numbers": ({1: torch.zeros(1)}, "contains no named weights (a dict)"),
        "strange recipe": ({"resim": "9", "recipe": {"name": "x"}, "model": {}}, "contains no recipe of this version"),
        "huge recipe": (
            {"resim": "9", "recipe": small(levels=()).to_json() | {"model": HUGE}, "model": {}},
            "contains no recipe of this version",
        ),
        "caffe2": ({"blobs": 1, "conv1_w": torch.zeros(1)}, "a Caffe2 (Detectron 1) ResNet"),
    }


@pytest.mark.parametrize("what", list(other_files()))
def test_files_of_something_else(tmp_path: Path, what: str) -> None:
    content, message = other_files()[what]
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "file.pth")
    assert str(tmp_path / "file.pth") in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.pth", b"", "is empty (0 bytes)"),
        ("w.pkl", b"", "is empty (0 bytes)"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("w.pth", b"<!doctype html><html>", "is a web page, not the file itself"),
        ("w.onnx", b"\x08\x08\x12", "ONNX files are written, not read"),
        ("w.pth", bytes(1000), "is without content: its first 264 bytes are 0"),
        ("w.safetensors", bytes(1000), "is without content: its first 264 bytes are 0"),
        ("w.safetensors", b"\xff" * 1000, "damaged, or no safetensors file (1000 bytes"),
        ("w.pkl", b"\x80\x04", "damaged, or no file of weights (2 bytes"),
    ],
)
def test_files_of_no_weights(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert message in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder without checkpoints/last.pt or model.safetensors"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match=r"none.pth: cannot be read \(No such file or directory\)"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "safetensors"])
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9999])
def test_a_truncated_file(tmp_path: Path, form: str, share: float) -> None:
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / {"pickle": "w.pkl", "safetensors": "w.safetensors"}.get(form, "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"model": {name: value.numpy() for name, value in state.items()}}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"damaged, or no (safetensors )?file.* \({int(len(data) * share)} bytes"):
        read_weights(path)
    shutil.rmtree(tmp_path)


def test_a_folder_without_weights_says_what_to_name(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_text("")
    with pytest.raises(UserError, match="stopped before its first checkpoint: repeat its command with --resume auto"):
        read_weights(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "epoch_0001.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"name one of its checkpoints: \S+epoch_0001\.pt"):
        read_weights(run)
    (run / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match=f"name one of its runs: {run}"):
        read_weights(run.parent)
