"""Requirements: the least that a configuration asks of a backend's capabilities (rule O4: require).

A requirement is text such as ``ordering:subscription``.  It is met by that value and by every stronger one.  A client
checks its requirements when it is constructed.  It checks them again when it has joined a subscription, because the
broker tells only then what the subscription can do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import attrs

from events_core.arguments import described
from events_core.capabilities import Capabilities, Limits
from events_core.errors import ConfigurationError
from events_core.options import did_you_mean

__all__ = ["RULES", "Requirement", "Requirements", "Value", "at_least", "value_of", "word"]

Value: TypeAlias = str | bool | float | None
"""The value of a capability or a limit; ``None`` stands for no limit."""

_SCALES: Mapping[str, tuple[str | bool, ...]] = {
    "durable": ("none", "process_crash", "power_loss"),
    "ordering": ("none", "receiver", "subscription"),
    "replay": (False, True),
    "dead_letter": (False, True),
    "reject": (False, True),
    "delivery_attempts": (False, True),
    "ack_confirmed": (False, True),
    "exactly_once": (False, True),
    "idempotent_publish": (False, True),
    # The stronger promise is not to count an attempt for messages that are handed back.
    "handback_counts": (True, False),
}
"""The values of each capability, from the weakest promise to the strongest."""

_ALTERNATIVES: Mapping[str, tuple[str, ...]] = {"redelivery": ("lease", "disconnect")}
"""Capabilities whose values have no order: only the same value meets a requirement."""

_LIMITS = frozenset(field.name for field in attrs.fields(Limits))

RULES: Mapping[str, str] = {
    "durable": "F3: what a confirmed message survives",
    "ordering": "R8: order per key",
    "replay": "Q3: a new subscription may begin with old messages",
    "dead_letter": "R12: dead letters",
    "reject": "S6: a rejected message becomes a dead letter at once",
    "delivery_attempts": "R12: counted deliveries",
    "ack_confirmed": "S1: confirmed acknowledgements",
    "exactly_once": "S1: what was acknowledged does not come again",
    "idempotent_publish": "P7: a retried send is stored once",
    "handback_counts": "C1: what is handed back counts no attempt",
    "redelivery": "R9: what makes a message come again",
    "max_message_bytes": "P2: sizes that the broker accepts",
    "max_attributes": "P2: sizes that the broker accepts",
    "max_attribute_key_bytes": "P2: sizes that the broker accepts",
    "max_attribute_value_bytes": "P2: sizes that the broker accepts",
    "max_ordering_key_bytes": "P2: sizes that the broker accepts",
    "max_nack_delay": "R11: delays of a nack",
}
"""For each capability and each limit: the rule of the contract that defines it, and a few words about it."""


@attrs.frozen
class Requirement:
    """A capability or a limit, and the least value that is good enough."""

    name: str
    value: Value

    def __str__(self) -> str:
        return f"{self.name}:{word(self.value)}"

    def is_met(self, capabilities: Capabilities) -> bool:
        """Return whether *capabilities* have the value or a stronger one."""
        return at_least(self.name, value_of(capabilities, self.name), self.value)


@attrs.frozen
class Requirements:
    """The requirements of one client."""

    each: tuple[Requirement, ...] = ()
    backend: str = ""
    """The name of the client's backend, for errors."""

    @classmethod
    def read(cls, texts: Iterable[str], backend: str = "") -> Requirements:
        """Return the requirements that *texts* state.

        :raises ConfigurationError: if a text is not a requirement; the error names all such texts.
        """
        return cls(tuple(_read_all(texts)), backend)

    def objection(self, capabilities: Capabilities) -> str:
        """Return a sentence for each requirement that *capabilities* do not meet; ``""`` if they meet all."""
        unmet = [wanted for wanted in self.each if not wanted.is_met(capabilities)]
        return "; ".join(
            f"the configuration requires '{wanted}', but the backend {self.backend!r} has "
            f"'{wanted.name}:{word(value_of(capabilities, wanted.name))}' (rule {RULES[wanted.name]})"
            for wanted in unmet
        )


def _read_all(texts: Iterable[str]) -> list[Requirement]:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise ConfigurationError(f"require must be a list such as ['ordering:subscription'], not {described(texts)}")
    found: list[Requirement] = []
    problems: list[str] = []
    for text in texts:
        try:
            found.append(_read(text))
        except ValueError as error:
            problems.append(f"require {described(text)}: {error}")
    if problems:
        raise ConfigurationError("; ".join(problems))
    return found


def _read(text: object) -> Requirement:
    if not isinstance(text, str):
        raise ValueError("a requirement is text, such as 'ordering:subscription'")
    name, colon, written = text.partition(":")
    if name not in RULES:
        raise ValueError(f"there is no such capability{did_you_mean(name, RULES) or '; known are ' + ', '.join(RULES)}")
    if name in _LIMITS:
        return Requirement(name, None if written == word(None) else _number(name, written))
    values = _SCALES.get(name) or _ALTERNATIVES[name]
    # A flag may be required by its name alone.
    if not colon and values == (False, True):
        return Requirement(name, True)
    words = {word(value): value for value in values}
    if written not in words:
        choices = " or ".join(f"'{name}:{choice}'" for choice in words)
        raise ValueError(f"write {choices}{did_you_mean(written, words)}")
    return Requirement(name, words[written])


def _number(name: str, written: str) -> float:
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"write a number, as in '{name}:1000', or '{name}:{word(None)}'")
    return number


def value_of(capabilities: Capabilities, name: str) -> Value:
    """Return the value of the capability or limit *name*."""
    value: Value = getattr(capabilities.limits if name in _LIMITS else capabilities, name)
    return value


def at_least(name: str, found: Value, wanted: Value) -> bool:
    """Return whether *found* is as good as *wanted* or better."""
    if name in _LIMITS:
        return _as_number(found) >= _as_number(wanted)
    if name in _ALTERNATIVES:
        return found == wanted
    scale = _SCALES[name]
    # A backend for a later version of this library may have a value that is not on this scale.  It meets only itself.
    return found == wanted or (found in scale and wanted in scale and scale.index(found) > scale.index(wanted))


def _as_number(limit: Value) -> float:
    # ``None``, no limit at all, is more than any limit.
    return math.inf if limit is None else float(limit)


def word(value: Value) -> str:
    """Return the text for *value* in a configuration."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "unlimited"
    return f"{value:.15g}" if isinstance(value, (int, float)) else value
