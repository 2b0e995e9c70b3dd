"""How many images a host's negatives are of: recorded, and compared where a run continues."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resim.distributed.processes import Processes
from resim.draw.metric_panels import reference_lines
from resim.errors import UserError
from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import OptimConfig, Recipe, RunConfig
from resim.training.node_images import check_node_images, count_node_images
from resim.training.pretrain import pretrain
from resim.views.config import ViewsConfig


def recipe(negatives: Any) -> Recipe:
    return Recipe(
        name="tiny",
        model=ModelConfig(
            backbone="resnet18", levels=(Level(name="P4", window=32, step=16, negatives=negatives),), fpn_width=8,
            dim=8, queue_size=8, group_size=2,
        ),
        views=ViewsConfig(image_size=64),
        optim=OptimConfig(epochs=2, batch_size=4),
    )  # fmt: skip


class Pretended(Processes):
    """Four processes, of which this one knows how many are on each host."""

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, 2, 2, 2] if value == 1 else [value] * 4


def test_the_images_of_a_host_are_a_share_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    four = Pretended(rank=0, count=4, device=torch.device("cpu"), cores=1)
    for processes_of_host, images in ((range(2), 2), (range(4), 4)):
        monkeypatch.setattr("resim.training.node_images.processes_of_host", lambda ranks=processes_of_host: ranks)
        assert count_node_images(recipe("node"), four) == {"node_images": images}
        assert count_node_images(recipe("all"), four) == count_node_images(recipe("group"), four) == {}
    monkeypatch.setattr("resim.training.node_images.processes_of_host", lambda: range(1))
    with pytest.raises(UserError, match="negatives=node on hosts with 1 and 2 processes"):
        count_node_images(recipe("node"), four)


def test_a_run_goes_on_with_as_many_images_on_each_host() -> None:
    check_node_images(None, {"node_images": 2})
    check_node_images({"node_images": 2}, {"node_images": 2})
    check_node_images({}, {})  # a checkpoint of an earlier version
    with pytest.raises(UserError, match="--resume with 4 images on each host, and the run began with 2"):
        check_node_images({"node_images": 2}, {"node_images": 4})


def test_chance_is_that_of_a_hosts_cells() -> None:
    for negatives, node, images in (("all", 2, 4), ("node", 2, 2), ("group", 4, 2)):
        lines = reference_lines({"recipe": recipe(negatives).to_json(), "node_images": node})
        chance = next(line.value for line in lines if line.key == "accuracy/P4")
        assert chance == 1 / (1 + 4 * images)  # 64 px have 4 x 4 positions, and 2 x 2 cells
    for damaged in ("2", None, 0, [2]):
        lines = reference_lines({"recipe": recipe("node").to_json(), "node_images": damaged})
        assert next(line.value for line in lines if line.key == "accuracy/P4") == 1 / (1 + 4 * 4)  # of the whole batch


def test_a_run_records_it_and_resumes_and_is_that_of_all_on_one_host(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    run = RunConfig(device="cpu", precision="float32", workers=0, picture_every=0, kernels="off", keep_memory=False)
    states = {}
    for negatives in ("all", "node"):
        out = tmp_path / negatives
        for resume in (False, True):
            settings = dataclasses.replace(run, out=out, resume=resume, stop_after=1)
            pretrain(recipe(negatives), settings, images, show=False)
        states[negatives] = load_checkpoint(out / "checkpoints" / "last.pt")
        config = json.loads((out / "config.json").read_text())
        assert config["recipe"]["model"]["levels"] == [
            f"P4:window=32,step=16,negatives={negatives},closed=false,weight=1"
        ]
        assert config.get("node_images") == states[negatives].get("node_images") == (4 if negatives == "node" else None)
    weights = [states[name]["model"] for name in ("all", "node")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert states["node"]["step"] == 2
