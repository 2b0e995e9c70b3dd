"""Annotated sizes that differ from those of the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detection_data import (
    H,
    W,
    rewrite_lists,
    thing,
    write_coco,
)
from resim.datasets.coco import read_coco
from resim.errors import UserError


@pytest.mark.parametrize(
    ("box", "read"),
    [((90, 10, 99, 30), True), ((10, 60, 30, 90), False), ((10, 10, 30, 30), False)],
)
def test_the_boxes_decide_on_exchanged_sizes(tmp_path: Path, box: tuple[float, ...], read: bool) -> None:
    """Images of 100 x 80 px, annotated as 80 x 100: a box at x = 99 fits the file alone, one at y = 90 the other."""
    path = write_coco(tmp_path, [thing(1, 1, 3, box), thing(2, 2, 3, (0, 0, 9, 9))])
    content = json.loads(path.read_text())
    rewrite_lists(path, images=[image | {"width": H, "height": W} for image in content["images"]])
    if not read:
        with pytest.raises(UserError, match=r"2 image files whose sizes differ .*exchanged, and no EXIF"):
            read_coco(path)
        return
    data = read_coco(path)
    assert [(record.width, record.height) for record in data.records] == [(W, H)] * 2
    assert data.records[0].boxes.tolist() == [[90, 10, 99, 30]]
    assert data.repairs.counts == {"size-exchanged": 2}
