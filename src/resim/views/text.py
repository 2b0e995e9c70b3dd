"""Decode text files of other tools: with a byte order mark, in UTF-16, or in a national encoding."""

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
# strict encodings first: each decodes some texts in the others without an error
NATIONAL = ("gb18030", "shift_jis", "euc_kr", "cp1252", "latin-1")
HEAD = 512  # bytes


def decode_text(data: bytes, is_right: Callable[[str], bool] | None = None) -> str:
    """Decode the bytes of a text file.

    The encoding is that of the byte order mark, or UTF-16 if about every other byte is 0, or UTF-8. If the text is not
    valid UTF-8, or `is_right` rejects it, the first national encoding whose result `is_right` accepts is used. If there
    is none, bytes that are not UTF-8 become surrogates, as in Python's file names.

    Args:
        data: the content of the file.
        is_right: whether a decoded text is plausible, for instance because the files that it names exist.
    """
    encoding = encoding_of(data)
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


def encoding_of(data: bytes) -> str:
    """The encoding by the byte order mark, or UTF-16 by its zeros, or UTF-8; the first `HEAD` bytes suffice."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None) or _utf_16(data) or "utf-8"


def _utf_16(data: bytes) -> str | None:
    """The byte order of UTF-16 without a mark, recognised if most characters are Latin; None for other data."""
    head = data[:HEAD]
    pairs = len(head) // 2
    if not pairs or b"\0" not in head:
        return None
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if zeros.count(0) > 0.7 * pairs:
            return encoding
    return None
