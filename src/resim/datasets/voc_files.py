"""The files of VOC's layout as people's tools write them: lists of ids, and XML in any encoding."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from resim.views.folder import EXTENSIONS
from resim.views.text import NATIONAL, decode_text
from resim.views.walk import UNREAD_FORMATS, ending_of

_FLAG = re.compile(r"(.*\S)[\s,]+[+-]?[01]")  # of the lists of a class: whether an image has one
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_TRUE, _FALSE = {"1", "true", "yes", "y", "t", "difficult"}, {"0", "false", "no", "n", "f", "", "unspecified", "none"}
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949", "ks_c_5601-1987": "cp949"}


def read_ids(path: Path, is_known: Callable[[str], bool]) -> list[str]:
    """The image ids of a list, one a line.

    A line is an id as it stands, if that is known; else without a flag (-1, 0 or 1, of the lists of a class), without
    the folders before it and without the ending of an image or of XML. Blank lines are passed over.

    Args:
        path: the list.
        is_known: whether there is an image of an id.

    Raises:
        OSError: it cannot be read.
    """

    def is_right(text: str) -> bool:
        return any(
            is_known(_id_of(line, is_known)) for line in text.splitlines() if line.strip() and not line.isascii()
        )

    lines = decode_text(path.read_bytes(), is_right).splitlines()
    return [_id_of(line, is_known) for line in lines if line.strip()]


def _id_of(line: str, is_known: Callable[[str], bool]) -> str:
    text = line.strip("\0\ufeff \t")
    flagged = _FLAG.fullmatch(text)
    candidates = []
    for whole in (text, *((flagged[1],) if flagged else ())):
        last = re.split(r"[/\\]", whole)[-1]
        candidates += [whole, _without_ending(whole), last, _without_ending(last)]
    known = next((candidate for candidate in candidates if is_known(candidate)), None)
    return known if known is not None else candidates[-1]


def _without_ending(name: str) -> str:
    is_file = ending_of(name) in EXTENSIONS | UNREAD_FORMATS | {".xml"}
    return name.rpartition(".")[0] if is_file else name


def parse_xml(data: bytes) -> ElementTree.Element:
    """The tree of an XML file, in the encoding that it declares or, where that is wrong, in one that fits.

    Raises:
        ElementTree.ParseError: it is no XML.
    """
    try:
        return _bare(ElementTree.fromstring(data))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # a ValueError: an encoding of several bytes
        first = error
    declared = _DECLARED.search(data)
    names = [declared[1].decode().lower()] if declared else []
    for encoding in [*(_SUPERSETS.get(name, name) for name in names), None, *NATIONAL]:
        try:
            text = decode_text(data) if encoding is None else data.decode(encoding)
            text.encode()  # no bytes that were kept as surrogates
            return _bare(ElementTree.fromstring(_DECLARATION.sub("", text.lstrip("\ufeff\0 \r\n\t"))))
        except (ElementTree.ParseError, ValueError, LookupError):
            continue
    if isinstance(first, ElementTree.ParseError):
        raise first
    raise ElementTree.ParseError(str(first))


def _bare(tree: ElementTree.Element) -> ElementTree.Element:
    """The tree without the namespace that some tools put before every name."""
    for element in tree.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return tree


def read_flag(text: str | None) -> bool | None:
    """A flag written as a number or in words; None: it is neither."""
    word = (text or "").strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    try:
        return float(word) != 0
    except ValueError:
        return None
