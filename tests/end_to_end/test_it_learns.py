"""What the demo promises: in its few minutes region features become useful, and more so than MoCo v2's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resim.demo.images import drawn_scenes
from resim.demo.sizes import Sizes
from resim.demo.story import demo_recipes, probe
from resim.probes.suite import difference
from resim.training.log import read_metrics


@pytest.mark.slow
def test_region_features_are_learned_and_better_than_those_of_moco_v2(tmp_path: Path) -> None:
    images = drawn_scenes(tmp_path, seed=0, sizes=Sizes(held_out=128))
    for recipe in demo_recipes(images.count, pairs=3072, seed=0):
        file = tmp_path / f"{recipe.name}.json"
        file.write_text(json.dumps(recipe.to_json()))
        words = ["pretrain", str(images.train), "--recipe", str(file), "--out", str(tmp_path / recipe.name)]
        command = [sys.executable, "-m", "resim", *words, "--keep-every", "0", "--picture-every", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    scores = probe(tmp_path, images, 0, lambda done, of: None)

    gained = difference(
        scores["resim"]["correspondence", "both", "P4"], scores["random"]["correspondence", "both", "P4"]
    )
    assert gained is not None
    assert gained[0] > 0.1
    assert gained[1] > 0
    ahead = difference(
        scores["resim"]["correspondence", "both", "C4"], scores["moco-v2"]["correspondence", "both", "C4"]
    )
    assert ahead is not None
    assert ahead[0] > 0
    assert ahead[1] > 0
    metrics = read_metrics(tmp_path / "resim" / "metrics.jsonl")
    for level in ("P4", "P3"):
        accuracy = [m[f"accuracy/{level}"] for m in metrics]
        assert np.mean(accuracy[-16:]) > np.mean(accuracy[:16])
