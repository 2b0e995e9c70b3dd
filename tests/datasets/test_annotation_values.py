"""Single values in any notation: ids, flags, numbers, polygons, keypoints."""

from __future__ import annotations

import math
from typing import Any

import pytest

from resim.datasets.annotation_values import as_flag, as_id, as_keypoints, as_numbers, as_rle, as_segmentation

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7), (7.0, 7), ("7", 7), (" 7 ", 7), ("7.0", 7), ("007", 7), ("-1", -1), (0, 0), ("0", 0), ("a7 ", "a7"),
        (None, None), ("", None), (7.5, None), (NAN, None), (math.inf, None), (True, None), ([7], None), ("7e1", "7e1"),
    ],
)  # fmt: skip
def test_ids(value: Any, expected: int | str | None) -> None:
    assert as_id(value) == expected


@pytest.mark.parametrize(
    "value", [None, "", " ", 0, 0.0, "0", "0.0", False, "false", "False", "no", "null", NAN, "nan"]
)
def test_values_of_false(value: Any) -> None:
    assert as_flag(value) is False


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0", "true", "True", "yes", 2])
def test_values_of_true(value: Any) -> None:
    assert as_flag(value) is True


@pytest.mark.parametrize("value", ["perhaps", [], {}, [1]])
def test_values_that_are_neither_true_nor_false(value: Any) -> None:
    assert as_flag(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        (["1", "2.5", 3, 4], [1, 2.5, 3, 4]),
        ("[1, 2.5, 3, 4]", [1, 2.5, 3, 4]),
        ("1, 2.5, 3, 4", [1, 2.5, 3, 4]),
        ("1 2.5 3 4", [1, 2.5, 3, 4]),
        ('["1", "2.5", "3", "4"]', [1, 2.5, 3, 4]),
        ([[1, 2, 3, 4]], [1, 2, 3, 4]),
        ([1, 2, 3], None),
        ([1, 2, 3, NAN], None),
        ([1, 2, 3, None], None),
        ("[1, 2", None),
        ({"x": 1}, None),
    ],
)
def test_four_numbers(value: Any, expected: list[float] | None) -> None:
    assert as_numbers(value, 4) == expected


TRIANGLE = [1, 2, 5, 2, 5, 8]


@pytest.mark.parametrize(
    "value",
    [
        TRIANGLE,
        [[[1, 2], [5, 2], [5, 8]]],
        [[1, 2], [5, 2], [5, 8]],
        [[{"x": 1, "y": 2}, {"x": 5, "y": 2}, {"x": 5, "y": 8}]],
        [{"x": 1, "y": 2}, {"x": 5, "y": 2}, {"x": 5, "y": 8}],
        "[[1, 2, 5, 2, 5, 8]]",
        "[1, 2, 5, 2, 5, 8]",
        "1 2 5 2 5 8",
    ],
)
def test_polygons_in_other_forms(value: Any) -> None:
    polygons, form = as_segmentation(value)
    assert [[float(number) for number in polygon] for polygon in polygons] == [TRIANGLE]
    assert form


def test_polygons_in_cocos_form_are_not_changed() -> None:
    assert as_segmentation([TRIANGLE, TRIANGLE]) == ([TRIANGLE, TRIANGLE], "")
    assert as_segmentation([]) == ([], "")
    assert as_segmentation(None) == (None, "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 2, 0, 0, 0], [1, 2, 2, 0, 0, 0]),
        ([1, 2, 0, 0], [1, 2, 2, 0, 0, 0]),  # pairs: what is not at 0, 0 is visible
        ([[1, 2, 1], [3, 4, 2]], [1, 2, 1, 3, 4, 2]),
        ([[1, 2], [3, 4]], [1, 2, 2, 3, 4, 2]),
        ([1, NAN, 2, 3, 4, 2], [0, 0, 0, 3, 4, 2]),
        ([1, None, 2, 3, 4, 2], [0, 0, 0, 3, 4, 2]),
        ([1, 2, 2, 3, 4], None),
        ([1, 2, 2], None),
        ("text", None),
    ],
)
def test_keypoints(value: Any, expected: list[float] | None) -> None:
    assert as_keypoints(value, 2)[0] == expected


@pytest.mark.parametrize("counts", ["X1f0h0", "b'X1f0h0'", 'b"X1f0h0"'])
def test_rle_written_as_the_str_of_bytes_is_read(counts: str) -> None:
    assert as_rle({"size": [64, 96], "counts": counts}, 96, 64) == {"size": [64, 96], "counts": "X1f0h0"}
