"""Pictures as parts of a web page that needs nothing else: every picture travels within the page."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from resim.draw.sheet import Block, Head, Panel

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
    """A picture as a JPEG within a URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="jpeg", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def block_html(block: Block, *, first_column: int = 0, quality: int = 85) -> str:
    """A block as a row of columns, which is moved sideways where the screen is too narrow.

    Args:
        block: with panels of any size.
        first_column: columns before this one are left out.
        quality: of the JPEGs, 1 to 95.
    """
    columns = []
    for i, head in enumerate(block.heads):
        if i >= first_column:
            figures = [_figure(row[i], f"{block.title}, {head.name}", quality) for row in block.rows]
            columns.append(_heading(head) + "".join(figures))
    rows = f'style="grid-template-rows: repeat({1 + len(block.rows)}, auto)"'  # what is beside each other lines up
    return (
        f'<section class="block"><h3>{escape(block.title)}</h3>'
        f'<div class="columns" {rows}>{"".join(columns)}</div></section>'
    )


def _heading(head: Head) -> str:
    bar = ""
    if head.bar is not None:
        low, high = head.bar
        bar = f'<div class="scale"><span>{low:.2f}</span><i></i><span>{high:.2f}</span></div>'
    return f'<div class="heading"><b>{escape(head.name)}</b><span>{escape(head.told)}</span>{bar}</div>'


def _figure(panel: Panel, what: str, quality: int) -> str:
    told = ": ".join(filter(None, (panel.name, panel.caption)))
    alternative = escape(f"{what}: {told}")
    return (
        f'<figure><img src="{data_url(panel.picture, quality)}" alt="{alternative}">'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )
