"""Checks of the arguments that an application passes, before anything is done with them.

Without them each backend would treat a wrong argument in its own way: one stores what another refuses.
"""

from __future__ import annotations

import math

__all__ = ["checked_delay", "checked_name", "checked_seconds", "described", "text_objection"]

_LONGEST = 100
"""Characters of a value that an error shows."""


def described(value: object) -> str:
    """Return *value* as short text for an error; never raises."""
    if isinstance(value, (str, bytes, float)) or value is None:
        shown = repr(value)
        return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
    if isinstance(value, int) and abs(value) < 10**_LONGEST:
        return repr(value)
    return f"a value of type {type(value).__name__}"


def text_objection(value: str) -> str:
    """Return what is wrong with *value* as text, ``""`` if nothing: UTF-8 cannot carry half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is no text: it has half of a surrogate pair"
    return ""


def checked_name(what: str, value: object) -> str:
    """Return *value* if it can name something.

    :raises TypeError: when it is no str.
    :raises ValueError: when it is empty or no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {described(value)}")
    if not value:
        raise ValueError(f"{what} must not be empty")
    objection = text_objection(value)
    if objection:
        raise ValueError(f"{what} {described(value)} {objection}")
    return value


def checked_seconds(what: str, value: float) -> float:
    """Return *value* as a float.

    :raises TypeError: when it is no number.
    :raises ValueError: when it is NaN, or more than a float can hold.
    """
    try:
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
