"""Label files that are made to harm: one line, exit code 2, and no time or memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resim.cli.main import main
from resim.datasets import coco
from resim.datasets.annotation_values import as_segmentation, finite_numbers
from resim.datasets.coco import read_coco
from resim.datasets.layouts import read_detection
from resim.datasets.voc_xml import parse_xml
from resim.errors import UserError
from resim.runs.config import read_recipe

DEEP = 200_000


def save(folder: Path) -> Path:
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    return folder


def write_coco(folder: Path, **annotation: Any) -> Path:
    save(folder)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | annotation,
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


@pytest.mark.parametrize("text", ["[" * DEEP + "]" * DEEP, '{"images":' * DEEP, '{"images": [' + "[" * DEEP])
def test_a_coco_file_nested_too_deeply_is_one_line_and_exit_code_2(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coco.json").write_text(text)
    assert main(["detect", "train", str(tmp_path / "coco.json"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "coco.json: is not a valid JSON file (its lists and objects are nested too deeply)" in line


def test_a_recipe_nested_too_deeply_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"recipe":' + "[" * DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        read_recipe(tmp_path / "config.json")
    assert main(["pretrain", str(tmp_path), "--recipe", str(tmp_path / "config.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nested too deeply" in line


def test_a_text_in_an_annotation_that_is_nested_too_deeply_is_a_fault(tmp_path: Path) -> None:
    data = read_detection(write_coco(tmp_path, bbox="[" * DEEP))
    assert data.num_objects == 1
    assert data.repairs.counts == {"no-area": 1, "no-box": 1}


def test_a_yaml_file_nested_too_deeply_or_of_references_is_one_line(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "data.yaml"
    path.write_text("train: .\nnames: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(UserError, match=r"data.yaml: not a valid YAML file \(it is nested too deeply\)"):
        read_detection(path)
    references = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]  # 9 ** 30 texts, if they were written out
    references += [f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 30)]
    for last in ("names: [*a29]\ntrain: .", "names: {0: *a29}\ntrain: .", "names: [x]\ntrain: *a29"):
        path.write_text("\n".join([*references, last]))
        with pytest.raises(UserError, match=r"data.yaml: ") as error:
            read_detection(path)
        assert len(str(error.value)) < 1000


def test_xml_nested_deeply_is_read_and_entities_are_not_multiplied() -> None:
    tree = parse_xml(b"<annotation>" + b"<a>" * DEEP + b"</a>" * DEEP + b"</annotation>")
    assert tree.tag == "annotation"
    assert tree.findall("object") == []


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([1, 2.5, "3"], [1.0, 2.5, 3.0]),
        ((1, 2), [1.0, 2.0]),
        ([1e308, 1e308], [1e308, 1e308]),  # finite, though their sum is not
        ([1e308, 1e308, float("-inf")], None),
        ([float("inf"), float("-inf")], None),
        ([float("nan")], None),
        ([], []),
        ([None], None),
        ("12", None),
        ({1: 2}, None),
        ([10**400], None),
    ],
)
def test_finite_numbers(values: Any, numbers: list[float] | None) -> None:
    assert finite_numbers(values) == numbers


def test_polygons_in_cocos_form_are_returned_as_they_are() -> None:
    polygons = [[1, 2.5, 3, 4, 5, 6], [1.0, 2, 3]]
    assert as_segmentation(polygons) == (polygons, "")
    assert as_segmentation([[1, 2], [3, 4]]) == ([[1, 2, 3, 4]], "points")


def test_a_large_file_is_named_and_read_without_searches_for_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path)
    enabled: list[bool] = []
    load = coco.load_coco

    def load_and_note(*arguments: Any) -> Any:
        enabled.append(gc.isenabled())
        return load(*arguments)

    monkeypatch.setattr(coco, "load_coco", load_and_note)
    monkeypatch.setattr("resim.datasets.coco_file._LARGE", 10)
    monkeypatch.setattr(coco, "_MANY_IMAGES", 1)
    assert read_coco(path).num_objects == 2
    assert capsys.readouterr().out.splitlines()[0] == f"reading {path} (0 MB)"
    assert enabled == [False]
    assert gc.isenabled()
    with pytest.raises(UserError):
        read_coco(tmp_path / "none.json")
    assert gc.isenabled()
