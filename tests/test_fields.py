"""Values from a file or from Python are checked like those of the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

from resim import recipes
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.fields import Above, AtLeast, AtMost, Below, Share, check_fields
from resim.regions.level import Level
from resim.runs.config import OptimConfig, Recipe, RunConfig, read_recipe, read_run_settings
from resim.runs.lock import lock_folder


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("views", "flip", "both", "flip 'both': must be one of shared, independent, none"),
        ("views", "photometric_order", "jitter-blur", "photometric-order 'jitter-blur': must be one of"),
        ("optim", "schedule", "linear", "schedule 'linear': must be one of cosine, cosine-per-step, constant"),
        ("model", "fpn_norm", "no", "fpn-norm 'no': must be true or false"),
        ("optim", "epochs", 1.5, "epochs 1.5: must be a whole number"),
        ("optim", "epochs", True, "epochs True: must be a whole number"),
        ("optim", "lr", "0.1", "lr '0.1': must be a finite number"),
        ("optim", "seed", 2**64, "seed 18446744073709551616: must be below"),
        ("views", "crop_area", [0.2], "must be 2 finite numbers"),
        ("model", "queue_size", 10**13, "queue-size 10000000000000: must be at most"),
        ("model", "backbone", 50, "backbone 50: must be text"),
    ],
)
def test_a_recipe_file_with_a_wrong_value_is_refused(
    tmp_path: Path, part: str, name: str, value: Any, message: str
) -> None:
    data = recipes.quick().to_json()
    data[part][name] = value
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as refused:
        read_recipe(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_recipe_and_default_passes() -> None:
    for make in recipes.RECIPES.values():
        recipe = make()
        for part in (recipe, recipe.model, recipe.views, recipe.optim, *recipe.model.levels):
            check_fields(part)
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    check_fields(RunConfig())


def test_python_values_are_checked_too() -> None:
    with pytest.raises(ValueError, match="precision 'fp16': must be one of auto, float32, bf16"):
        RunConfig(precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level P4: window 48.5: must be a whole number"):
        Level(name="P4", window=48.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"out 'runs': must be a Path or a NoneType"):
        RunConfig(out="runs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"levels .*: must be a tuple of Level"):
        dataclasses.replace(recipes.quick().model, levels=["P4"])  # type: ignore[list-item]


@dataclasses.dataclass(frozen=True)
class Bounded:
    """One field for each kind of bound."""

    count: Annotated[int, AtLeast(1), AtMost(8, "px")] = 1
    rate: Annotated[float, Above(0), Below(1)] = 0.5
    pair: tuple[Share, Annotated[float, AtLeast(2)]] = (0.0, 2.0)
    many: tuple[Annotated[int, AtMost(3)], ...] = ()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "count 0: must be at least 1"),
        ("count", 9, "count 9: must be at most 8 px"),
        ("count", 1.0, "count 1.0: must be a whole number"),
        ("rate", 0.0, "rate 0.0: must be above 0"),
        ("rate", 1, "rate 1: must be below 1"),
        ("rate", float("nan"), "rate nan: must be a finite number"),
        ("pair", (1.5, 2.0), "pair 1.5 2.0: each must be at most 1"),
        ("pair", (1.0, 1.0), "pair 1.0 1.0: each must be at least 2"),
        ("pair", (0.0, 2.0, 2.0), "pair (0.0, 2.0, 2.0): must be 2 finite numbers"),
        ("many", (3, 4), "many 3 4: each must be at most 3"),
        ("many", ("a",), "many ('a',): must be a tuple of int"),
        ("rate", 10**310, f"rate 1{'0' * 199}...: must be a finite number"),
    ],
)
def test_a_value_beyond_a_bound_is_reported(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_fields(Bounded(**{field: value}))
    assert str(refused.value) == message


def test_a_number_that_python_does_not_print_is_reported() -> None:
    for field, expected in (("rate", "a finite number"), ("count", "at most 8")):
        with pytest.raises(ValueError, match=f"{field} with a number of thousands of digits: must be {expected}"):
            check_fields(Bounded(**{field: 10**5000}))


@pytest.mark.parametrize(
    "values", [{"count": 8}, {"rate": 0.999}, {"pair": (1.0, 2.0)}, {"pair": (0, 5)}, {"many": (3, -9)}]
)
def test_a_value_on_a_closed_bound_passes(values: dict[str, Any]) -> None:
    check_fields(Bounded(**values))


def test_one_image_on_one_cell_has_no_batch_statistics() -> None:
    quick = recipes.quick()
    model = dataclasses.replace(quick.model, group_size=1, levels=(Level(name="P3", window=8, step=8),))
    with pytest.raises(ValueError, match="group-size 1: BatchNorm needs more than one value"):
        dataclasses.replace(
            quick, model=model, views=dataclasses.replace(quick.views, image_size=32), optim=OptimConfig(batch_size=2)
        )


def test_a_resumed_run_keeps_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"run": {"picture_every": 0, "groups_at_a_time": 2, "workers": 7, "device": "cpu"}}))
    settings = read_run_settings(path)
    assert (settings.picture_every, settings.groups_at_a_time) == (0, 2)
    assert (settings.workers, settings.device) == (-1, "auto")  # these are chosen for the machine


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    alone = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    out = tmp_path / "run"
    with lock_folder(out, alone), pytest.raises(UserError, match="another run uses it"), lock_folder(out, alone):
        pass
    assert not out.exists()  # nothing was written, nothing stays
    out.mkdir()
    (out / "kept.txt").write_text("mine")
    with lock_folder(out, alone):
        pass
    assert [path.name for path in out.iterdir()] == ["kept.txt"]
