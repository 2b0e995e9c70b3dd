"""AdamW as the optimiser of a detector: one step by hand, and a warning for a learning rate that suits SGD."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from resim.datasets.records import DetectionData
from resim.detection.config import TuneConfig
from resim.detection.detector import build_detector
from resim.detection.samples import DetectionBatch, TrainingSet
from resim.detection.step import make_detector_stepper
from resim.detection.train import train_detector
from resim.distributed.processes import Processes
from tiny_detectors import SIZES, things, tiny, tiny_images, tiny_recipe, tiny_run

ONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("things"))


@pytest.fixture(scope="module")
def batch(data: DetectionData) -> DetectionBatch:
    dataset = TrainingSet(data, tiny_images(), 0)
    return DetectionBatch([dataclasses.replace(dataset[(0, index)], size=SIZES[0]) for index in range(2)])


def test_a_step_of_adamw_by_hand(batch: DetectionBatch) -> None:
    tune = TuneConfig(lr=0.001, weight_decay=0.1, norm_weight_decay=0.02, optimizer="adamw", betas=(0.8, 0.9))
    model = build_detector(tiny(), tiny_images(), num_classes=2, seed=1)
    stepper = make_detector_stepper(model, tune, ONE, precision="float32")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepper(batch)
    norms = {name.rpartition(".")[0] for name in model.state_dict() if name.endswith("running_mean")}
    decays = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        decay = 0.02 if name.rpartition(".")[0] in norms else 0.1
        decays.add(decay)
        # at the first step the update is the sign of the gradient, where it is far above epsilon
        moved = parameter.grad / (parameter.grad.abs() + 1e-8)
        expected = before[name] * (1 - 0.001 * decay) - 0.001 * moved
        assert torch.allclose(parameter, expected, rtol=1e-5, atol=1e-6), name
    assert decays == {0.1, 0.02}


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9)])
def test_betas_out_of_range_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"betas .*: each must be (at least 0|below 1)"):
        TuneConfig(betas=betas)


@pytest.mark.parametrize(("lr", "is_high"), [(0.001, False), (0.02, True)])
def test_a_learning_rate_of_sgd_is_named_with_adamw(
    data: DetectionData, tmp_path: Path, lr: float, is_high: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tiny(freeze="backbone"), steps=1, lr=lr, optimizer="adamw")
    train_detector(recipe, tiny_run(tmp_path / "run"), data, None)
    message = " ".join(capsys.readouterr().out.split())
    assert "AdamW: betas 0.9 and 0.999, weight decay 0.0001" in message
    assert ("warning: lr 0.02 is high for AdamW" in message) == is_high
