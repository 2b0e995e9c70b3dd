"""A self-contained HTML page: sections of facts, tables, curves and pictures in a single file.

It adapts to narrow and wide screens and to light and dark mode, and needs neither a network nor scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from resim.draw.html_blocks import BLOCK_CSS, block_html, data_url
from resim.draw.sheet import Block
from resim.errors import UserError
from resim.runs.checkpoints import write_atomically

MAX_BYTES = 5_000_000
WIDE_PX = 900
"""A sheet of many pictures scrolls sideways on a screen narrower than this."""
# JPEG quality and maximum width of the pictures, px: the first pair is used that makes the page small enough
_QUALITIES = ((88, 2400), (80, 1800), (70, 1400), (60, 1000), (45, 700))

_CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #626268; --paper: #ffffff;
  --rule: #dcdce0; --panel: #f5f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --soft: #a8a8b0; --paper: #151517; --rule: #3a3a40; --panel: #202024; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1200px; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7em; line-height: 1.2; margin: 0.3em 0; } h2 { font-size: 1.3em; margin: 1.6em 0 0.4em;
  border-top: 1px solid var(--rule); padding-top: 0.8em; } h3 { font-size: 1.05em; }
nav a { margin-right: 1em; white-space: nowrap; } a { color: inherit; }
p { max-width: 75ch; } p.note, figcaption, caption { color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; margin: 0.8em 0; } table { border-collapse: collapse; font-size: 15px; }
caption { text-align: left; padding-bottom: 4px; }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.facts td { overflow-wrap: anywhere; }
table.facts th { font-weight: normal; color: var(--soft); white-space: nowrap; }
figure { margin: 0.8em 0; } figure img { display: block; max-width: 100%; height: auto; }
figure .scroll { margin: 0; } figure.wide img { min-width: var(--min); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 12px; }
.curves figure { margin: 0; background: var(--panel); border-radius: 8px; padding: 8px; }
.curves svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 14px; margin: 2px 6px; list-style: none;
  padding: 0; }
.legend i { display: inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: 5px; } .legend i.dashed { border-top-style: dashed; }
@media (prefers-color-scheme: dark) { .curves svg, .legend i { filter: brightness(1.3); } }
details pre { overflow-x: auto; font-size: 13px; background: var(--panel); padding: 10px; border-radius: 8px; }
"""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    note: bool = False
    """Whether it is small and soft, like a caption."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Pairs of a name and its value, one per line."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings; a column of numbers is aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: int = 1
    """Number of leading columns that contain words; the others contain numbers."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with its caption."""

    picture: Image.Image
    caption: str
    min_px: int = 0
    """Minimum width, px; on a narrower screen the picture scrolls sideways. 0: it shrinks to the screen."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Small diagrams side by side."""

    panels: tuple[str, ...]
    """HTML of each, as `resim.report.diagram.diagram` returns it."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A block of pictures in columns."""

    block: Block


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Plain text that a click unfolds."""

    title: str
    text: str


Part = Text | Heading | Facts | Table | Picture | Curves | Pictures | Folded


@dataclass(frozen=True, kw_only=True)
class Section:
    """A title and the parts below it."""

    title: str
    parts: tuple[Part, ...]


def write_report(out: Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write the page atomically, with pictures compressed until it is smaller than 5 MB.

    Args:
        out: the .html file.
        title: of the page.
        sections: in order; a section without parts is omitted.
        lead: a paragraph below the title.

    Returns:
        `out`.

    Raises:
        UserError: the page cannot be written, or is too large even with small pictures.
    """
    shown = [section for section in sections if section.parts]
    for quality, width in _QUALITIES:

        def url(picture: Image.Image, quality: int = quality, width: int = width) -> str:
            return data_url(_narrowed(picture, width), quality)

        page = _page(title, lead, shown, url, quality)
        data = page.encode("utf-8", errors="replace")
        if len(data) < MAX_BYTES:
            write_atomically(out, lambda file, data=data: file.write(data))
            return out
    raise UserError(f"{out}: would be larger than {MAX_BYTES / 1e6:g} MB: report fewer runs at a time")


def _page(title: str, lead: str, sections: Sequence[Section], url: Callable[[Image.Image], str], quality: int) -> str:
    links = "".join(f'<a href="#s{i}">{escape(section.title)}</a> ' for i, section in enumerate(sections))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(section.title)}</h2>'
        f"{''.join(_part(part, url, quality) for part in section.parts)}</section>"
        for i, section in enumerate(sections)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="resim">'
        f"<title>{escape(title)}</title><style>{_CSS}{BLOCK_CSS}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{f'<p>{escape(lead)}</p>' if lead else ''}<nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def _part(part: Part, url: Callable[[Image.Image], str], quality: int) -> str:
    match part:
        case Text():
            return f"<p{' class=note' if part.note else ''}>{escape(part.text)}</p>"
        case Heading():
            return f"<h3>{escape(part.text)}</h3>"
        case Facts():
            rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in part.rows)
            return f'<div class="scroll"><table class="facts">{rows}</table></div>'
        case Table():
            return _table(part)
        case Picture():
            image = f'<img src="{url(part.picture)}" alt="{escape(part.caption)}">'
            caption = f"<figcaption>{escape(part.caption)}</figcaption>"
            if not part.min_px:
                return f"<figure>{image}{caption}</figure>"
            width = f'style="--min: {min(part.min_px, part.picture.width)}px"'
            return f'<figure class="wide" {width}><div class="scroll">{image}</div>{caption}</figure>'
        case Curves():
            return f'<div class="curves">{"".join(part.panels)}</div>'
        case Pictures():
            return block_html(part.block, quality=quality)
        case Folded():
            return f"<details><summary>{escape(part.title)}</summary><pre>{escape(part.text)}</pre></details>"


def _table(table: Table) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        tags = [f"{kind} class=number" if i >= table.words else kind for i in range(len(row))]
        return "".join(f"<{tag}>{escape(cell)}</{kind}>" for tag, cell in zip(tags, row, strict=True))

    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells('th', table.columns)}</tr></thead>"
    return f'<div class="scroll"><table>{caption}{head}<tbody>{rows}</tbody></table></div>'


def _narrowed(picture: Image.Image, width: int) -> Image.Image:
    if picture.width <= width:
        return picture
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
