"""The arithmetic of a study, and a minimal study: rows, counts and tables; finished parts are not repeated."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from types import ModuleType

import detecting
import methods
import numpy as np
import pretraining
import probing
import pytest
import study
import tables
import torch
from records import Row, append_rows, read_counts, read_rows, write_counts

from resim.datasets.coco import read_coco
from resim.errors import StoppedError, UserError
from resim.exit_codes import FINISHED, STOPPED
from resim.probes import label_maps
from resim.probes.label_maps import LabelMaps
from resim.probes.labels import ProbeImages
from resim.runs.config import differences
from resim.scenes.scenes import CLASSES, write_scenes


def row(
    method: str, seed: int, pairs: int, value: float, *, probe: str = "segmentation", measure: str = "miou"
) -> Row:  # fmt: skip
    return Row(method=method, seed=seed, pairs=pairs, value=value, probe=probe, level="C4", measure=measure)


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [row("resim-fpn", 1, 640, 0.25), Row(method="moco-v2", seed=0, pairs=0, probe="all", status='no, "none"')]
    append_rows(tmp_path / "out" / "results.csv", rows[:1])
    append_rows(tmp_path / "out" / "results.csv", rows[1:])
    assert list(read_rows(tmp_path / "out" / "results.csv")) == rows


def test_counts_are_added_to_those_of_the_same_network(tmp_path: Path) -> None:
    write_counts(tmp_path, "a-seed0-64", {"segmentation/C4": np.arange(3)})
    write_counts(tmp_path, "a-seed0-64", {"detector/frozen/box": np.arange(2)})
    result = read_counts(tmp_path / "counts" / "a-seed0-64.npz")
    assert {name: array.tolist() for name, array in result.items()} == {
        "segmentation/C4": [0, 1, 2], "detector/frozen/box": [0, 1],
    }  # fmt: skip


def test_the_methods_differ_in_their_levels_only() -> None:
    recipes = [
        methods.make_recipe(name, methods.SIZES["cpu"], images=1000, pairs=50_000, seed=3) for name in methods.LEVELS
    ]
    plain = [
        dataclasses.replace(recipe, name="", model=dataclasses.replace(recipe.model, levels=())) for recipe in recipes
    ]
    assert plain[0] == plain[1] == plain[2]
    assert len({recipe.model.levels for recipe in recipes}) == 3
    assert recipes[0].model.queue_size == 512  # the largest power of two that 1,000 images fill
    assert recipes[0].optim.epochs == 52  # 50,000 / (15 batches of 64)


def test_a_variant_differs_in_one_setting() -> None:
    def settings(method: str) -> list[str]:
        base, variant = (
            methods.make_recipe(name, methods.SIZES["cpu"], images=1000, pairs=640, seed=3)
            for name in ("resim-fpn", method)
        )
        return differences(base, variant)

    assert settings("resim-fpn+queue-size=256") == ["--queue-size 512 -> 256"]
    assert settings("resim-fpn+crop-area=0.4,1") == ["--crop-area 0.2 1.0 -> 0.4 1"]
    assert settings("resim-fpn+lr=3e-4+schedule=constant") == [
        "--lr 0.001 -> 0.0003", "--schedule cosine-per-step -> constant",
    ]  # fmt: skip
    assert len(settings("resim-fpn+levels=P4")) == 1
    with pytest.raises(KeyError, match="--no-such"):
        settings("resim-fpn+no-such=1")


def test_the_rows_at_the_ends_are_those_with_the_most_pairs() -> None:
    rows = [row("a", 0, 64, 0.1), row("a", 0, 128, 0.2), row("a", 1, 64, 0.3)]
    assert [one.value for one in tables.final_rows(rows)] == [0.2, 0.3]


def test_a_difference_is_paired_by_seed() -> None:
    """Accuracies of 3/4 and 1/2 with seed 0, of 1 and 1/4 with seed 1; a third seed that only one method has."""
    ones = np.ones((8, 1), dtype=int)
    first = {0: np.hstack([3 * ones, 4 * ones]), 1: np.hstack([4 * ones, 4 * ones]), 2: np.hstack([0 * ones, ones])}
    second = {0: np.hstack([2 * ones, 4 * ones]), 1: np.hstack([ones, 4 * ones])}
    result = tables.difference(first, second, "accuracy")
    assert result is not None
    assert result.value == pytest.approx(100 * (0.25 + 0.75) / 2)
    assert result.num_seeds == 2
    assert not result.is_sure  # two seeds 50 points apart are not conclusive
    assert tables.difference(first, {5: second[0]}, "accuracy") is None


def test_the_interval_of_a_difference_over_images_is_binomial() -> None:
    """One seed; a quarter of 400 images differ by 1: the interval is 25 +- 1.96 sqrt(.25 * .75 / 400) percent."""
    right = np.zeros(400, dtype=int)
    right[:100] = 1
    windows = np.ones(400, dtype=int)
    result = tables.difference(
        {0: np.stack([right, windows], 1)}, {0: np.stack([0 * right, windows], 1)}, "accuracy"
    )  # fmt: skip
    assert result is not None
    half = 196 * np.sqrt(0.25 * 0.75 / 400)
    # with 300 samples the bounds of the interval have an error of about a tenth of the half width
    np.testing.assert_allclose([result.low, result.high], [25 - half, 25 + half], atol=0.25 * half)
    assert str(result).startswith("+25.0 (")


def test_a_table_begins_with_untrained_and_ends_with_the_differences() -> None:
    counts: dict[tables.Key, np.ndarray] = {}
    rows = []
    for method, right in (("resim-fpn", 9), ("untrained", 3), ("moco-v2", 6)):
        rows.append(row(method, 0, 0 if method == "untrained" else 64, right / 10, probe="p", measure="accuracy"))
        counts[method, 0, "p", "C4"] = np.array([[right, 10]] * 5)
    assert tables.table(rows, counts, "p", "accuracy").splitlines() == [
        "| method | C4 |",
        "| --- | ---: |",
        "| untrained | 30.0 |",
        "| moco-v2 | 60.0 |",
        "| resim-fpn | 90.0 |",
        "| moco-v2 minus untrained | +30.0 (+30.0 to +30.0) |",
        "| resim-fpn minus untrained | +60.0 (+60.0 to +60.0) |",
        "| resim-fpn minus moco-v2 | +30.0 (+30.0 to +30.0) |",
    ]
    assert tables.table(rows, counts, "p", "accuracy", minus="moco-v2").splitlines()[5:] == [
        "| untrained minus moco-v2 | -30.0 (-30.0 to -30.0) |",
        "| resim-fpn minus moco-v2 | +30.0 (+30.0 to +30.0) |",
    ]


def test_choosing_classes_keeps_all_images_and_drops_other_objects(tmp_path: Path) -> None:
    data = read_coco(write_scenes(tmp_path / "scenes", 6, seed=1, width=64, height=48))
    objects = sum(int((record.labels == 2).sum()) for record in data.records)
    kept = detecting.choose_classes(data, [CLASSES[1]])
    assert (len(kept), kept.num_objects, kept.classes, kept.category_ids) == (6, objects, (CLASSES[1],), (2,))
    merged = detecting.choose_classes(data, [], "shape")
    assert (merged.num_objects, merged.classes) == (data.num_objects, ("shape",))
    assert all((record.labels == 1).all() for record in merged.records)
    with pytest.raises(UserError, match="no class 'dog'; it has"):
        detecting.choose_classes(data, ["dog"])


def test_an_image_of_one_class_alone_has_that_class() -> None:
    """Void pixels and the background are no classes; images of two classes and of none are left out."""
    void = label_maps.VOID
    labels = torch.tensor([[[0, 2], [2, void]], [[1, 2], [0, 0]], [[0, 0], [void, 0]], [[3, 3], [3, 3]]])
    images = ProbeImages(source="masks", kind="unlabelled", refs=["a", "b", "c", "d"], labels=None, classes=())
    maps = LabelMaps(
        images=images, labels=labels.to(torch.int16), classes=("background", "cat", "cow", "dog"), background=0
    )
    single = probing.classify_images(maps)
    assert (list(single.refs), single.classes) == (["a", "d"], ("cat", "cow", "dog"))
    assert single.labels is not None
    assert single.labels.tolist() == [1, 2]


@pytest.mark.parametrize("program", [study, pretraining])
@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_study_with_the_code_of_a_stopped_run(
    program: ModuleType,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Outside a training it ends the study, inside one the training is saved and ends (0)."""

    def stop(*arguments: object) -> None:
        if number:
            signal.raise_signal(number)
        raise StoppedError("stopped in a run")

    monkeypatch.setattr(program, "pretrain_one", stop)
    words = [str(tmp_path), *(["--labels", "masks"] if program is study else []), "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["program.py", *words])
    assert program.main() == STOPPED
    line = "program.py: out: stopped: finished parts and checkpoints are kept; the same command goes on\n"
    assert capsys.readouterr().err == line


@pytest.mark.slow
def test_a_minimal_study_is_run_once(
    thin_resnets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two methods, one epoch each, all probes, two regimes of detectors; the second run of the command does nothing."""
    monkeypatch.setitem(methods.SIZES, "cpu", methods.Size("resnet18", 64, 4, 8, (0.1, 1.0)))
    train = write_scenes(tmp_path / "train", 8, seed=1, width=64, height=64)
    test = write_scenes(tmp_path / "test", 8, seed=2, width=64, height=64)
    command = [
        "study.py", str(train.parent / "images"), "--labels", str(train), "--test-labels", str(test),
        "--detect", str(train), "--test-detect", str(test), "--detect-steps", "2", "--merge", "shape",
        "--regimes", "frozen", "frozen+fpn", "--methods", "moco-v2", "resim-fpn", "--seeds", "0", "--pairs", "8",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    monkeypatch.setattr(methods, "GROUP", 2)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", command)
        assert study.main() == FINISHED
    rows = list(read_rows(tmp_path / "out" / "results.csv"))
    assert {one.status for one in rows if one.probe != "classes"} == {"ok"}
    assert all(one.status.startswith("no probes of image classes: ") for one in rows if one.probe == "classes")
    assert {(one.method, one.pairs) for one in rows} == {("untrained", 0), ("moco-v2", 8), ("resim-fpn", 8)}
    keys = [(one.method, one.seed, one.pairs, one.probe, one.level, one.measure) for one in rows]
    assert len(keys) == len(set(keys))
    detectors = {(one.method, one.probe) for one in rows if one.probe.startswith("detector/")}
    assert detectors == {
        ("untrained", "detector/frozen"), ("moco-v2", "detector/frozen"), ("resim-fpn", "detector/frozen"),
        ("untrained", "detector/frozen+fpn"), ("resim-fpn", "detector/frozen+fpn"),
    }  # fmt: skip
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "out")])
    tables.main()
    printed = capsys.readouterr().out
    assert "| resim-fpn minus untrained |" in printed
    assert "### detector/frozen+fpn, AP, percent" in printed
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
