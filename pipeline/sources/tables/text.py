"""Text as people's programs write it: with a byte order mark, in UTF-16, or with Windows' line ends."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order mark -> encoding; that of UTF-32 begins with that of UTF-16."""


def encoding_of(data: bytes) -> tuple[str, int]:
    """Return the encoding of a text, and the length of its byte order mark.

    UTF-16 without a mark is recognised by the zero bytes of its Latin letters. Without any sign it is UTF-8.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    for encoding, zeros, letters in (("utf-16-le", data[1::2], data[::2]), ("utf-16-be", data[::2], data[1::2])):
        if b"\0" in zeros and _is_utf16(data, encoding, zeros, letters):
            return encoding, 0
    return "utf-8", 0


def decode_text(data: bytes) -> str:
    """Return a text without its byte order mark. Raises UnicodeDecodeError if it is in no encoding that is known."""
    encoding, mark = encoding_of(data)
    return data[mark:].decode(encoding)


def _is_utf16(data: bytes, encoding: str, zeros: bytes, letters: bytes) -> bool:
    """Check for UTF-16; names that end in NUL, as ``find -print0`` writes them, are not taken for it."""
    if len(data) % 2 or b"\0" in letters:
        return False
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    mostly_latin = 2 * zeros.count(0) >= len(zeros)
    is_one_path = not zeros.strip(b"\0") and bool({".", "/", "\\"} & set(text))
    return mostly_latin and ("\n" in text or is_one_path)
