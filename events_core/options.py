"""Typed options: declared once by a class, read from text, explained when wrong.

A backend's options are a frozen attrs class that extends :class:`CommonOptions` and declares each field with
:func:`option`.  The same declaration drives conversion, range checks, the command line's help and the documentation.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from events_core.arguments import described, text_objection
from events_core.errors import ConfigurationError

__all__ = ["CommonOptions", "OptionInfo", "SecretOrigin", "describe_options", "did_you_mean", "option", "read_options"]

_KEY = "events_core.option"
_INT64 = 2**63 - 1
"""The largest number that a broker can be told."""
_OptionsT = TypeVar("_OptionsT", bound="CommonOptions")


class SecretOrigin(str):
    """The origin of a value that its source keeps apart, as in ``{ file = … }``: no error shows such a value."""

    __slots__ = ()


@attrs.frozen(kw_only=True)
class OptionInfo:
    """What is known of one option: for help texts, listings and documentation."""

    name: str
    """As in a configuration."""
    type: str
    """``text``, ``integer``, ``number``, ``true or false``, or the choices separated by ``|``."""
    default: str | None
    """As text; ``None`` where the option is required, ``""`` where it is unset."""
    help: str
    """One sentence."""
    unit: str
    """``seconds`` or ``bytes``; ``""`` where it has none."""
    minimum: float | None
    """Smallest value allowed; ``None`` where there is no bound."""
    maximum: float | None
    """Largest value allowed; ``None`` where there is no bound."""
    secret: bool
    """Whether its value, and its default, are never shown."""

    @property
    def range(self) -> str:
        """The range as text, ``""`` where there is none."""
        match self.minimum, self.maximum:
            case None, None:
                return ""
            case low, None:
                return f"at least {_text(low)}"
            case None, high:
                return f"at most {_text(high)}"
            case low, high:
                return f"{_text(low)} to {_text(high)}"


def option(
    *,
    help: str,
    default: Any = attrs.NOTHING,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
) -> Any:
    """Declare one option of an options class.

    The annotation gives the type: ``str``, ``int``, ``float``, ``bool`` or ``Literal[...]`` of strings, each also
    with ``| None``.

    :param help: one sentence for people.
    :param default: without one the option is required.
    :param unit: ``"seconds"`` or ``"bytes"``, where the number has one.
    :param minimum: smallest value allowed, inclusive.
    :param maximum: largest value allowed, inclusive.
    :param secret: never shown in a representation, log record, error or listing.
    """
    metadata = {_KEY: {"help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "secret": secret}}
    return attrs.field(default=default, kw_only=True, repr=not secret, metadata=metadata)


@attrs.frozen(kw_only=True)
class CommonOptions:
    """Options that every backend understands."""

    subscription: str | None = option(
        default=None,
        help="Subscription that subscribe() joins when it names none; created on connecting, where allowed.",
    )
    create: Literal["never", "subscription", "all"] = option(
        default="never", help="What may be created when it is missing: nothing, the subscription, or the topic as well."
    )
    start: Literal["latest", "earliest"] = option(
        default="latest",
        help="Where a new subscription begins: with what is sent from now on, or the oldest message kept.",
    )
    ordering: bool | None = option(
        default=None, help="Ask for order per key, or do without it; unset takes what the backend does by itself."
    )
    max_outstanding_messages: int = option(
        default=1000, minimum=1, maximum=_INT64, help="Messages that one receiver holds or buffers at most."
    )
    max_outstanding_bytes: int = option(
        default=100 * 2**20,
        minimum=1,
        maximum=_INT64,
        unit="bytes",
        help="Bytes that one receiver holds or buffers at most.",
    )
    max_lease_duration: float = option(
        default=3600.0, minimum=0.001, unit="seconds", help="How long a receiver keeps a message that is not settled."
    )
    max_delivery_attempts: int | None = option(
        default=None, minimum=1, help="Failed deliveries after which a message goes to dead_letter_topic."
    )
    dead_letter_topic: str | None = option(
        default=None, help="Topic for messages that failed max_delivery_attempts times."
    )
    dead_letter_subscription: str | None = option(
        default=None,
        help="Subscription that a receiver creates on dead_letter_topic if that topic has none and create allows it; "
        "by default the topic's name with '-letters'.",
    )
    send_timeout: float = option(
        default=60.0,
        minimum=0.001,
        unit="seconds",
        help="How long a send may take, waiting for room and retries included.",
    )
    ack_timeout: float = option(
        default=60.0, minimum=0.001, unit="seconds", help="How long settling may take, retries included."
    )
    connect_timeout: float = option(
        default=30.0, minimum=0.001, unit="seconds", help="How long connecting, or subscribing, may take."
    )
    publish_max_messages: int = option(
        default=10_000, minimum=1, help="Messages in flight from all sends of one client at most."
    )
    publish_max_bytes: int = option(
        default=100 * 2**20, minimum=1, unit="bytes", help="Bytes in flight from all sends of one client at most."
    )
    publish_on_limit: Literal["wait", "error"] = option(
        default="wait", help="What a send does past these bounds: wait for room, or fail at once."
    )

    def problems(self) -> Iterable[str]:
        """What contradicts itself between several options; a backend's class extends it."""
        if (self.max_delivery_attempts is None) is not (self.dead_letter_topic is None):
            yield "options 'max_delivery_attempts' and 'dead_letter_topic' go together; give both or neither"
        for name in ("subscription", "dead_letter_topic", "dead_letter_subscription"):
            objection = text_objection(getattr(self, name) or "")
            if objection:
                yield f"option {name!r}: {described(getattr(self, name))} {objection}"
        if self.dead_letter_subscription is not None and self.dead_letter_topic is None:
            yield "the option 'dead_letter_subscription' needs 'dead_letter_topic'; give both or neither"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of *known*, ``""`` where none is near."""
    import difflib  # for errors alone

    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe_options(options_class: type[CommonOptions]) -> list[OptionInfo]:
    """Every option of *options_class*, its own first, the common ones last."""
    common = {field.name for field in attrs.fields(CommonOptions)}
    kinds = _kinds(options_class)
    found = [_describe(field, kinds[field.name]) for field in attrs.fields(options_class)]
    return sorted(found, key=lambda info: info.name in common)


def read_options(
    options_class: type[_OptionsT],
    values: Mapping[str, str],
    *,
    origins: Mapping[str, str] | None = None,
    backend: str = "",
    topic_name: str = "",
) -> _OptionsT:
    """Convert text to an instance of *options_class*.

    :param values: option name to text.
    :param origins: option name to where its value came from, for the error; a :class:`SecretOrigin` hides the value.
    :raises ConfigurationError: naming everything that is wrong at once.
    """
    origins = origins or {}
    infos = {info.name: info for info in describe_options(options_class)}
    unknown = f"the backend {backend!r} has no option" if backend else "unknown option"
    kinds = _kinds(options_class)
    problems: list[str] = []
    converted: dict[str, Any] = {}
    for name, text in values.items():
        if name not in infos:
            problems.append(f"{unknown} {name!r}{_from(origins, name)}{did_you_mean(name, infos)}")
            continue
        try:
            converted[name] = _convert(text, kinds[name], infos[name])
        except ValueError as error:
            shown = "its value" if _is_hidden(infos[name], origins) else repr(text)
            problems.append(f"option {name!r}{_from(origins, name)}: {shown} {error}")
    missing = [info.name for info in infos.values() if info.default is None and info.name not in values]
    problems += [f"option {name!r} is required: {infos[name].help}" for name in missing]
    if not problems:
        options = options_class(**converted)
        hidden = [repr(text) for name, text in values.items() if _is_hidden(infos[name], origins)]
        problems += [_without(hidden, problem) for problem in options.problems()]
        if not problems:
            return options
    raise ConfigurationError("; ".join(problems), backend=backend, topic_name=topic_name)


def _is_hidden(info: OptionInfo, origins: Mapping[str, str]) -> bool:
    return info.secret or isinstance(origins.get(info.name), SecretOrigin)


def _without(hidden: Iterable[str], problem: str) -> str:
    for shown in hidden:
        problem = problem.replace(shown, "its value")
    return problem


def _from(origins: Mapping[str, str], name: str) -> str:
    return f" (from {origins[name]})" if origins.get(name) else ""


def _kinds(options_class: type[CommonOptions]) -> dict[str, _Kind]:
    hints = get_type_hints(options_class)
    return {field.name: _Kind.of(hints[field.name]) for field in attrs.fields(options_class)}


@attrs.frozen
class _Kind:
    """The type of an option, without its ``| None``."""

    type: type[Any]
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, hint: Any) -> _Kind:
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        if get_origin(hint) is Literal:
            return cls(str, get_args(hint))
        return cls(hint)

    def __str__(self) -> str:
        words = {str: "text", int: "integer", float: "number", bool: "true or false"}
        return " | ".join(self.choices) or words[self.type]


def _describe(field: attrs.Attribute[Any], kind: _Kind) -> OptionInfo:
    default = None if field.default is attrs.NOTHING else _text(field.default)
    return OptionInfo(name=field.name, type=str(kind), default=default, **field.metadata[_KEY])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    # 15 digits are what a float holds; fewer would misstate large bounds.
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _convert(text: str, kind: _Kind, info: OptionInfo) -> object:
    if kind.choices:
        if text not in kind.choices:
            raise ValueError(f"is not one of {', '.join(kind.choices)}{did_you_mean(text, kind.choices)}")
        return text
    value = _CONVERTERS[kind.type](text)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = info.minimum, info.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"is out of range: {info.range}{' ' + info.unit if info.unit else ''}")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is not an integer such as 100") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("is not a number such as 60 or 0.5")
    return value


_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _truth(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise ValueError("is not true or false") from None


def _required_text(text: str) -> str:
    if not text:
        raise ValueError("is empty; leave the option out to leave it unset")
    return text


_CONVERTERS: dict[type[Any], Callable[[str], object]] = {
    str: _required_text,
    int: _integer,
    float: _number,
    bool: _truth,
}


def iterate_text(values: Mapping[str, object], where: str) -> Iterator[tuple[str, str]]:
    """Scalars of a parsed file as the text that stands for them.

    :raises ConfigurationError: for a list, a table or any other value that no option can hold.
    """
    for name, value in values.items():
        if not isinstance(value, (str, bool, int, float)):
            raise ConfigurationError(
                f"option {name!r} ({where}) is a {type(value).__name__}; an option is text, a number, or true or false"
            )
        try:
            yield name, value if isinstance(value, str) else _text(value) if isinstance(value, bool) else repr(value)
        except ValueError:  # Python refuses to write thousands of digits
            raise ConfigurationError(f"option {name!r} ({where}) has more digits than a number can have") from None
