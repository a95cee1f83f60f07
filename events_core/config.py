"""What a client is built from: a backend's name, a topic and options, read from wherever they are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import attrs

from events_core.arguments import described, text_objection
from events_core.bounded_file import read_bounded
from events_core.errors import ConfigurationError
from events_core.options import SecretOrigin, did_you_mean, iterate_text

__all__ = ["ConfigOverrides", "EventConfig"]


class ConfigOverrides(TypedDict, total=False):
    """Explicit arguments of the ``from_…`` constructors: they beat whatever the source says."""

    backend: str
    topic_name: str
    project_id: str
    options: Mapping[str, str]


def _options(value: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"options must be a mapping of text to text, not a value of type {_kind(value)}")
    for name, text in value.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of an option is text, not {described(name)}")
        if not isinstance(text, str):
            raise ConfigurationError(f"option {name!r} is given as {_kind(text)}; options are text, as in '60'")
    return MappingProxyType(dict(value))


def _origins(value: Mapping[str, str]) -> Mapping[str, str]:
    is_text = isinstance(value, Mapping) and all(isinstance(part, str) for item in value.items() for part in item)
    if not is_text:
        raise ConfigurationError("origins must map each option's name to the text that says where it came from")
    return value


def _kind(value: object) -> str:
    return type(value).__name__


@attrs.frozen(eq=True, hash=False)
class EventConfig:
    """Which topic of which broker, and how.

    Nothing here is checked against a backend: constructing the client does that, without any I/O.

    :raises ConfigurationError: when the topic is missing, or a field is no text.
    """

    topic_name: str = attrs.field()
    """The one topic that a client speaks to."""
    project_id: str = attrs.field(default="")
    """The broker's name space, where it has one."""
    options: Mapping[str, str] = attrs.field(factory=dict, converter=_options, repr=False)
    """Option name to text; never part of the representation, since some are secret."""
    backend: str = attrs.field(default="")
    """A registered name, or ``"package.module:Class"``."""
    origins: Mapping[str, str] = attrs.field(factory=dict, converter=_origins, repr=False, eq=False, kw_only=True)
    """Where each option's value came from, for error messages."""

    @topic_name.validator
    @project_id.validator
    @backend.validator
    def _check_text(self, attribute: attrs.Attribute[str], value: object) -> None:
        if not isinstance(value, str):
            raise ConfigurationError(f"{attribute.name} must be a str, not {described(value)}")
        if not value and attribute.name == "topic_name":
            raise ConfigurationError("topic_name must not be empty: a client speaks to one topic")
        objection = text_objection(value)
        if objection:
            raise ConfigurationError(f"{attribute.name} {described(value)} {objection}")

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled.
        restore = partial(type(self), origins=dict(self.origins))
        return restore, (self.topic_name, self.project_id, dict(self.options), self.backend)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        name: str,
        *,
        environ: Mapping[str, str] = os.environ,
        **overrides: Unpack[ConfigOverrides],
    ) -> Self:
        """Read ``[clients.NAME]`` of a TOML file.

        Where the environment has ``EVENTS_<NAME>_URL``, that comes first: it replaces backend, project and topic,
        and, when it names another backend, the file's options as well.  Of secrets that the file points at, only those
        are looked up that nothing replaces.  An empty variable counts as not set.

        :raises ConfigurationError: when the file cannot be read or parsed, or does not have such a client.
        """
        file = _file(path)
        upper = cls.from_env(name, environ) if environ.get(_variable(name)) else None
        # What is replaced is not looked up either: a test on another backend has none of the file's secrets.
        table = _uncovered(_client_table(file, name), upper, _options(overrides.get("options", {})))
        config = _from_table(cls, table, f"{file} [clients.{name}]", os.path.dirname(file), environ)
        if upper is not None:
            config = upper._over(config)
        return config._overridden(overrides)

    @classmethod
    def from_url(cls, url: str, **overrides: Unpack[ConfigOverrides]) -> Self:
        """Read ``backend://project/topic?option=value``; the backend says what authority and path mean.

        All of it is percent-decoded.  In the value of an option ``+`` is a space: write ``%2B`` for a plus.

        :raises ConfigurationError: when the URL is malformed.
        :raises BackendError: when the backend that the URL names cannot be loaded.
        """
        return _from_url(cls, url, "the URL")._overridden(overrides)

    @classmethod
    def from_env(cls, name: str, environ: Mapping[str, str] = os.environ, **overrides: Unpack[ConfigOverrides]) -> Self:
        """Read the URL in ``EVENTS_<NAME>_URL``.

        :raises ConfigurationError: when the variable is not set, or malformed.
        """
        variable = _variable(name)
        if not environ.get(variable):
            raise ConfigurationError(f"no URL for client {name!r}: set the environment variable {variable}")
        return _from_url(cls, environ[variable], variable)._overridden(overrides)

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        *,
        environ: Mapping[str, str] = os.environ,
        **overrides: Unpack[ConfigOverrides],
    ) -> Self:
        """Read a mapping of the same form as a client's table in a file.

        :raises ConfigurationError: for unknown keys and values of the wrong type.
        """
        return _from_table(cls, mapping, "the mapping", "", environ)._overridden(overrides)

    def _over(self, lower: Self) -> Self:
        """This configuration with what it has left of *lower*."""
        return attrs.evolve(
            self,
            options={**lower.options, **self.options},
            origins={**lower.origins, **self.origins},
        )

    def _overridden(self, overrides: ConfigOverrides) -> Self:
        if not overrides:
            return self
        given = _options(overrides.get("options", {}))
        merged: dict[str, Any] = {
            **overrides,
            "options": {**self.options, **given},
            "origins": {**self.origins, **dict.fromkeys(given, "an argument")},
        }
        return attrs.evolve(self, **merged)


def _file(path: str | os.PathLike[str]) -> str:
    file = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(file, str):
        raise ConfigurationError(f"a configuration file's path must be a str or os.PathLike, not {described(path)}")
    return file


def _variable(name: str) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"the name of a client must be a str, not {described(name)}")
    return f"EVENTS_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}_URL"


def _client_table(path: str, name: str) -> Mapping[str, Any]:
    import tomllib  # here, like all that only some programs need: importing events_core must not pay for it

    try:
        document = tomllib.loads(read_bounded(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"cannot read configuration file '{path}': {error.strerror}") from error
    except ValueError as error:  # TOML that is malformed, text that is no UTF-8, an integer of thousands of digits
        raise ConfigurationError(f"configuration file '{path}' is no TOML: {error}") from error
    except RecursionError:
        raise ConfigurationError(f"configuration file '{path}' is no usable TOML: nested too deeply") from None
    clients = document.get("clients", {})
    if not isinstance(clients, dict) or not isinstance(clients.get(name), dict):
        known = ", ".join(map(repr, clients)) if isinstance(clients, dict) and clients else "none"
        hint = did_you_mean(name, clients) if isinstance(clients, dict) else ""
        raise ConfigurationError(f"no table [clients.{name}] in '{path}'; it has clients: {known}{hint}")
    table: Mapping[str, Any] = clients[name]
    return table


def _uncovered(table: Mapping[str, Any], upper: EventConfig | None, given: Collection[str]) -> Mapping[str, Any]:
    """*table* without the options that *upper* or *given* ones replace."""
    options = table.get("options", {})
    if not isinstance(options, Mapping):
        return table
    if upper is not None and upper.backend != table.get("backend", ""):
        return {**table, "options": {}}
    replaced = {*given, *(upper.options if upper is not None else ())}
    return {**table, "options": {name: value for name, value in options.items() if name not in replaced}}


ConfigT = TypeVar("ConfigT", bound=EventConfig)

_FIELDS = ("backend", "topic_name", "project_id", "options")


def _from_table(
    cls: type[ConfigT], table: Mapping[str, Any], where: str, folder: str, environ: Mapping[str, str]
) -> ConfigT:
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where} must be a mapping with 'topic_name' and more, not {described(table)}")
    elsewhere = "; options go into the table 'options'"
    problems = [
        f"unknown key {described(key)}{did_you_mean(str(key), _FIELDS) or elsewhere}"
        for key in table
        if key not in _FIELDS
    ]
    problems += [
        f"{key!r} must be text, not {described(table[key])}"
        for key in _FIELDS[:3]
        if key in table and not isinstance(table[key], str)
    ]
    raw = table.get("options", {})
    if not isinstance(raw, Mapping):
        problems.append("'options' must be a table")
    if not table.get("topic_name"):
        problems.append("'topic_name' is required")
    if problems:
        raise ConfigurationError(f"{where}: {'; '.join(problems)}")
    resolved = {name: _resolved(name, value, where, folder, environ) for name, value in raw.items()}
    options = dict(iterate_text(resolved, where))
    return cls(
        topic_name=table["topic_name"],
        project_id=table.get("project_id", ""),
        backend=table.get("backend", ""),
        options=options,
        origins={name: SecretOrigin(where) if isinstance(raw[name], Mapping) else where for name in options},
    )


def _resolved(name: str, value: object, where: str, folder: str, environ: Mapping[str, str]) -> object:
    """The value itself, or what ``{ env = … }`` or ``{ file = … }`` points at."""
    match value:
        case {"env": str(variable), **rest} if not rest:
            try:
                return environ[variable]
            except (KeyError, ValueError):  # ValueError where no variable can have such a name
                raise ConfigurationError(
                    f"{where}: option {name!r}: environment variable {variable} is not set"
                ) from None
        case {"file": str(path), **rest} if not rest:
            whole = _whole(os.path.join(folder, path))
            try:
                return read_bounded(whole).decode().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
                # Not chained where it would show the content.
                cause = error if isinstance(error, OSError) else None
                raise ConfigurationError(f"{where}: option {name!r}: cannot read file '{whole}': {reason}") from cause
        case Mapping():
            raise ConfigurationError(f"{where}: option {name!r} is neither text, {{ env = … }} nor {{ file = … }}")
    return value


def _whole(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory has been deleted
        return path


def _from_url(cls: type[ConfigT], url: str, where: str) -> ConfigT:
    from urllib.parse import parse_qsl, unquote, urlsplit

    # The backend maps authority and path, so a URL cannot be read without it; imported here because the registry
    # stands above values.
    from events_core.registry import load_backend

    if not isinstance(url, str):
        raise ConfigurationError(f"{where} must be text, not a value of type {_kind(url)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        # The error would repeat a part of the URL, which may be a secret.
        raise ConfigurationError(f"{where} is malformed; write backend://project/topic?option=value") from None
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigurationError(f"{where} is malformed after '?'; each option is name=value, with & between") from None
    if not parts.scheme:
        raise ConfigurationError(f"{where} names no backend; write backend://project/topic?option=value")
    if parts.fragment:
        raise ConfigurationError(f"{where} has a fragment ('#…'); write '#' in a value as %23")
    options = dict(pairs)
    if len(options) != len(pairs):
        twice = sorted({name for name, _ in pairs if sum(other == name for other, _ in pairs) > 1})
        raise ConfigurationError(f"{where} gives the option {twice[0]!r} more than once", backend=parts.scheme)
    location = load_backend(parts.scheme).parse_location(unquote(parts.netloc), unquote(parts.path))
    options = {**location.options, **options}
    return cls(
        topic_name=location.topic_name,
        project_id=location.project_id,
        backend=parts.scheme,
        options=options,
        origins=dict.fromkeys(options, where),
    )
