"""Diagrams for a page: inline SVG whose axes take the page's colours, readable in light and in dark mode."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from resim.draw.curves import running_mean
from resim.draw.metric_panels import COLOURS

INK = "currentColor"
"""The colour of the page's text, for the total loss."""
_MAX_POINTS = 240  # per curve; more are indistinguishable at this width
_INK, _RULE = "#010203", "#040506"  # placeholders for the page's colours
_SIZE = (4.6, 2.7)  # inches at 72 px: text of 11 px on a phone, larger on a screen


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    label: str
    x: np.ndarray
    """(n,) float, ascending."""
    y: np.ndarray
    """(n,) float; NaN leaves a gap."""
    colour: str = COLOURS[0]
    dashed: bool = False
    is_reference: bool = False
    """Whether it is a constant to compare with, such as chance: thin, without markers."""


def diagram(title: str, unit: str, x_label: str, lines: Sequence[Line], *, from_zero: bool = False) -> str:
    """A figure with a title, an SVG and a legend, as HTML.

    Long curves are drawn twice: values faint, their running mean over a fiftieth of the points solid.

    Args:
        title: of the diagram.
        unit: label of the y axis.
        x_label: label of the x axis.
        lines: at least one.
        from_zero: whether the y axis begins at 0.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        colour = _INK if line.colour == INK else line.colour
        x, y = thinned(line.x, line.y)
        marker = "o" if len(x) < 12 and not line.is_reference else ""
        style = "--" if line.dashed else "-"
        if len(line.x) > _MAX_POINTS // 2:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
            x, y = thinned(line.x, running_mean(line.y, max(1, len(line.y) // 50)))
        width = 1.2 if line.is_reference else 1.8
        axes.plot(x, y, color=colour, linewidth=width, linestyle=style, marker=marker, markersize=4)
    axes.set_xlabel(x_label, color=_INK, fontsize=11)
    axes.set_ylabel(unit, color=_INK, fontsize=11)
    axes.tick_params(colors=_INK, labelsize=10)
    axes.grid(visible=True, color=_RULE, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.locator_params(axis="x", nbins=6)
    axes.patch.set_visible(False)
    if from_zero:
        axes.set_ylim(bottom=0)
    # ids, such as those of clipping paths, must be unique on the page
    salt = hashlib.sha256(
        title.encode() + b"".join(line.label.encode() + line.y.tobytes() for line in lines)
    ).hexdigest()
    return f"<figure><b>{escape(title)}</b>{_svg(figure, salt)}{_legend(lines)}</figure>"


def reference_line(label: str, value: float, lines: Sequence[Line], colour: str) -> Line:
    """A dashed horizontal line at a value, as wide as the other lines together."""
    ends = [float(end) for line in lines for end in (line.x.min(), line.x.max())] or [0.0]
    x = np.array([min(ends), max(ends)])
    return Line(label=label, x=x, y=np.array([value, value]), colour=colour, dashed=True, is_reference=True)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most 240 points, the means of the finite values of equal intervals; NaN if one has none."""
    if len(x) <= _MAX_POINTS:
        return x, y
    intervals = np.array_split(np.arange(len(x)), _MAX_POINTS)
    finite = np.isfinite(y)
    means = [float(y[i][finite[i]].mean()) if finite[i].any() else np.nan for i in intervals]
    return np.array([float(x[i].mean()) for i in intervals]), np.array(means)


def _svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    text = re.sub(r"<[^>]+>", _round_coordinates, text)
    return text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)").replace("\n", " ")


def _round_coordinates(tag: re.Match[str]) -> str:
    """Truncate the coordinates in a tag to 1/100 pt; text between tags, such as tick labels, is not changed."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag.group())


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) == 1 and not lines[0].label:
        return ""
    items = []
    for line in lines:
        dashed = " class=dashed" if line.dashed else ""
        items.append(f'<li><i{dashed} style="border-color: {line.colour}"></i>{escape(line.label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
