"""VOC's XML files: parsed in any encoding, with flags in any notation."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from resim.datasets.annotation_values import as_flag, finite_numbers, with_decimal_point
from resim.views.text import NATIONAL, decode_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_TRUE, _FALSE = {"difficult"}, {"unspecified"}  # in addition to those of any layout
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949", "ks_c_5601-1987": "cp949"}


def parse_xml(data: bytes) -> ElementTree.Element:
    """The tree of an XML file, in its declared encoding or, if that is wrong, in one that fits; without namespaces.

    Raises:
        ElementTree.ParseError: not XML.
    """
    try:
        return _without_namespaces(ElementTree.fromstring(data))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # a ValueError: an encoding of several bytes
        first = error
    declared = _DECLARED.search(data)
    names = [declared[1].decode().lower()] if declared else []
    for encoding in [*(_SUPERSETS.get(name, name) for name in names), None, *NATIONAL]:
        try:
            text = decode_text(data) if encoding is None else data.decode(encoding)
            text.encode()  # fails if bytes were kept as surrogates
            return _without_namespaces(ElementTree.fromstring(_DECLARATION.sub("", text.lstrip("\ufeff\0 \r\n\t"))))
        except (ElementTree.ParseError, ValueError, LookupError):
            continue
    if isinstance(first, ElementTree.ParseError):
        raise first
    raise ElementTree.ParseError(str(first))


def _without_namespaces(tree: ElementTree.Element) -> ElementTree.Element:
    for element in tree.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return tree


def read_flag(text: str | None) -> bool | None:
    """A flag as a number or a word; None if it is neither true nor false."""
    word = (text or "").strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    return as_flag(word)


def corner_texts(element: ElementTree.Element) -> list[str | None]:
    """The texts of xmin, ymin, xmax and ymax of an object, with decimal points."""
    texts = (element.findtext(f"bndbox/{corner}") for corner in CORNERS)
    return [None if text is None else with_decimal_point(text) for text in texts]


def numeric_corners(tree: ElementTree.Element) -> list[list[float]]:
    """(xmin, ymin, xmax, ymax) of the objects for which all four are numbers."""
    boxes = (finite_numbers(corner_texts(element)) for element in tree.findall("object"))
    return [box for box in boxes if box is not None]
