"""What the demo promises: in its few minutes region features become useful, and more so than MoCo v2's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resim.demo import measure, probe_pairs
from resim.model.resim import ReSim
from resim.probes.correspondence import difference
from resim.training.checkpoints import load_checkpoint
from resim.training.config import read_recipe
from resim.training.log import read_metrics
from resim.views.folder import find_images


@pytest.mark.slow
def test_region_features_are_learned_and_better_than_those_of_moco_v2(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-m", "resim", "demo", "--out", str(out), "--pairs", "4096"]
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)

    recipe = read_recipe(out / "resim" / "config.json")
    pairs = probe_pairs(find_images([out / "scenes" / "held_out"]), recipe, seed=0)
    scores = {"untrained": measure(ReSim(recipe.model), pairs)}
    for name in ("resim", "moco-v2"):
        model = ReSim(read_recipe(out / name / "config.json").model)
        model.load_state_dict(load_checkpoint(out / name / "checkpoints" / "last.pt")["model"])
        scores[name] = measure(model, pairs)

    gain, low, _ = difference(scores["resim"]["P4"], scores["untrained"]["P4"])
    assert gain > 0.1
    assert low > 0
    gain, low, _ = difference(scores["resim"]["C4"], scores["moco-v2"]["C4"])
    assert gain > 0
    assert low > 0
    metrics = read_metrics(out / "resim" / "metrics.jsonl")
    for level in ("P4", "P3"):
        accuracy = [m[f"accuracy/{level}"] for m in metrics]
        assert np.mean(accuracy[-16:]) > 1.5 * np.mean(accuracy[:16])
