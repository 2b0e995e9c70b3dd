"""Detectron2 itself loads an export, gives our features and trains from it; skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import resim
from detectron2_data import lay_out, lay_out_cityscapes
from exchange_files import own_checkpoint, published, small, trained
from needs import need
from resim.exchange.detectron2 import launcher
from resim.exchange.export import export
from resim.exchange.features import TOLERANCE, differences, features_of
from resim.exchange.to_detectron2 import detectron2_config, detectron2_maps, load_in_detectron2, quiet, starts_new
from resim.exchange.weights import Weights, read_weights

HERE = importlib.util.find_spec("detectron2") is not None
needs_detectron2 = pytest.mark.skipif(
    not HERE,
    reason="not verified: Detectron2 loads our exports, gives our features and trains from them: install Detectron2 "
    "(docs/exchange.md has the line)",
)
IMAGES = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(5))
CONFIGS = [path.name for path in launcher.shipped_configs()]


@pytest.fixture(scope="module", params=[False, True], ids=["plain-fpn", "normalised-fpn"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published ResNet-50 checkpoint, with statistics of its own."""
    path = tmp_path_factory.mktemp("published") / "published.pth"
    torch.save(published(trained(small(norm=request.param, backbone="resnet50"))), path)
    return path


def built(weights: Weights, *, c4: bool, norm: str = "SyncBN") -> Any:
    with quiet():
        from detectron2.modeling import build_model  # pyright: ignore[reportMissingImports]

        return build_model(detectron2_config(weights, c4=c4, norm=norm)).eval()


def loaded(path: Path, model: Any) -> set[str]:
    with quiet():
        return load_in_detectron2(path, model)


def maps_of(model: Any, levels: list[str], *, c4: bool) -> dict[str, Tensor]:
    with quiet():
        return detectron2_maps(model, IMAGES, levels, c4=c4)


FPN_NEW = ("fpn_lateral2", "fpn_output2", "fpn_output5")


@needs_detectron2
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
@pytest.mark.parametrize("fpn_norm", ["batchnorm", "plain"])
def test_detectron2_loads_all_but_what_must_start_new_and_gives_our_features(
    checkpoint: Path, tmp_path: Path, fpn_norm: Any, ending: str
) -> None:
    done = export(checkpoint, "detectron2", tmp_path / f"backbone{ending}", fpn_norm=fpn_norm)
    weights, ours = done.weights, features_of(done.weights, IMAGES)
    converted = read_weights(done.paths[0])
    assert converted.config.fpn_norm == (fpn_norm == "batchnorm")

    model = built(converted, c4=False)
    new = {name for name in loaded(done.paths[0], model) if name.startswith("backbone.")}
    leaves = {"weight", "bias"}
    if fpn_norm == "batchnorm":
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        leaves = {"weight", *(f"norm.{leaf}" for leaf in norm)}
    assert new == {f"backbone.{part}.{leaf}" for part in FPN_NEW for leaf in leaves}
    assert new == {name for name in starts_new(converted) if name.startswith("backbone.")}
    theirs = maps_of(model, ["P4", "P3"], c4=False)
    largest = differences(ours, theirs)
    assert set(largest) == {"C2", "C3", "C4", "C5", "P3", "P4"}
    assert max(largest.values()) <= TOLERANCE
    assert weights.licence == "CC-BY-NC-4.0"

    model = built(converted, c4=True)
    body = ("backbone.", "roi_heads.res5.")
    assert not {name for name in loaded(done.paths[0], model) if name.startswith(body)}
    largest = differences(ours, maps_of(model, [], c4=True))
    assert set(largest) == {"C4", "C5"}
    assert max(largest.values()) <= TOLERANCE


@needs_detectron2
def test_detectron2_loads_frozen_norms(checkpoint: Path, tmp_path: Path) -> None:
    done = export(checkpoint, "detectron2", tmp_path / "backbone.pth", fpn_norm="plain")
    model = built(read_weights(done.paths[0]), c4=False, norm="FrozenBN")
    new = {name.rpartition(".")[0] for name in loaded(done.paths[0], model) if name.startswith("backbone.")}
    assert new == {f"backbone.{part}" for part in FPN_NEW}
    largest = differences(features_of(done.weights, IMAGES), maps_of(model, ["P4", "P3"], c4=False))
    assert max(largest.values()) <= TOLERANCE


@needs_detectron2
@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d"])
def test_detectron2_loads_other_resnets(tmp_path: Path, backbone: str) -> None:
    own_checkpoint(tmp_path / "last.pt", small(backbone=backbone))
    done = export(tmp_path / "last.pt", "detectron2", tmp_path / "backbone.pth")
    assert done.differences is not None
    assert max(done.differences.values()) <= TOLERANCE
    assert "MODEL.RESNETS." in done.written.load


@needs_detectron2
def test_the_c4_head_has_one_more_norm_and_only_that_starts_new(checkpoint: Path, tmp_path: Path) -> None:
    done = export(checkpoint, "detectron2", tmp_path / "backbone.pth")
    with quiet():
        importlib.import_module("resim.exchange.detectron2.heads")
        from detectron2.modeling import build_model  # pyright: ignore[reportMissingImports]

        config = launcher.make_config(launcher.CONFIGS / "voc-c4-24k.yaml", ["MODEL.DEVICE", "cpu"])
        model: Any = build_model(config)
    assert [name for name, _ in model.roi_heads.res5.named_children()] == ["0", "1", "2", "norm"]
    new = {name for name in loaded(done.paths[0], model) if name.startswith(("backbone.", "roi_heads.res5."))}
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert new == {f"roi_heads.res5.norm.{leaf}" for leaf in leaves}


# -- the configs of the protocols: METHOD, section 9

UNFROZEN = {"MODEL.BACKBONE.FREEZE_AT": 0, "TEST.PRECISE_BN.ENABLED": True}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "coco-fpn-1x": {"SOLVER.MAX_ITER": 90_000, "SOLVER.STEPS": (60_000, 80_000), "MODEL.BACKBONE.FREEZE_AT": 2},
    "coco-fpn-2x": {"SOLVER.MAX_ITER": 180_000, "SOLVER.STEPS": (120_000, 160_000), "MODEL.BACKBONE.FREEZE_AT": 2},
    "coco-fpn-1x-unfrozen": UNFROZEN | {"SOLVER.MAX_ITER": 90_000},
    "coco-fpn-2x-unfrozen": UNFROZEN | {"SOLVER.MAX_ITER": 180_000},
    "coco-c4": {
        "SOLVER.MAX_ITER": 180_000, "SOLVER.STEPS": (120_000, 160_000), "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm", "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    },
    "voc-c4-24k": {
        "SOLVER.MAX_ITER": 24_000, "SOLVER.STEPS": (18_000, 22_000), "SOLVER.WARMUP_ITERS": 100, "MODEL.MASK_ON": False,
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm", "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "INPUT.MIN_SIZE_TRAIN": tuple(range(480, 801, 32)), "INPUT.MIN_SIZE_TEST": 800, "TEST.PRECISE_BN.ENABLED": True,
        "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"), "DATASETS.TEST": ("voc_2007_test",),
        "MODEL.BACKBONE.FREEZE_AT": 0,
    },
    "cityscapes-fpn": {
        "SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": 0.01, "SOLVER.MAX_ITER": 24_000, "SOLVER.STEPS": (18_000,),
        "INPUT.MIN_SIZE_TRAIN": tuple(range(800, 1025, 32)), "INPUT.MAX_SIZE_TRAIN": 2048,
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    },
    "coco-keypoints-fpn-1x": {
        "SOLVER.MAX_ITER": 90_000, "MODEL.KEYPOINT_ON": True, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
    },
    "coco-densepose-fpn-s1x": {"SOLVER.BASE_LR": 0.01, "SOLVER.MAX_ITER": 130_000, "SOLVER.STEPS": (100_000, 120_000)},
}  # fmt: skip
EVERYWHERE = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.GAMMA": 0.1,
}


def test_there_is_a_config_for_every_protocol() -> None:
    assert {name.removesuffix(".yaml") for name in CONFIGS} == set(PROTOCOLS)


@needs_detectron2
@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_a_protocol(name: str) -> None:
    if "densepose" in name:
        need("densepose", "the DensePose config builds", "install DensePose (docs/exchange.md has the line)")
    config = launcher.make_config(launcher.CONFIGS / name)
    common = {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "INPUT.MAX_SIZE_TRAIN": 1333}
    fpn = {"MODEL.FPN.NORM": "SyncBN"} if "fpn" in name else {}
    for key, value in (EVERYWHERE | common | fpn | PROTOCOLS[name.removesuffix(".yaml")]).items():
        setting = config
        for part in key.split("."):
            setting = getattr(setting, part)
        assert setting == value, key


# -- real training steps

TINY = """MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS (2,) SOLVER.WARMUP_ITERS 1
INPUT.MIN_SIZE_TRAIN (96,) INPUT.MAX_SIZE_TRAIN 128 DATALOADER.NUM_WORKERS 0 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
MODEL.RPN.POST_NMS_TOPK_TRAIN 50 DATASETS.TEST () TEST.PRECISE_BN.ENABLED False""".split()  # noqa: SIM905
RUNS = {
    "coco-fpn-1x": {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"},
    "voc-c4-24k": {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"},
    "coco-keypoints-fpn-1x": {"loss_keypoint", "loss_box_reg"},
    "coco-densepose-fpn-s1x": {"loss_densepose_U", "loss_densepose_V", "loss_densepose_I", "loss_densepose_S"},
    "cityscapes-fpn": {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"},
}


@needs_detectron2
@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_detectron2_takes_training_steps_from_our_backbone(shared: Path, tmp_path: Path, name: str) -> None:
    if "densepose" in name:
        need("densepose", "DensePose trains from our backbone", "install DensePose (docs/exchange.md has the line)")
    if "cityscapes" in name:
        for module in ("cityscapesscripts", "shapely"):
            need(module, "Detectron2 trains on Cityscapes from our backbone", f"pip install {module}")
    own_checkpoint(tmp_path / "last.pt", small(backbone="resnet50"))
    export(tmp_path / "last.pt", "detectron2", tmp_path / "backbone.pth")
    data = lay_out(shared / "data", tmp_path / "datasets")
    lay_out_cityscapes(data)
    words = [
        "train",
        "--config-file",
        name,
        "MODEL.WEIGHTS",
        "backbone.pth",
        *TINY,
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    ours = str(Path(resim.__file__).parents[1])
    settings = {
        "DETECTRON2_DATASETS": str(data), "FVCORE_CACHE": str(data / "cache"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH")))),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "resim.exchange.detectron2", *words],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | settings, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    log = done.stdout + done.stderr
    missing = re.search(r"not found in the checkpoint:\n(.*?)\n[^\n]*\[\d", log, re.DOTALL)
    assert missing is not None
    names = re.sub(r"\x1b\[[\d;]*m", "", missing[1]).split("\n")
    body = {line.partition(".norm")[0].removesuffix(".weight") for line in names if line.startswith("backbone")}
    assert body == ({f"backbone.{part}" for part in FPN_NEW} if "fpn" in name else set())
    assert any(line.startswith("roi_heads.res5.norm") for line in names) == ("c4" in name)
    numbers = dict(re.findall(r"(\w*loss\w*): ([\d.]+)", log[log.index("iter: 2") :]))
    assert set(numbers) >= RUNS[name]
    assert all(0 <= float(value) < 1000 for value in numbers.values())
    final = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)["model"]
    start: dict[str, Any] = torch.load(tmp_path / "backbone.pth", weights_only=True)["model"]
    prefix = "backbone.bottom_up." if "fpn" in name else "backbone."
    stem, moved = "stem.conv1.weight", "res4.0.conv1.weight"
    frozen = "fpn" in name
    assert torch.equal(final[prefix + stem], start[stem]) == frozen
    assert not torch.equal(final[prefix + moved], start[moved])
    assert read_weights(tmp_path / "out" / "model_final.pth").kind.startswith("Detectron2 detector (resnet50")


# -- the launcher


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test"], "no verb 'test': configs or train"),
        (["train"], "train needs --config-file"),
        (
            ["train", "--config-file", "coco"],
            "--config-file coco: no such file, nor one of the shipped configs: cityscapes",
        ),
        (
            ["train", "--config-file", "coco-fpn-1x", "MODEL.WEIGHTS", "none.pth"],
            "MODEL.WEIGHTS none.pth: no such file",
        ),
        (["train", "--config-file", "coco-fpn-1x", "MODEL.WIGHTS", "x"], "coco-fpn-1x.yaml: Non-existent"),
        (["train", "--config-file", "coco-fpn-1x", "SOLVER.BASE_LR"], "coco-fpn-1x.yaml: Override list has odd length"),
    ],
)
def test_what_the_launcher_refuses(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    if words[0] == "train" and not HERE:
        message = "Detectron2 is not installed: pip install"
    capsys.readouterr()
    assert launcher.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_cityscapes_scripts_are_found_by_the_name_that_detectron2_calls_them() -> None:
    need("cityscapesscripts", "Detectron2 finds the scripts of Cityscapes", "cityscapes")
    program = """
from resim.exchange.detectron2.launcher import name_cityscapes
name_cityscapes()
name_cityscapes()
import deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels as module
from deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels import name2label
print(name2label["car"].id, module.name2label is name2label)
"""
    paths = os.pathsep.join([str(Path(resim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.stdout == "26 True\n", done.stderr


def test_the_launcher_lists_its_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.main(["configs"]) == 0
    assert capsys.readouterr().out.split() == CONFIGS
    assert launcher.main(["--help"]) == 0
    assert launcher.main([]) == 2
