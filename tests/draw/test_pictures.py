"""Pictures show what was computed: each test looks for it in the pixels."""

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
from resim.draw.metric_panels import Mark, marks_of, metric_panels, stored_marks
from resim.draw.windows import (
    HEAD_PX,
    MARGIN,
    PAIR_GAP,
    PALETTE,
    LevelWindows,
    PairPicture,
    choose_windows,
    draw_pairs,
)
from resim.errors import UserError

GREY = np.full((100, 100, 3), 128, dtype=np.uint8)
ORANGE = PALETTE[0]


def grid(view: int, side: int, stride: int) -> np.ndarray:
    starts = range(0, view - side, stride)
    return np.array([(x, y, x + side, y + side) for y in starts for x in starts], dtype=np.float64)


def one_window(query: tuple[float, ...], key: tuple[float, ...], *, valid: bool) -> PairPicture:
    level = LevelWindows(name="P4", query=np.array([query]), key=np.array([key]), valid=np.array([valid]))
    return PairPicture(query=GREY, key=GREY, levels=(level,))


def views(pair: PairPicture, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Both enlarged views, cut out of a sheet of one pair without title and source."""
    sheet = np.asarray(draw_pairs([pair], scale=scale))
    side, top = 100 * scale, MARGIN + HEAD_PX
    left = MARGIN + side + PAIR_GAP
    return (
        sheet[top : top + side, MARGIN : MARGIN + side],
        sheet[top : top + side, left : left + side],
    )


def test_a_window_is_drawn_at_its_scaled_place_in_the_same_colour_in_both_views() -> None:
    query, key = views(one_window((10, 20, 60, 70), (30, 5, 80, 95), valid=True), scale=3)
    # the coloured line lies 1 px inside the outer rim; the lower edge is free of the number
    assert tuple(query[70 * 3 - 3, 35 * 3]) == ORANGE
    assert tuple(query[45 * 3, 10 * 3 + 2]) == ORANGE
    assert tuple(query[45 * 3, 60 * 3 - 3]) == ORANGE
    assert tuple(key[95 * 3 - 3, 55 * 3]) == ORANGE
    assert tuple(key[50 * 3, 30 * 3 + 2]) == ORANGE
    for view, (x0, y0, x1, y1) in ((query, (30, 60, 180, 210)), (key, (90, 15, 240, 285))):
        drawn_y, drawn_x = np.nonzero((view != 128).any(axis=2))
        assert (drawn_x.min(), drawn_y.min(), drawn_x.max() + 1, drawn_y.max() + 1) == (x0, y0, x1, y1)


def test_by_default_a_view_is_336_px_wide() -> None:
    sheet = draw_pairs([PairPicture(query=GREY, key=GREY, levels=())])
    assert sheet.width == 2 * 336 + PAIR_GAP + 2 * MARGIN


@pytest.mark.parametrize("valid", [True, False])
def test_valid_windows_are_solid_and_invalid_ones_have_gaps(valid: bool) -> None:
    query, key = views(one_window((10, 20, 60, 70), (30, 20, 80, 70), valid=valid), scale=3)
    for view, x0 in ((query, 30), (key, 90)):
        lower_edge = (view[207, x0 + 1 : x0 + 149] == ORANGE).all(axis=1)
        gaps = int((np.diff(lower_edge.astype(int)) == -1).sum())
        assert (gaps == 0) == valid
        assert valid or gaps >= 4
        assert lower_edge.any()


def test_parts_outside_the_key_view_are_not_drawn() -> None:
    _, key = views(one_window((10, 20, 60, 70), (70, 20, 120, 70), valid=False), scale=3)
    assert (key[:, : 70 * 3] == 128).all()
    assert not (key[:, 70 * 3 :] == 128).all()
    _, key = views(one_window((10, 20, 60, 70), (100, 20, 150, 70), valid=False), scale=3)
    assert (key == 128).all()


@pytest.mark.parametrize(
    ("view", "side", "stride", "count"), [(224, 48, 32, 9), (224, 32, 24, 16), (128, 48, 32, 4), (64, 48, 32, 1)]
)
def test_chosen_windows_do_not_overlap(view: int, side: int, stride: int, count: int) -> None:
    windows = grid(view, side, stride)
    valid = windows[:, 0] >= 32  # the left columns are lost
    level = LevelWindows(name="P4", query=windows, key=windows, valid=valid)
    chosen = choose_windows(level)
    assert len(chosen) == len(set(chosen.tolist())) == count
    corners = windows[chosen, :2]
    apart = np.abs(corners[:, None] - corners[None]).max(axis=2) + 1e9 * np.eye(count)
    assert (apart >= side).all()
    if count > 1:
        assert valid[chosen].any()
        assert not valid[chosen].all()


def test_the_only_valid_window_is_among_the_chosen() -> None:
    windows = grid(224, 48, 32)
    for i in range(len(windows)):
        valid = np.arange(len(windows)) == i
        assert i in choose_windows(LevelWindows(name="P4", query=windows, key=windows, valid=valid))


def test_views_without_levels_or_with_an_empty_level_are_shown_bare() -> None:
    query, key = views(PairPicture(query=GREY, key=GREY // 2, levels=()), scale=2)
    assert (query == 128).all()
    assert (key == 64).all()
    none = LevelWindows(name="P4", query=np.zeros((0, 4)), key=np.zeros((0, 4)), valid=np.zeros(0, dtype=bool))
    query, _ = views(PairPicture(query=GREY, key=GREY, levels=(none,)), scale=2)
    assert (query == 128).all()


def test_a_sheet_with_sources_titles_and_unlike_rows_is_the_same_twice() -> None:
    windows = grid(100, 24, 16)
    level = LevelWindows(name="P3", query=windows, key=windows * 0.5 - 20, valid=windows[:, 0] >= 40)
    pairs = [
        PairPicture(
            query=GREY,
            key=GREY,
            levels=(level, level),
            title="a very long title " * 30,
            source=np.full((50, 120, 3), 200, dtype=np.uint8),
            crops=np.array([[0, 0, 60, 50], [30, 5, 120, 45]], dtype=np.float64),
        ),
        PairPicture(query=GREY, key=GREY, levels=()),
    ]
    first, second = (np.asarray(draw_pairs(pairs)) for _ in range(2))
    assert np.array_equal(first, second)
    assert (first[:MARGIN] == 255).all()
    assert (first[:, -MARGIN:] == 255).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        draw_pairs([])
    with pytest.raises(ValueError, match="scale must be 1 or more"):
        draw_pairs([PairPicture(query=GREY, key=GREY, levels=())], scale=0)
    with pytest.raises(ValueError, match="key view must be"):
        draw_pairs([PairPicture(query=GREY, key=GREY[:50], levels=())])
    windows = LevelWindows(name="P4", query=np.zeros((2, 4)), key=np.zeros((3, 4)), valid=np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match="P4: query and key"):
        draw_pairs([PairPicture(query=GREY, key=GREY, levels=(windows,))])


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
def test_curves_are_written_in_one_go(tmp_path: Path) -> None:
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


def test_detectors_and_pre_trainings_count_the_steps_done() -> None:
    lines: list[dict[str, object]] = [{"step": step, "epoch_progress": step / 4, "lr": 0.1} for step in range(6)]
    x, label = steps_done(lines)
    assert (x.tolist(), label) == ([1, 2, 3, 4, 5, 6], "steps done (an epoch has 4)")
    x, label = steps_done([{"step": step, "epoch_progress": step / 2.5} for step in range(3)])  # a detector's
    assert (x.tolist(), label) == ([1, 2, 3], "steps done (an epoch has 2.5)")
    x, label = steps_done([{"step": 7, "lr": 0.1}])
    assert (x.tolist(), label) == ([8], "steps done")
    x, label = steps_done([{"epoch_progress": 0.5}, {"epoch_progress": 1.0}])  # a file without steps
    assert (x.tolist(), label) == ([0.5, 1.0], "epochs")


@pytest.mark.slow
def test_a_step_written_twice_counts_once_and_the_later_line_wins(tmp_path: Path) -> None:
    plain = draw_curves(write(tmp_path / "a.jsonl", records(8)), tmp_path / "a.png")
    before = [{**line, "loss/total": 99.0} for line in records(6)[4:]]
    resumed = [*records(4), *before, *records(8)[4:]]
    again = draw_curves(write(tmp_path / "b.jsonl", resumed), tmp_path / "b.png")
    assert plain.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no metrics yet"),
        ('{"step": 0, "lo', "holds no metrics yet"),
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
    chances = {mark.key: mark.value for mark in marks_of({"recipe": recipes.quick().to_json()})}
    assert chances == {
        "accuracy/instance": 1 / 257, "accuracy/P4": 1 / (1 + 32 * 36), "accuracy/P3": 1 / (1 + 32 * 196)
    }  # fmt: skip
    # at 224 px P4 has 12 x 12 means of all 256 images, P3 26 x 26 of the 32 of a group
    chances = {mark.key: mark.value for mark in marks_of({"recipe": recipes.resim_fpn().to_json()})}
    assert chances["accuracy/P4"] == 1 / (1 + 256 * 144)
    assert chances["accuracy/P3"] == 1 / (1 + 32 * 676)


@pytest.mark.parametrize("config", [{}, {"recipe": 3}, {"recipe": {"name": "x", "detector": {}}}])
def test_of_other_runs_no_chance_is_known(config: dict[str, object]) -> None:
    assert marks_of(config) == []


def test_chance_is_what_a_model_scores_whose_answers_are_drawn() -> None:
    from resim.model.infonce import info_nce

    recipe = recipes.quick().to_json()
    recipe["model"] |= {"queue_size": 9}
    draws = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(20_000 + 20_000 + 9, 16, generator=draws), dim=1)
    right = info_nce(vectors[:20_000], vectors[20_000:40_000], vectors[40_000:]).correct.double().mean()
    (chance,) = (mark.value for mark in marks_of({"recipe": recipe}) if mark.key == "accuracy/instance")
    assert chance == 0.1
    # 20,000 answers against the same nine negatives, whose own places on the sphere favour or hinder all of them
    assert float(right) == pytest.approx(chance, abs=0.02)


def test_regions_have_a_panel_of_their_own_with_chance() -> None:
    keys = ["loss/total", "accuracy/instance", "accuracy/P4", "accuracy/P3", "correspondence/P4", "gradient/norm", "lr"]
    recipe = recipes.quick().to_json()
    recipe["optim"] |= {"clip_norm": 2.5}
    marks = [*marks_of({"recipe": recipe}), *stored_marks([{"step": 0, "correspondence_chance/P4": 0.049}])]
    panels = {panel.title: panel for panel in metric_panels(keys, marks)}
    assert list(panels) == [
        "Losses", "Accuracy, images", "Accuracy, regions", "Regions found again in another view", "Learning rate",
        "Gradient norm",
    ]  # fmt: skip
    regions = panels["Accuracy, regions"]
    assert regions.keys == ["accuracy/P4", "accuracy/P3"]
    assert [regions.mark_label(mark) for mark in regions.marks] == ["chance, P4 (0.087 %)", "chance, P3 (0.016 %)"]
    (found,) = panels["Regions found again in another view"].marks
    assert found == Mark(label="chance", value=0.049, key="correspondence/P4")
    (clipped,) = panels["Gradient norm"].marks
    assert panels["Gradient norm"].mark_label(clipped) == "clipped above (2.5)"
    assert [panel.large for panel in panels.values()] == [True, True, True, False, False, False]


def test_chance_is_drawn_where_the_config_stands_beside_the_metrics(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.jsonl", [{"step": i, "accuracy/instance": 0.01 * i} for i in range(50)])
    plain = np.asarray(Image.open(draw_curves(metrics, tmp_path / "plain.png")).convert("RGB")).astype(int)
    (tmp_path / "config.json").write_text(json.dumps({"recipe": recipes.quick().to_json()}))
    probes = [{"step": step, "correspondence/P4": 0.5, "correspondence_chance/P4": 0.04} for step in (0, 50)]
    marked = np.asarray(Image.open(draw_curves(metrics, tmp_path / "marked.png")).convert("RGB")).astype(int)
    assert (plain != marked).any(axis=-1).sum() > 100
    write(tmp_path / "probes.jsonl", probes)
    probed = np.asarray(Image.open(draw_curves(metrics, tmp_path / "probed.png")).convert("RGB"))
    assert probed.shape != marked.shape or (probed != marked).any()


def test_the_running_mean_leaves_nan_out() -> None:
    values = np.array([1.0, 3.0, math.nan, 5.0, 9.0])
    np.testing.assert_allclose(running_mean(values, 3), [2.0, 2.0, math.nan, 7.0, 7.0])
    np.testing.assert_array_equal(running_mean(values, 1), values)
