"""A step of a detector: passes are averaged, norms are decayed apart, two processes are the mean of their halves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from forked import on_processes
from resim.datasets.records import DetectionData
from resim.detection.config import TuneConfig
from resim.detection.detector import build_detector, freeze_stages
from resim.detection.samples import DetectionBatch, TrainingSet
from resim.detection.step import LOSSES, DetectorStepper, make_detector_stepper
from resim.detection.torchvision_patches import set_sizes_and_seeds
from resim.distributed.processes import Processes
from resim.errors import UserError
from thin_resnets import ThinResNet, resnets_of
from tiny_detectors import SIZES, things, tiny, tiny_images

ONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
TUNE = TuneConfig(batch_size=4, lr=0.01, weight_decay=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("things"))


def batch_of(data: DetectionData, **tasks: bool) -> DetectionBatch:
    """All four images, every second of them larger, so that halves are padded alike."""
    dataset = TrainingSet(data, tiny_images(), 0, **tasks)
    samples = [dataset[(0, index)] for index in range(len(data))]
    return DetectionBatch([dataclasses.replace(s, size=SIZES[at % 2]) for at, s in enumerate(samples)])


def stepper_of(
    detector: Any, *, processes: Processes = ONE, tune: TuneConfig = TUNE, passes: int = 0, dtype: Any = torch.float32
) -> Any:
    model = build_detector(detector, tiny_images(), num_classes=2, processes=processes, seed=1).to(dtype)
    freeze_stages(model, detector.frozen_stages)
    return make_detector_stepper(model, tune, processes, precision="float32", images_per_pass=passes)


def gradients(stepper: DetectorStepper) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in stepper.model.named_parameters() if p.grad is not None}


def close(result: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert (result[name] - value).norm() <= tolerance * value.norm().clamp(min=1e-6), name


# -- passes


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 4])
def test_passes_are_averaged_by_their_images(data: DetectionData, size: int) -> None:
    batch = batch_of(data)
    detector = tiny(norm="frozen")
    parts = [DetectionBatch(batch.samples[start : start + size]) for start in range(0, 4, size)]
    apart = stepper_of(detector)
    expected: dict[str, Tensor] = {}
    mean: dict[str, float] = {}
    for part in parts:
        apart.model.train().zero_grad()
        losses = apart.losses(part)
        torch.stack(list(losses.values())).sum().backward()
        for name, gradient in gradients(apart).items():
            expected[name] = expected.get(name, torch.zeros(())) + gradient * len(part) / 4
        for name, value in losses.items():
            mean[name] = mean.get(name, 0.0) + float(value.detach()) * len(part) / 4
    stepper = stepper_of(detector, passes=size)
    message = {name: float(value) for name, value in stepper(batch).items()}
    assert message.pop("total") == pytest.approx(sum(mean.values()), rel=1e-5)
    assert message == pytest.approx(mean, rel=1e-5)
    assert set(message) == {"classes", "boxes", "rpn_objectness", "rpn_boxes"}
    close(gradients(stepper), expected, 1e-4)


@pytest.mark.slow
def test_losses_are_under_our_names(data: DetectionData) -> None:
    stepper = stepper_of(tiny(masks=True))
    assert set(stepper(batch_of(data, masks=True))) == {*LOSSES.values(), "total"} - {"keypoints"}


# -- the optimiser


@pytest.mark.slow
def test_a_step_is_sgd_with_norms_decayed_apart(data: DetectionData) -> None:
    tune = TuneConfig(batch_size=4, lr=0.01, weight_decay=0.1, norm_weight_decay=0.02, momentum=0.5)
    stepper = stepper_of(tiny(frozen_stages=2), tune=tune)
    before = {name: p.detach().clone() for name, p in stepper.model.named_parameters()}
    stepper(batch_of(data))
    state = stepper.model.state_dict()
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    decays = set()
    for name, parameter in stepper.model.named_parameters():
        if parameter.grad is None:
            assert torch.equal(parameter, before[name])
            continue
        decay = 0.02 if name.rpartition(".")[0] in norms else 0.1
        decays.add(decay)
        expected = before[name] - 0.01 * (parameter.grad + decay * before[name])
        assert torch.allclose(parameter, expected, rtol=1e-5, atol=1e-7), name
    assert decays == {0.02, 0.1}
    fixed = {n for n in before if n.startswith(("backbone.body.conv1", "backbone.body.layer1"))}
    assert {n for n in before if torch.equal(before[n], state[n])} == fixed


@pytest.mark.slow
def test_gradients_are_clipped_to_their_norm(data: DetectionData) -> None:
    free, clipped = stepper_of(tiny()), stepper_of(tiny(), tune=TuneConfig(lr=0.01, clip_norm=0.05))
    for stepper in (free, clipped):
        stepper(batch_of(data))
    whole, result = (torch.cat([g.double().flatten() for g in gradients(s).values()]) for s in (free, clipped))
    assert whole.norm() > 0.05
    assert float(result.norm()) == pytest.approx(0.05, rel=1e-4)
    assert torch.allclose(result, whole * 0.05 / whole.norm(), rtol=1e-3, atol=1e-6)


def test_a_full_memory_is_told_with_a_remedy(data: DetectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DetectorStepper, "losses", full)
    for passes, message in (
        (0, "4 images a pass: set --images-per-pass 2"),
        (3, "3 images a pass: set .*-pass 1"),
        (1, "1 image a pass: set smaller --min-sizes"),
    ):
        with pytest.raises(UserError, match=f"the GPU's memory is full with {message}"):
            stepper_of(tiny(), passes=passes)(batch_of(data))


# -- processes


def in_double(batch: DetectionBatch, device: torch.device) -> Any:
    """In place of `DetectionBatch.to`: in single precision an activation within rounding of 0 falls on either side."""
    images = [sample.image.double() / 255 for sample in batch.samples]
    return images, [sample.target | {"boxes": sample.target["boxes"].double()} for sample in batch.samples]


DETECTORS = {"fpn": tiny(masks=True), "fpn-fixed": tiny(frozen_stages=2, fpn_norm=False), "c4": tiny(neck="c4")}


def work(rank: int, folder: str) -> None:
    """One of two processes: a step of its half of the batch."""
    with resnets_of(ThinResNet):
        step_of_half(rank, folder)


def step_of_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    DetectionBatch.to = in_double  # type: ignore[method-assign]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    processes = Processes(rank=rank, count=2, device=torch.device("cpu"), cores=1)
    try:
        data = things(Path(folder) / f"things-{rank}")
        results = {}
        for name, detector in DETECTORS.items():
            batch = batch_of(data, masks=detector.masks)
            stepper = stepper_of(detector, processes=processes, dtype=torch.float64)
            losses = stepper(DetectionBatch(batch.samples[2 * rank : 2 * rank + 2]))
            state = {k: v for k, v in stepper.model.state_dict().items() if "running_" in k}
            results[name] = {"losses": losses, "gradients": gradients(stepper), "state": state}
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    on_processes(work, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def halves_apart(model: Any, batch: DetectionBatch) -> dict[str, Tensor]:
    """The backbone over the whole batch, as synchronised BatchNorm sees it; RPN and heads of each half apart."""
    images, targets = batch.to(torch.device("cpu"))
    set_sizes_and_seeds(model, [s.size for s in batch.samples], [s.seed for s in batch.samples])
    resized, targets = model.transform(images, targets)
    maps = model.backbone(resized.tensors)
    means: dict[str, Tensor] = {}
    for half in (slice(0, 2), slice(2, 4)):
        set_sizes_and_seeds(model, [], [s.seed for s in batch.samples[half]])
        part = type(resized)(resized.tensors[half], resized.image_sizes[half])
        own = {name: value[half] for name, value in maps.items()}
        proposals, losses = model.rpn(part, own, targets[half])
        _, more = model.roi_heads(own, proposals, part.image_sizes, targets[half])
        for name, value in (losses | more).items():
            means[LOSSES[name]] = means.get(LOSSES[name], 0) + value / 2
    return means


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn", "fpn-fixed"])
def test_two_processes_are_the_mean_of_their_halves(
    data: DetectionData, two: list[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DetectionBatch, "to", in_double)
    detector = DETECTORS[name]
    stepper = stepper_of(detector, dtype=torch.float64)
    batch = batch_of(data, masks=detector.masks)
    losses = halves_apart(stepper.model.train(), batch)
    torch.stack(list(losses.values())).sum().backward()
    results = [result[name] for result in two]
    for kind, value in losses.items():
        mean = (results[0]["losses"][kind] + results[1]["losses"][kind]) / 2
        assert float(mean) == pytest.approx(float(value.detach()), rel=1e-5), kind
    for result in results:
        close(result["gradients"], gradients(stepper), 1e-9)
        state = stepper.model.state_dict()
        close(result["state"], {k: v for k, v in state.items() if "running_" in k}, 1e-9)


@pytest.mark.slow
def test_two_processes_agree_on_gradients_and_statistics(two: list[Any]) -> None:
    for name in DETECTORS:
        first, second = (result[name] for result in two)
        assert all(torch.equal(value, second["gradients"][key]) for key, value in first["gradients"].items())
        assert first["losses"]["total"] != second["losses"]["total"]
        for key, value in first["state"].items():
            assert torch.allclose(value, second["state"][key], rtol=1e-6), (name, key)
    assert np.isfinite(float(two[0]["c4"]["losses"]["total"]))
