"""Blocks of pictures as HTML, the pictures embedded in the page."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from resim.draw.sheet import Block, ColumnHeading, Panel

BLOCK_CSS = """
.block h3 { margin: 0.9em 0 0.3em; }
.block .columns { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(min(30%, 260px), 480px);
  gap: 0 12px; overflow-x: auto; }
.block .heading { display: flex; flex-direction: column; }
.block .heading > span, .block figcaption { font-size: 13px; opacity: 0.8; overflow-wrap: anywhere; }
.block .scale { display: flex; gap: 6px; align-items: center; font-size: 13px; margin: auto 0 4px; }
.block .scale i { flex: 1; height: 10px;
  background: linear-gradient(to right, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.block figure { margin: 0 0 10px; }
.block img { width: 100%; display: block; }
"""


def data_url(picture: Image.Image, quality: int = 85) -> str:
    """A picture as a JPEG in a data URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="jpeg", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def block_html(block: Block, *, first_column: int = 0, quality: int = 85) -> str:
    """A block as a row of columns that scrolls sideways on a narrow screen.

    Args:
        block: with panels of any size.
        first_column: index of the first column that is included.
        quality: of the JPEGs, 1 to 95.
    """
    columns = []
    for i, heading in enumerate(block.headings):
        if i >= first_column:
            figures = [_figure(row[i], f"{block.title}, {heading.name}", quality) for row in block.rows]
            columns.append(_heading(heading) + "".join(figures))
    rows = f'style="grid-template-rows: repeat({1 + len(block.rows)}, auto)"'  # panels of one row align across columns
    return (
        f'<section class="block"><h3>{escape(block.title)}</h3>'
        f'<div class="columns" {rows}>{"".join(columns)}</div></section>'
    )


def _heading(heading: ColumnHeading) -> str:
    scale = ""
    if heading.scale is not None:
        minimum, maximum = heading.scale
        scale = f'<div class="scale"><span>{minimum:.2f}</span><i></i><span>{maximum:.2f}</span></div>'
    return f'<div class="heading"><b>{escape(heading.name)}</b><span>{escape(heading.note)}</span>{scale}</div>'


def _figure(panel: Panel, title: str, quality: int) -> str:
    caption = ": ".join(filter(None, (panel.name, panel.caption)))
    return (
        f'<figure><img src="{data_url(panel.picture, quality)}" alt="{escape(f"{title}: {caption}")}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
