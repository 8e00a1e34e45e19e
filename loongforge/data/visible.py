"""Text from data, made safe to print: data is not trusted, and a terminal obeys what it is sent."""

from __future__ import annotations

import unicodedata

_NAMES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (text direction), half surrogates, separators of lines


def visible(text: str) -> str:
    """The text with control and format characters as escapes, on one line."""
    if text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    return _NAMES.get(char) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
