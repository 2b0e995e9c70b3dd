"""Diagrams: SVGs that take the colours of the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from report.reader import Page, is_self_contained
from resim.report.diagram import INK, Line, diagram, thinned


def test_a_diagram_takes_the_colours_of_the_page(tmp_path: Path) -> None:
    x = np.arange(1000.0)
    lines = [Line(label="total", x=x, y=np.sin(x), colour=INK), Line(label="a<b", x=x, y=np.cos(x))]
    html = diagram("Losses & more", "nats", "step", lines)
    assert "currentColor" in html
    assert "var(--rule)" in html
    assert "Losses &amp; more" in html
    assert "a&lt;b" in html
    assert "#000000" not in html
    assert len(html) < 60_000
    (tmp_path / "a.html").write_text(f"<body>{html}</body>", encoding="utf-8")
    assert is_self_contained(Page(tmp_path / "a.html"))


def test_tick_labels_are_not_truncated() -> None:
    html = diagram("Rate", "learning rate", "epoch", [Line(label="", x=np.arange(5.0), y=np.linspace(0, 0.03, 5))])
    assert {"0.000", "0.005", "0.025", "0.030"} <= set(re.findall(r">([\d.]+)</text>", html))


def test_ids_of_diagrams_are_unique_on_a_page() -> None:
    x = np.arange(5.0)
    names = [
        set(re.findall(r'id="([^"]+)"', diagram(title, "nats", "step", [Line(label="", x=x, y=x)])))
        for title in ("one", "two")
    ]
    assert all(names)
    assert not names[0] & names[1]


def test_long_curves_are_thinned_to_means_of_intervals() -> None:
    x = np.arange(480.0)
    y = np.where(x % 2 == 0, 1.0, 3.0)
    y[10] = np.nan
    y[20:22] = np.nan
    thin_x, thin_y = thinned(x, y)
    np.testing.assert_allclose(thin_x, np.arange(240) * 2 + 0.5)
    expected = np.full(240, 2.0)
    expected[5], expected[10] = 3.0, np.nan
    np.testing.assert_allclose(thin_y, expected)
    short = thinned(x[:240], y[:240])
    np.testing.assert_array_equal(short[1], y[:240])
