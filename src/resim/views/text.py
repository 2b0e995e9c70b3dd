"""Text files as people's tools write them: with a byte order mark, in UTF-16, or in the encoding of their country."""

from __future__ import annotations

import codecs
from collections.abc import Callable

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# each reads some texts of the others without an error, so that strict ones come first
NATIONAL = ("gb18030", "shift_jis", "euc_kr", "cp1252", "latin-1")


def decode_text(data: bytes, is_right: Callable[[str], bool] | None = None) -> str:
    """The text of a file: by its byte order mark, as UTF-16 where every other byte is 0, or as UTF-8.

    A text that is none of these, or UTF-8 by chance so that `is_right` does not agree, is read in the first national
    encoding that `is_right` agrees to, else with the bytes that are not UTF-8 kept as surrogates, as Python has them in
    the names of files.

    Args:
        data: of the file.
        is_right: whether a decoding makes sense, for instance because the files that it names are there.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _utf_16(data) or "utf-8"
    try:
        text = data.decode(encoding)
        if encoding != "utf-8" or text.isascii() or is_right is None or is_right(text):
            return text
    except UnicodeDecodeError:
        if encoding != "utf-8":
            return data.decode(encoding, "replace")
    kept = data.decode("utf-8", "surrogateescape")
    if is_right is None or is_right(kept):
        return kept
    for encoding in NATIONAL:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if is_right(text):
            return text
    return kept


def _utf_16(data: bytes) -> str | None:
    """UTF-16 without a mark, as far as it is mostly of Latin letters."""
    head = data[:512]
    pairs = len(head) // 2
    if not pairs or b"\0" not in head:
        return None
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if zeros.count(0) > 0.7 * pairs:
            return encoding
    return None
