"""Curves: the panels, their chance lines, and the steps on the x axis."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from resim import recipes
from resim.draw.curves import draw_curves, running_mean, steps_done
from resim.draw.metric_panels import ReferenceLine, chance_lines, metric_panels, reference_lines
from resim.errors import UserError


def records(count: int) -> list[dict[str, float]]:
    return [
        {
            "step": i,
            "epoch_progress": i / 10,
            "loss/total": 12.0 - i * 0.1,
            "loss/instance": 7.0 - i * 0.05,
            "loss/P4": 5.0 - i * 0.05,
            "accuracy/instance": 0.01 * i,
            "correspondence/P4": 0.005 * i,
            "lr": 0.03,
            "images_per_second": 900.0,
            "data_wait": 0.02,
        }
        for i in range(count)
    ]


def write(path: Path, lines: list[dict[str, float]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    return path


def num_colours(path: Path) -> int:
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_curves_are_written_atomically(tmp_path: Path) -> None:
    out = tmp_path / "report" / "curves.png"
    assert draw_curves(write(tmp_path / "metrics.jsonl", records(60)), out, title="a run") == out
    assert num_colours(out) > 50
    assert [path.name for path in out.parent.iterdir()] == ["curves.png"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one line", "nan", "only nan", "few keys", "cut off"])
def test_curves_of_unfinished_and_broken_runs(tmp_path: Path, case: str) -> None:
    lines, tail = records(1 if case == "one line" else 5), ""
    if case == "nan":
        lines[2]["loss/total"] = math.nan
        lines[3]["loss/P4"] = math.inf
    elif case == "only nan":
        lines = [{"step": i, "loss/total": math.nan} for i in range(3)]
    elif case == "few keys":
        lines = [{"step": i, "lr": 0.1} for i in range(3)]
    elif case == "cut off":
        tail = '{"step": 5, "loss/to'
    draw_curves(write(tmp_path / "metrics.jsonl", lines, tail), tmp_path / "curves.png")
    assert num_colours(tmp_path / "curves.png") > 20


def test_the_x_axis_counts_completed_steps() -> None:
    lines: list[dict[str, object]] = [{"step": step, "epoch_progress": step / 4, "lr": 0.1} for step in range(6)]
    x, label = steps_done(lines)
    assert (x.tolist(), label) == ([1, 2, 3, 4, 5, 6], "steps (4 per epoch)")
    x, label = steps_done([{"step": step, "epoch_progress": step / 2.5} for step in range(3)])  # a detector's
    assert (x.tolist(), label) == ([1, 2, 3], "steps (2.5 per epoch)")
    x, label = steps_done([{"step": 7, "lr": 0.1}])
    assert (x.tolist(), label) == ([8], "steps")
    x, label = steps_done([{"epoch_progress": 0.5}, {"epoch_progress": 1.0}])  # a file without steps
    assert (x.tolist(), label) == ([0.5, 1.0], "epochs")


@pytest.mark.slow
def test_of_a_step_logged_twice_the_later_record_counts(tmp_path: Path) -> None:
    plain = draw_curves(write(tmp_path / "a.jsonl", records(8)), tmp_path / "a.png")
    before = [{**line, "loss/total": 99.0} for line in records(6)[4:]]
    resumed = [*records(4), *before, *records(8)[4:]]
    again = draw_curves(write(tmp_path / "b.jsonl", resumed), tmp_path / "b.png")
    assert plain.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no metrics yet"),
        ('{"step": 0, "lo', "contains no metrics yet"),
        ('{"step": 0}\n', "no metrics to draw"),
        ('oops\n{"step": 0, "lr": 1}\n', "line 1 is not JSON"),
        ("3\n", "line 1 is not a JSON object"),
    ],
)
def test_a_file_without_metrics_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "curves.png").exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read"):
        draw_curves(tmp_path / "none.jsonl", tmp_path / "curves.png")


def test_chance_is_one_positive_among_all_negatives() -> None:
    # P4 of a 128 px view has 8 x 8 cells, 6 x 6 means of 3 x 3, of the 32 images of the batch; P3 14 x 14, of the group
    chances = {line.key: line.value for line in reference_lines({"recipe": recipes.quick().to_json()})}
    assert chances == {
        "accuracy/instance": 1 / 257, "accuracy/P4": 1 / (1 + 32 * 36), "accuracy/P3": 1 / (1 + 32 * 196)
    }  # fmt: skip
    # at 224 px P4 has 12 x 12 means of all 256 images, P3 26 x 26 of the 32 of a group
    chances = {line.key: line.value for line in reference_lines({"recipe": recipes.resim_fpn().to_json()})}
    assert chances["accuracy/P4"] == 1 / (1 + 256 * 144)
    assert chances["accuracy/P3"] == 1 / (1 + 32 * 676)


@pytest.mark.parametrize("config", [{}, {"recipe": 3}, {"recipe": {"name": "x", "detector": {}}}])
def test_the_chance_of_other_runs_is_unknown(config: dict[str, object]) -> None:
    assert reference_lines(config) == []


def test_chance_is_the_accuracy_of_random_vectors() -> None:
    from resim.model.infonce import info_nce

    recipe = recipes.quick().to_json()
    recipe["model"] |= {"queue_size": 9}
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(20_000 + 20_000 + 9, 16, generator=generator), dim=1)
    accuracy = info_nce(vectors[:20_000], vectors[20_000:40_000], vectors[40_000:]).correct.double().mean()
    (chance,) = (line.value for line in reference_lines({"recipe": recipe}) if line.key == "accuracy/instance")
    assert chance == 0.1
    # tolerance: the 20,000 queries share nine random negatives, whose positions bias all of them
    assert float(accuracy) == pytest.approx(chance, abs=0.02)


def test_accuracy_on_regions_has_its_own_panel_with_chance() -> None:
    keys = ["loss/total", "accuracy/instance", "accuracy/P4", "accuracy/P3", "correspondence/P4", "gradient/norm", "lr"]
    recipe = recipes.quick().to_json()
    recipe["optim"] |= {"clip_norm": 2.5}
    references = [*reference_lines({"recipe": recipe}), *chance_lines([{"step": 0, "correspondence_chance/P4": 0.049}])]
    panels = {panel.title: panel for panel in metric_panels(keys, references)}
    assert list(panels) == [
        "Loss", "Accuracy on images", "Accuracy on regions", "Region correspondence", "Learning rate", "Gradient norm",
    ]  # fmt: skip
    regions = panels["Accuracy on regions"]
    assert regions.keys == ["accuracy/P4", "accuracy/P3"]
    assert [regions.reference_label(line) for line in regions.references] == [
        "chance, P4 (0.087 %)",
        "chance, P3 (0.016 %)",
    ]
    (chance,) = panels["Region correspondence"].references
    assert chance == ReferenceLine(label="chance", value=0.049, key="correspondence/P4")
    (threshold,) = panels["Gradient norm"].references
    assert panels["Gradient norm"].reference_label(threshold) == "clipping threshold (2.5)"
    assert [panel.large for panel in panels.values()] == [True, True, True, False, False, False]


def test_chance_is_drawn_if_the_config_is_next_to_the_metrics(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.jsonl", [{"step": i, "accuracy/instance": 0.01 * i} for i in range(50)])
    plain = np.asarray(Image.open(draw_curves(metrics, tmp_path / "plain.png")).convert("RGB")).astype(int)
    (tmp_path / "config.json").write_text(json.dumps({"recipe": recipes.quick().to_json()}))
    probes = [{"step": step, "correspondence/P4": 0.5, "correspondence_chance/P4": 0.04} for step in (0, 50)]
    marked = np.asarray(Image.open(draw_curves(metrics, tmp_path / "marked.png")).convert("RGB")).astype(int)
    assert (plain != marked).any(axis=-1).sum() > 100
    write(tmp_path / "probes.jsonl", probes)
    probed = np.asarray(Image.open(draw_curves(metrics, tmp_path / "probed.png")).convert("RGB"))
    assert probed.shape != marked.shape or (probed != marked).any()


def test_the_running_mean_excludes_nan() -> None:
    values = np.array([1.0, 3.0, math.nan, 5.0, 9.0])
    np.testing.assert_allclose(running_mean(values, 3), [2.0, 2.0, math.nan, 7.0, 7.0])
    np.testing.assert_array_equal(running_mean(values, 1), values)
