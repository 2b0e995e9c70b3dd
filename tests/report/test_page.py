"""The HTML page: self-contained, escaped, and below 5 MB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report.reader import Page, is_self_contained
from resim.errors import UserError
from resim.report.page import MAX_BYTES, Facts, Folded, Heading, Picture, Section, Table, Text, write_report


def test_the_text_of_every_part_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    parts = (
        Text(text=evil),
        Heading(text=evil),
        Facts(rows=((evil, evil),)),
        Table(columns=("a", evil), rows=((evil, "2"),), caption=evil),
        Picture(picture=Image.new("RGB", (40, 30), (200, 10, 10)), caption=evil, min_px=900),
        Folded(title=evil, text=evil),
    )
    sections = [Section(title=evil, parts=parts), Section(title="empty, omitted", parts=())]
    page = Page(write_report(tmp_path / "a.html", evil, sections, lead=evil))
    assert is_self_contained(page)
    assert page.words.count(evil) == 15
    assert "omitted" not in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.slow
def test_pictures_are_compressed_until_the_page_is_small_enough(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    parts = tuple(Picture(picture=Image.fromarray(noise), caption=str(i)) for i in range(12))
    path = write_report(tmp_path / "a.html", "a", [Section(title="a", parts=parts)])
    assert path.stat().st_size < MAX_BYTES
    page = Page(path)
    assert page.tags.count("img") == 12


def test_a_page_that_cannot_be_made_small_enough_is_refused(tmp_path: Path) -> None:
    parts = (Folded(title="long", text="a" * MAX_BYTES),)
    with pytest.raises(UserError, match="would be larger than 5 MB: report fewer runs"):
        write_report(tmp_path / "a.html", "a", [Section(title="a", parts=parts)])
    assert list(tmp_path.iterdir()) == []
