"""One step of the published program, recomputed: losses, gradients, states, logits and queue (golden/README.md)."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_state import golden_config, published_state, random_values
from resim.exchange.load import load_published
from resim.exchange.networks.recognise import recognise
from resim.model.resim import Keys, ReSim
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, map_windows
from resim.views.views import Views

TEMPERATURE = 0.2
PUBLISHED_LEVEL = {"P4": "c4", "P3": "c3"}  # ours: the published program's


@dataclass(frozen=True)
class Step:
    """A golden step and ours from the same numbers."""

    golden: dict[str, Any]
    model: ReSim
    """After the step."""
    names: dict[str, str]
    """Published names to ours."""
    keys: Keys
    losses: dict[str, Tensor]
    vectors: Tensor
    """Global vectors of the queries, (N, D), as the encoder gave them."""
    maps: dict[str, Tensor]
    """The query encoder's level maps."""
    queue_before: Tensor


def run_step(folder: Path, *, fpn_norm: bool, seed: int) -> Step:
    suffix = "_bn" if fpn_norm else ""
    with np.load(folder / f"resim_fpn{suffix}_golden.npz") as file:
        golden = dict(file)
    shapes = json.loads((folder / f"reference_state_dict_keys{'_fpn_bn' if fpn_norm else ''}.json").read_text())
    model = ReSim(golden_config(fpn_norm)).double()
    state = published_state(shapes, seed)
    load_published(model, state)
    crops = torch.as_tensor(golden["crops_tlhw"])
    queries, keys_of = (
        Views(torch.as_tensor(random_values(name, seed, (len(crops), 3, 224, 224))), crops[:, index])
        for index, name in enumerate(("im_q", "im_k"))
    )
    queue_before = model.queue.clone()
    outputs: list[tuple[Tensor, dict[str, Tensor]]] = []

    def encoder(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        outputs.append(model.query(images))
        return outputs[0]

    keys = model.encode_keys(queries, keys_of)
    losses = model.query_losses(queries.images, keys, encoder=encoder)
    losses["total"].backward()
    model.finish_step(keys)
    losses = {name: loss.detach() for name, loss in losses.items()}
    vectors, maps = outputs[0]
    maps = {name: features.detach() for name, features in maps.items()}
    return Step(golden, model, recognise(state).model_names(), keys, losses, vectors.detach(), maps, queue_before)


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain-fpn", "normalised-fpn"]
)
def step(request: pytest.FixtureRequest, golden_data: Path) -> Step:
    fpn_norm: bool = request.param
    return run_step(golden_data, fpn_norm=fpn_norm, seed=int(fpn_norm))


def relative(ours: Tensor, golden: float) -> float:
    return abs(ours.item() / golden - 1)


def test_the_losses(step: Step) -> None:
    losses, golden = step.losses, step.golden
    assert relative(losses["instance"], golden["loss_instance"]) < 1e-9
    for level, published in PUBLISHED_LEVEL.items():
        assert relative(losses[level], golden[f"loss_{published}"]) < 1e-9
    total = golden["loss_instance"] + golden["loss_c4"] + golden["loss_c3"]
    assert relative(losses["total"], total) < 1e-9


def test_every_gradient(step: Step) -> None:
    parameters = dict(step.model.query.named_parameters())
    assert len(step.golden["no_grad_names"]) == 0
    assert len(step.golden["grad_names"]) == len(parameters)
    for name, norm in zip(step.golden["grad_names"], step.golden["grad_norms"], strict=True):
        grad = parameters.pop(step.names[f"module.encoder_q.{name}"].removeprefix("query.")).grad
        assert grad is not None
        assert relative(grad.norm(), norm) < 1e-9, name
    assert not parameters


@pytest.mark.parametrize(("which", "published"), [("query", "encoder_q"), ("key", "encoder_k")])
def test_both_encoders_states(step: Step, which: str, published: str) -> None:
    state = {
        name: value
        for name, value in step.model.state_dict().items()
        if name.startswith(f"{which}.") and value.is_floating_point()
    }
    names, norms = step.golden[f"{which}_state_names"], step.golden[f"{which}_state_norms"]
    for name, norm in zip(names, norms, strict=True):
        assert relative(state.pop(step.names[f"module.{published}.{name}"]).norm(), norm) < 1e-9, name
    assert not state


def head(positives: Tensor, queries: Tensor, negatives: Tensor, columns: int) -> Tensor:
    """The first columns of the logits."""
    positive = (queries * positives).sum(dim=-1, keepdim=True)
    return torch.cat([positive, queries @ negatives[: columns - 1].T], dim=-1) / TEMPERATURE


def test_instance_logits(step: Step) -> None:
    queries = F.normalize(step.vectors, dim=1)
    logits = head(step.keys.local_vectors(), queries, step.queue_before, 16)
    assert np.abs(logits.numpy() - step.golden["logits_instance"]).max() < 1e-9


@pytest.mark.parametrize("level", ["P4", "P3"])
def test_region_logits_of_valid_windows(step: Step, level: str) -> None:
    keys, stride = step.keys.levels[level], {"P4": 16, "P3": 8}[level]
    queries = F.normalize(precise_roi_pool(step.maps[level], keys.windows, stride), dim=-1)
    negatives = keys.cells.wait().flatten(0, -2)
    assert len(negatives) == len(step.vectors) * {"P4": 144, "P3": 676}[level]
    logits = head(keys.positives.wait().flatten(0, 1), queries.flatten(0, 1), negatives, 8)
    golden = step.golden[f"logits_{PUBLISHED_LEVEL[level]}_head"]
    valid = keys.valid.flatten().numpy()
    assert logits.shape == golden.shape
    assert valid.any()
    assert np.abs(logits.numpy() - golden)[valid].max() < 1e-9


def test_windows_and_their_validity(step: Step) -> None:
    crops = torch.as_tensor(step.golden["crops_tlhw"])
    for level in step.model.config.levels:
        published = PUBLISHED_LEVEL[level.name]
        grid = level.windows(224)
        expected_q = torch.as_tensor(step.golden[f"{published}_windows_q"])
        assert (grid - expected_q).abs().max() < 1e-9
        mapped = map_windows(grid, crops[:, 0], crops[:, 1], 224)
        valid = inside_view(mapped, 224)
        assert torch.equal(valid, torch.as_tensor(step.golden[f"{published}_labels"] >= 0))
        assert torch.equal(valid, step.keys.levels[level.name].valid)
        expected_k = torch.as_tensor(step.golden[f"{published}_windows_k"])
        assert (mapped - expected_k)[valid].abs().max() < 1e-9
        share = valid.double().mean(dim=1).mean().item()
        assert step.losses[f"valid/{level.name}"].item() == pytest.approx(share, abs=1e-6)


def test_the_queue_and_its_position(step: Step) -> None:
    expected = step.golden["queue_after"]
    ours = step.model.queue[: expected.shape[1]].T.numpy()
    assert np.abs(ours - expected).max() < 1e-9
    assert step.model.queue_position.item() == step.golden["queue_ptr"].item() == len(step.vectors)
    assert torch.equal(step.model.queue[len(step.vectors) :], step.queue_before[len(step.vectors) :])


# -- the published names


@pytest.fixture(scope="module", params=[False, True], ids=["plain-fpn", "normalised-fpn"])
def fresh(request: pytest.FixtureRequest, golden_data: Path) -> tuple[ReSim, dict[str, Tensor]]:
    """A model that has loaded nothing yet, and a published state that fits it."""
    suffix = "_fpn_bn" if request.param else ""
    shapes = json.loads((golden_data / f"reference_state_dict_keys{suffix}.json").read_text())
    generator = torch.Generator().manual_seed(3)
    state = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith(("queue_ptr", "num_batches_tracked")):
            state[name] = torch.full_like(state[name], 5, dtype=torch.int64)
    return ReSim(golden_config(request.param)), state


Spoiled = tuple[str, str]
FAULTS: list[Spoiled] = [
    ("missing", "1 missing (query.backbone.layer3.2.bn1.running_var)"),
    ("left over", "1 left over (module.optimizer)"),
    ("unknown parameter", "1 left over (module.encoder_k.layer5.weight)"),
    ("wrong shape", "1 of another shape (key.head.2.bias (7,) for (128,))"),
    ("larger queue", "1 of another shape (queue (512, 128) for (256, 128))"),
    ("flat queue", "1 of another shape (queue (32768,) for (256, 128))"),
    ("long pointer", "1 of another shape (queue_position (2,) for ())"),
]


def spoil(state: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    state = dict(state)
    if fault == "missing":
        del state["module.encoder_q.layer3.2.bn1.running_var"]
    elif fault == "left over":
        state["module.optimizer"] = torch.zeros(3)
    elif fault == "unknown parameter":
        state["module.encoder_k.layer5.weight"] = torch.zeros(3)
    elif fault == "wrong shape":
        state["module.encoder_k.fc.2.bias"] = torch.zeros(7)
    elif fault == "larger queue":
        state["module.queue"] = torch.zeros(128, 512)
    elif fault == "flat queue":
        state["module.queue"] = torch.zeros(128 * 256)
    elif fault == "long pointer":
        state["module.queue_ptr"] = torch.zeros(2, dtype=torch.int64)
    return state


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_a_state_that_does_not_fit_changes_nothing(
    fresh: tuple[ReSim, dict[str, Tensor]], fault: str, message: str
) -> None:
    model, state = fresh
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError) as error:
        load_published(model, spoil(state, fault))
    assert message in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_all_faults_are_reported_at_once(fresh: tuple[ReSim, dict[str, Tensor]]) -> None:
    model, state = fresh
    for fault, _ in FAULTS[:4]:
        state = spoil(state, fault)
    with pytest.raises(ValueError, match=r"1 missing .*; 2 left over .*; 1 of another shape"):
        load_published(model, state)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_published_entry_has_a_counterpart(fresh: tuple[ReSim, dict[str, Tensor]], prefix: str) -> None:
    model, state = copy.deepcopy(fresh)
    load_published(model, {prefix + name.removeprefix("module."): value for name, value in state.items()})
    loaded, names = model.state_dict(), recognise(state).model_names()
    assert len(loaded) == len(state)
    for name, value in state.items():
        ours = names[name]
        if ours == "queue":
            value = value.T
        assert torch.equal(loaded.pop(ours), value.reshape(()) if ours == "queue_position" else value), name
    assert not loaded


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("module.encoder_q.conv1.weight", "query.backbone.conv1.weight"),
        ("module.encoder_k.layer4.2.bn3.running_mean", "key.backbone.layer4.2.bn3.running_mean"),
        ("module.encoder_k.fc.2.bias", "key.head.2.bias"),
        ("module.encoder_q.fpn_lateral5{conv}.weight", "query.fpn.lateral5{conv}.weight"),
        ("module.encoder_k.fpn_output3{conv}.weight", "key.fpn.output3{conv}.weight"),
        ("module.queue", "queue"),
        ("module.queue_ptr", "queue_position"),
    ],
)
def test_published_names_and_ours(fresh: tuple[ReSim, dict[str, Tensor]], published: str, ours: str) -> None:
    model, state = fresh
    conv = ".0" if model.config.fpn_norm else ""  # before a norm
    assert recognise(state).model_names()[published.format(conv=conv)] == ours.format(conv=conv)


def test_a_state_dict_of_other_names_is_refused(fresh: tuple[ReSim, dict[str, Tensor]]) -> None:
    model, state = fresh
    query = {name.removeprefix("module.encoder_q."): value for name, value in state.items() if "encoder_q" in name}
    with pytest.raises(ValueError, match=r"none of the published names, such as encoder_q\.layer1\.0\.conv1\.weight"):
        load_published(model, query)
