"""Typed options: a class declares them once, and text is converted to them; errors explain what is wrong.

A backend's options are a frozen attrs class that extends :class:`CommonOptions` and declares each field with
:func:`option`.  The same declaration drives conversion, range checks, the command line's help and the documentation.

A configuration carries options as text, because files, URLs and the environment have nothing else.  Python code may
give other values, which become text here, or an object of the options class (:class:`GivenOptions`).
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from events_core.arguments import described, text_objection
from events_core.errors import ConfigurationError

__all__ = [
    "CommonOptions",
    "GivenOptions",
    "OptionInfo",
    "OptionValue",
    "SecretOrigin",
    "describe_options",
    "did_you_mean",
    "option",
    "read_options",
]

_KEY = "events_core.option"
_CHECK = "events_core.check"
_INT64 = 2**63 - 1
"""The largest number that a broker can be told: Pub/Sub and SQLite store numbers in 64 bits."""
_OptionsT = TypeVar("_OptionsT", bound="CommonOptions")

OptionValue: TypeAlias = str | int | float | bool | os.PathLike[str] | timedelta
"""A value that Python code may give to an option.  A ``timedelta`` stands for its number of seconds."""


class SecretOrigin(str):
    """The origin of a value that a configuration takes from elsewhere, as in ``{ file = … }``.

    No error shows such a value: it may be a secret that was given to the wrong option.
    """

    __slots__ = ()


def _right(value: object) -> str:
    """Find nothing wrong with *value*."""
    return ""


@attrs.frozen(kw_only=True)
class OptionInfo:
    """The description of one option: for help texts, listings and documentation."""

    name: str
    """The name in a configuration."""
    type: str
    """``text``, ``integer``, ``number``, ``true or false``, or the choices separated by ``|``."""
    default: str | None
    """The default as text: ``None`` if the option is required, ``""`` if it is unset."""
    help: str
    """One sentence."""
    unit: str
    """``seconds`` or ``bytes``; ``""`` if it has none."""
    minimum: float | None
    """Smallest value allowed; ``None`` if there is no bound."""
    maximum: float | None
    """Largest value allowed; ``None`` if there is no bound."""
    secret: bool
    """True if its value and its default are never shown."""

    @property
    def range(self) -> str:
        """The range as text, ``""`` if there is none."""
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
    check: Callable[[Any], str] | None = None,
) -> Any:
    """Declare one option of an options class.

    The annotation gives the type: ``str``, ``int``, ``float``, ``bool`` or ``Literal[...]`` of strings, each also
    with ``| None``.

    :param help: one sentence for people.
    :param default: the value if none is given; an option without a default is required.
    :param unit: ``"seconds"`` or ``"bytes"``, if the number has a unit.
    :param minimum: smallest value allowed, inclusive.
    :param maximum: largest value allowed, inclusive.
    :param secret: true for a value that no representation, log record, error or listing may show (rule O2: secrets).
    :param check: returns what is wrong with a converted value, for example ``is not a time``; ``""`` if it is right.
    """
    # The range is checked by read_options and not by a validator of attrs, so that one error tells all problems.
    metadata = {
        _KEY: {"help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "secret": secret},
        _CHECK: check or _right,
    }
    return attrs.field(default=default, kw_only=True, repr=not secret, metadata=metadata)


@attrs.frozen(kw_only=True)
class CommonOptions:
    """Options that every backend understands."""

    subscription: str | None = option(
        default=None,
        help="Subscription that subscribe() joins without a name; created on connecting, if create allows it.",
    )
    create: Literal["never", "subscription", "all"] = option(
        default="never", help="What may be created if it is missing: nothing, the subscription, or also the topic."
    )
    start: Literal["latest", "earliest"] = option(
        default="latest",
        help="First message of a new subscription: the next one that is sent, or the oldest one that is kept.",
    )
    ordering: bool | None = option(
        default=None, help="Ask for order per key (true), or do without it (false); unset is the backend's own default."
    )
    max_outstanding_messages: int = option(
        default=1000, minimum=1, maximum=_INT64, help="Largest number of messages that one receiver holds and buffers."
    )
    max_outstanding_bytes: int = option(
        default=100 * 2**20,
        minimum=1,
        maximum=_INT64,
        unit="bytes",
        help="Largest number of bytes that one receiver holds and buffers.",
    )
    max_lease_duration: float = option(
        default=3600.0,
        minimum=0.001,
        unit="seconds",
        help="Longest time for which a receiver keeps an unsettled message.",
    )
    max_delivery_attempts: int | None = option(
        default=None,
        minimum=1,
        maximum=_INT64,
        help="Failed deliveries after which a message goes to dead_letter_topic.",
    )
    dead_letter_topic: str | None = option(
        default=None, help="Topic for messages that failed max_delivery_attempts times."
    )
    dead_letter_subscription: str | None = option(
        default=None,
        help="Subscription that a receiver creates on dead_letter_topic, if the topic has none and create allows it; "
        "by default the topic's name with '-letters'.",
    )
    send_timeout: float = option(
        default=60.0,
        minimum=0.001,
        unit="seconds",
        help="Longest time for a send, including the wait for room and the retries.",
    )
    ack_timeout: float = option(
        default=60.0, minimum=0.001, unit="seconds", help="Longest time for settling messages, including the retries."
    )
    connect_timeout: float = option(
        default=30.0, minimum=0.001, unit="seconds", help="Longest time for connecting, or for joining a subscription."
    )
    publish_max_messages: int = option(
        default=10_000, minimum=1, help="Largest number of messages in flight from all sends of one client."
    )
    publish_max_bytes: int = option(
        default=100 * 2**20,
        minimum=1,
        unit="bytes",
        help="Largest number of bytes in flight from all sends of one client.",
    )
    publish_on_limit: Literal["wait", "error"] = option(
        default="wait", help="Reaction of a send to a reached limit: wait for room, or fail at once."
    )

    @property
    def letters_subscription(self) -> str:
        """The subscription that keeps the letters of ``dead_letter_topic``, if that has no other."""
        return self.dead_letter_subscription or f"{self.dead_letter_topic}-letters"

    def problems(self) -> Iterable[str]:
        """Yield a sentence for each contradiction between several options; a backend's class extends it."""
        if (self.max_delivery_attempts is None) is not (self.dead_letter_topic is None):
            yield "options 'max_delivery_attempts' and 'dead_letter_topic' go together; give both or neither"
        for name in ("subscription", "dead_letter_topic", "dead_letter_subscription"):
            objection = text_objection(getattr(self, name) or "")
            if objection:
                yield f"option {name!r}: {described(getattr(self, name))} {objection}"
        if self.dead_letter_subscription is not None and self.dead_letter_topic is None:
            yield "the option 'dead_letter_subscription' needs 'dead_letter_topic'; give both or neither"


class GivenOptions(Mapping[str, str]):
    """The options of an options object, as text.

    :func:`read_options` also needs the object, because no text stands for ``None`` or for some defaults.  A backend
    that reads the mapping finds every option that is not ``None``.
    """

    def __init__(self, given: CommonOptions) -> None:
        values = attrs.asdict(given, recurse=False)
        self.given = given
        self.unset: Collection[str] = [name for name, value in values.items() if value is None]
        """The names of the options that are ``None``."""
        self.unchanged: Collection[str] = [
            field.name for field in attrs.fields(type(given)) if _is_default(field, values[field.name])
        ]
        """The names of the options that have their defaults."""
        self.origins: Mapping[str, str] = dict.fromkeys(values, type(given).__name__)
        """The origin of each option, for errors: the class."""
        given_values = {name: value for name, value in values.items() if value is not None}
        self._texts = dict(iterate_text(given_values, type(given).__name__))

    def class_for(self, options_class: type[_OptionsT], backend: str) -> type[_OptionsT]:
        """Return the class of the object.

        :raises ConfigurationError: if it is not *options_class* or a subclass of it.
        """
        found = type(self.given)
        if not issubclass(found, options_class):
            wanted = options_class.__name__
            raise ConfigurationError(
                f"the backend {backend!r} takes {wanted}, not {found.__name__}; pass options={wanted}(…)",
                backend=backend,
            )
        return found

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def _is_default(field: attrs.Attribute[Any], value: object) -> bool:
    # The type counts, because True equals 1.
    return type(value) is type(field.default) and value == field.default


def did_you_mean(name: str, known: Collection[str], *, written: str = "{}") -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of *known*, ``""`` if none is near.

    :param written: a format that turns one of *known* into what the user writes.
    """
    import difflib  # only errors need it, and importing events_core must stay cheap

    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {written.format(near[0])!r}?" if near else ""


def describe_options(options_class: type[CommonOptions]) -> list[OptionInfo]:
    """Return every option of *options_class*: its own first, the common ones last."""
    common = {field.name for field in attrs.fields(CommonOptions)}
    kinds = _kinds(options_class)
    found = [_describe(field, kinds[field.name]) for field in attrs.fields(options_class)]
    # The sort keeps the order of declaration within both groups.
    return sorted(found, key=lambda info: info.name in common)


def read_options(
    options_class: type[_OptionsT],
    values: Mapping[str, str],
    *,
    origins: Mapping[str, str] | None = None,
    backend: str = "",
    topic_name: str = "",
) -> _OptionsT:
    """Convert the options of a configuration to an instance of *options_class*.

    :param values: option name to text.  If the configuration was given an options object, it is checked as text is, and
        must be an instance of *options_class*.
    :param origins: option name to where its value came from, for the error; a :class:`SecretOrigin` hides the value.
    :raises ConfigurationError: naming everything that is wrong at once.
    """
    origins = origins or {}
    unset: Collection[str] = ()
    if isinstance(values, GivenOptions):
        options_class = values.class_for(options_class, backend)
        origins, unset = values.origins, values.unset
        # A default need not be a value that can be given: "" and inf often mean that there is none.
        values = {name: text for name, text in values.items() if name not in values.unchanged}
    infos = {info.name: info for info in describe_options(options_class)}
    unknown = f"the backend {backend!r} has no option" if backend else "unknown option"
    kinds = _kinds(options_class)
    problems: list[str] = []
    converted: dict[str, Any] = dict.fromkeys(unset)
    problems += [
        f"option {name!r}{_from(origins, name)} must not be None" for name in unset if not kinds[name].optional
    ]
    for name, text in values.items():
        if name not in infos:
            problems.append(f"{unknown} {name!r}{_from(origins, name)}{did_you_mean(name, infos)}")
            continue
        try:
            converted[name] = _convert(text, kinds[name], infos[name])
        except ValueError as error:
            shown = "its value" if _is_hidden(infos[name], origins) else repr(text)
            problems.append(f"option {name!r}{_from(origins, name)}: {shown} {error}")
    missing = [info.name for info in infos.values() if info.default is None and info.name not in {*values, *unset}]
    problems += [f"option {name!r} is required: {infos[name].help}" for name in missing]
    # Contradictions are looked for last: they need an object, and it needs every value to be right.
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
    # A backend writes these sentences itself, and does not know which values came from a secret place.
    for shown in hidden:
        problem = problem.replace(shown, "its value")
    return problem


def _from(origins: Mapping[str, str], name: str) -> str:
    return f" (from {origins[name]})" if origins.get(name) else ""


def _kinds(options_class: type[CommonOptions]) -> dict[str, _Kind]:
    hints = get_type_hints(options_class)
    return {
        field.name: _Kind.of(hints[field.name], field.metadata.get(_CHECK, _right))
        for field in attrs.fields(options_class)
    }


@attrs.frozen
class _Kind:
    """The type of an option, without its ``| None``."""

    type: type[Any]
    choices: tuple[str, ...] = ()
    optional: bool = False
    check: Callable[[Any], str] = _right

    @classmethod
    def of(cls, hint: Any, check: Callable[[Any], str]) -> _Kind:
        optional = get_origin(hint) in (Union, types.UnionType)
        if optional:
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        if get_origin(hint) is Literal:
            return cls(str, get_args(hint), optional, check)
        return cls(hint, optional=optional, check=check)

    def __str__(self) -> str:
        words = {str: "text", int: "integer", float: "number", bool: "true or false"}
        return " | ".join(self.choices) or words[self.type]


def _describe(field: attrs.Attribute[Any], kind: _Kind) -> OptionInfo:
    default = None if field.default is attrs.NOTHING else _text(field.default)
    return OptionInfo(name=field.name, type=str(kind), default=default, **field.metadata[_KEY])


def _text(value: object) -> str:
    if value is None:
        return ""
    # Before int, because a bool is one.
    if isinstance(value, bool):
        return "true" if value else "false"
    # A float holds 15 digits; with fewer, a large bound would be shown wrong.
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _convert(text: str, kind: _Kind, info: OptionInfo) -> object:
    if kind.choices:
        if text not in kind.choices:
            raise ValueError(f"is not one of {', '.join(kind.choices)}{did_you_mean(text, kind.choices)}")
        return text
    value = _CONVERTERS[kind.type](text)
    # A bool is an int to Python, but has no range.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = info.minimum, info.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"is out of range: {info.range}{' ' + info.unit if info.unit else ''}")
    if objection := kind.check(value):
        raise ValueError(objection)
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


def iterate_text(values: Mapping[str, object], where: str = "") -> Iterator[tuple[str, str]]:
    """Yield each name with the text that stands for its value.

    :param where: the source of the values, for the error.
    :raises ConfigurationError: for a list, a table or any other value that no option can hold.
    """
    for name, value in values.items():
        try:
            text = _given_text(value)
        except ValueError:  # Python refuses to write thousands of digits
            raise ConfigurationError(
                f"option {name!r}{_from({name: where}, name)} has more digits than a number can have"
            ) from None
        if text is None:
            raise ConfigurationError(
                f"option {name!r}{_from({name: where}, name)} is of type {type(value).__name__}; "
                "an option is text, a number, true or false, a path or a timedelta"
            )
        yield name, text


def _given_text(value: object) -> str | None:
    """Return the text that stands for *value*, ``None`` if no option can hold it."""
    match value:
        # The methods of the built-in types, because the repr of an enum or of a number of numpy is another text.
        case str():
            return str.__str__(value)
        case bool():
            return _text(value)
        case int():
            return int.__repr__(value)
        case float():
            return float.__repr__(value)
        case timedelta():
            seconds = value.total_seconds()
            return str(int(seconds)) if seconds.is_integer() else repr(seconds)  # an integer option takes no "60.0"
        case os.PathLike():
            path = os.fspath(value)
            return path if isinstance(path, str) else None
    return None
