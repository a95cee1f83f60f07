"""Checks of the arguments that an application passes.

Without these checks, one backend would store a wrong argument that another refuses.
"""

from __future__ import annotations

import math

__all__ = ["checked_delay", "checked_name", "checked_seconds", "checked_text", "described", "text_objection"]

_LONGEST = 100
"""Largest number of characters of a value that an error shows."""


def described(value: object) -> str:
    """Return *value* as short text for an error; never raises."""
    # Only text, bytes and numbers are shown: the repr of any other class may raise, or have no end.
    if isinstance(value, (str, bytes, float)) or value is None:
        shown = repr(value)
        return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
    if isinstance(value, int) and abs(value) < 10**_LONGEST:
        return repr(value)
    return f"a value of type {type(value).__name__}"


def text_objection(value: str) -> str:
    """Return why *value* is not valid text, ``""`` if it is.  UTF-8 cannot encode half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not valid text: it has half of a surrogate pair"
    return ""


def checked_name(what: str, value: object) -> str:
    """Return *value* if it can be a name.

    :raises TypeError: if it is not a ``str``.
    :raises ValueError: if it is empty or not valid text.
    """
    value = checked_text(what, value)
    if not value:
        raise ValueError(f"{what} must not be empty")
    objection = text_objection(value)
    if objection:
        raise ValueError(f"{what} {described(value)} {objection}")
    return value


def checked_text(what: str, value: object) -> str:
    """Return *value* if it is a ``str``.

    :raises TypeError: if it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {described(value)}")
    return value


def checked_seconds(what: str, value: float) -> float:
    """Return *value* as a float.

    :raises TypeError: if it is not a number.
    :raises ValueError: if it is NaN, or more than a float can hold.
    """
    try:
        # isnan also finds what is no number (TypeError) and an int beyond the range of a float (OverflowError).
        is_number = not math.isnan(value)
    except TypeError:
        raise TypeError(f"{what} must be a number of seconds, not {described(value)}") from None
    except OverflowError:
        raise ValueError(f"{what} is more than a number of seconds can be; leave it out, or give inf") from None
    if not is_number:
        raise ValueError(f"{what} must be a number of seconds, not nan")
    return float(value)


def checked_delay(what: str, value: float) -> float:
    """Return *value* as a float that a message can be delayed for.

    :raises TypeError: when it is no number.
    :raises ValueError: when it is negative or not finite.
    """
    seconds = checked_seconds(what, value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{what} must be a finite number of seconds from 0, not {seconds!r}")
    return seconds
