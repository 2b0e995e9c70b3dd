"""Cityscapes' average precision, by its own scripts."""

from __future__ import annotations

import errno
import math
import sys
from pathlib import Path

import pytest

from detection_data import (
    corners,
    polygons,
    truth_as_results,
    write_cityscapes,
)
from needs import need
from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.records import DetectionData
from resim.errors import UserError
from resim.scores.cityscapes import _scratch, cityscapes_scores
from resim.scores.coco import coco_scores

STREET = polygons(
    [
        ("road", corners(0, 40, 99, 79)),
        ("car", corners(10, 30, 39, 49)),
        ("car", corners(50, 30, 69, 49)),
        ("persongroup", corners(80, 10, 94, 24)),
        ("person", corners(0, 0, 14, 14)),
        ("rider", corners(90, 60, 94, 69)),  # 50 pixels: too few to count
    ]
)


@pytest.fixture
def street(tmp_path: Path) -> DetectionData:
    return read_cityscapes(
        write_cityscapes(tmp_path, {"ulm_000000_000019": STREET, "ulm_000000_000020": STREET}), "val"
    )


def test_scores_equal_those_of_the_official_scripts(
    street: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("cityscapesscripts", "Cityscapes' AP by its own scripts", "cityscapes")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    results = truth_as_results(street)
    scores = cityscapes_scores(street, results)
    assert scores.values == pytest.approx({"AP": 1, "AP50": 1})
    assert scores.per_class["car"] == scores.per_class["person"] == 1  # the group is ignored
    assert math.isnan(scores.per_class["rider"])
    # two of four cars, all right: a recall of 1/2 at precision 1
    left = [entry for entry in results if entry["category_id"] != 26 or entry["bbox"][0] == 10]
    assert cityscapes_scores(street, left).per_class["car"] == pytest.approx(0.5)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_scripts_are_reported_with_the_command_that_installs_them(
    street: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
    with pytest.raises(UserError, match=r"pip install '\.\[cityscapes\]' in resim's clone"):
        cityscapes_scores(street, truth_as_results(street))


def test_masks_and_boxes_can_be_scored_by_coco(street: DetectionData) -> None:
    scores = coco_scores(street, truth_as_results(street, with_ignored=False), ("bbox", "segm"))
    assert scores["bbox"].values["AP"] == scores["segm"].values["AP"] == pytest.approx(1)


def test_a_full_disk_and_an_annotation_that_cannot_be_read_are_distinct(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    message = r"its temporary files there \(No space left on device\): set TMPDIR"
    with pytest.raises(UserError, match=message), _scratch():
        raise full
    with pytest.raises(UserError, match=r"/gtInstances\.json: .* its temporary files"), _scratch() as folder:
        raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/gtInstances.json")
    unreadable = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.json"))
    with pytest.raises(PermissionError) as raised, _scratch():
        raise unreadable
    assert raised.value is unreadable
