r"""Escapes for text from outside, so that it cannot control a terminal.

A message, or an answer of a broker, could set a terminal's title, clear its screen, or forge an error.  So characters
that control a terminal are shown as escapes, for example ``\x1b``.  Letters, emoji, tabs and line breaks stay.
"""

from __future__ import annotations

import re

__all__ = ["escaped", "escaped_in_json"]

# C0, DEL and C1 are control characters; U+009B begins a command as ESC [ does.  Marks, embeddings, overrides and
# isolates change the direction of text, so that a line reads differently from what it says.  U+2028 and U+2029 break
# lines.  Halves of surrogate pairs cannot be encoded.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return *text* with escapes as Python writes them, for people to read."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_in_json(text: str) -> str:
    """Return the JSON *text* with escapes as JSON writes them, so that it means the same."""
    if text.isascii() and "\x7f" not in text:  # json.dumps has escaped the other control characters
        return text
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
