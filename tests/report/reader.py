"""A reader of pages, which fails if an element is not closed."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

NEVER_CLOSED = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """Reads a page: its text, its attributes, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def is_self_contained(page: Page) -> bool:
    """Whether a page has no script, and refers only to embedded pictures and to anchors of its own."""
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    inside = all(address.startswith(("data:image/jpeg;base64,", "#")) for address in addresses)
    return (
        inside
        and "script" not in page.tags
        and "@import" not in page.source
        and not re.search(r"url\((?!['\"]?#)", page.source)
    )
