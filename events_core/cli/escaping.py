r"""Escapes for text from outside, so that no terminal obeys it.

A message, or an answer of a broker, could set a terminal's title, clear its screen, or forge an error.  So the
characters that terminals obey are shown as escapes, such as ``\x1b``.  Letters, emoji, tabs and line breaks stay.
"""

from __future__ import annotations

import re

__all__ = ["escaped", "escaped_in_json"]

# Control characters (C0, DEL, C1: U+009B begins a command as ESC [ does), the marks, embeddings, overrides and isolates
# that change the direction of text, the separators of lines and paragraphs, and halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return *text* with escapes as Python writes them, for people."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_in_json(text: str) -> str:
    """Return the JSON *text* with escapes as JSON writes them: it means the same."""
    if text.isascii() and "\x7f" not in text:  # json.dumps has escaped the other control characters
        return text
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
