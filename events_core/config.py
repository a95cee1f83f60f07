"""The configuration of a client: a backend's name, a topic and options, read from a file, a URL or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import attrs

from events_core.arguments import described, text_objection
from events_core.bounded_file import read_bounded
from events_core.errors import ConfigurationError
from events_core.options import CommonOptions, GivenOptions, OptionValue, SecretOrigin, did_you_mean, iterate_text
from events_core.registry import load_backend
from events_core.requirements import Requirements

__all__ = ["ConfigOverrides", "EventConfig"]


class ConfigOverrides(TypedDict, total=False):
    """Explicit arguments of :func:`create_client` and the ``from_…`` constructors; they override the source.

    A mapping of ``options`` is laid over the options of the source, one by one.  An options object replaces them all.
    """

    backend: str
    topic_name: str
    project_id: str
    options: Mapping[str, OptionValue] | CommonOptions
    require: Sequence[str]


def _options(value: Mapping[str, OptionValue] | CommonOptions) -> Mapping[str, str]:
    if isinstance(value, CommonOptions):
        return GivenOptions(value)
    # attrs.evolve passes the field's own value.
    if isinstance(value, GivenOptions):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"options must be a mapping or an object of the backend's options class, not a value of type {_kind(value)}"
        )
    for name in value:
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of an option is text, not {described(name)}")
    # A copy: the caller may change its mapping later, and the configuration is frozen.
    return MappingProxyType(dict(iterate_text(value)))


def _require(value: Sequence[str]) -> tuple[str, ...]:
    # Written in one way, so that "replay" and "replay:true" make equal configurations.
    return tuple(map(str, Requirements.read(value).each))


def _origins(value: Mapping[str, str]) -> Mapping[str, str]:
    is_text = isinstance(value, Mapping) and all(isinstance(part, str) for item in value.items() for part in item)
    if not is_text:
        raise ConfigurationError("origins must map each option's name to the text that says where it came from")
    return value


def _kind(value: object) -> str:
    return type(value).__name__


@attrs.frozen(eq=True, hash=False)
class EventConfig:
    """The topic that a client uses, the backend that reaches it, and the backend's options.

    Only the client's constructor checks a configuration against the backend, also without I/O.

    :raises ConfigurationError: if the topic is missing, or if a field has the wrong type.
    """

    topic_name: str = attrs.field()
    """The one topic that a client uses."""
    project_id: str = attrs.field(default="")
    """The broker's name space, if it has one."""
    options: Mapping[str, str] = attrs.field(factory=dict, converter=_options, repr=False)
    """The options: name to text.  They are not in the representation, because some are secret (rule O2: secrets).

    The constructor also takes numbers, booleans, paths and ``timedelta``, or an object of the backend's options class,
    such as ``SQLiteOptions(path="events.db")``."""
    backend: str = attrs.field(default="")
    """A registered name, or ``"package.module:Class"``."""
    require: tuple[str, ...] = attrs.field(default=(), converter=_require, kw_only=True)
    """The least that the backend must promise (rule O4: require): ``["ordering:subscription", "durable:power_loss"]``.

    Each is the name of a capability or limit, a colon, and a value; ``"replay"`` is short for ``"replay:true"``."""
    origins: Mapping[str, str] = attrs.field(factory=dict, converter=_origins, repr=False, eq=False, kw_only=True)
    """The source of each option's value, for error messages.  Configurations that differ only here are equal."""

    @topic_name.validator
    @project_id.validator
    @backend.validator
    def _check_text(self, attribute: attrs.Attribute[str], value: object) -> None:
        if not isinstance(value, str):
            raise ConfigurationError(f"{attribute.name} must be a str, not {described(value)}")
        if not value and attribute.name == "topic_name":
            raise ConfigurationError("topic_name must not be empty: a client uses exactly one topic")
        objection = text_objection(value)
        if objection:
            raise ConfigurationError(f"{attribute.name} {described(value)} {objection}")

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled.
        restore = partial(type(self), origins=dict(self.origins), require=self.require)
        options = self.options.given if isinstance(self.options, GivenOptions) else dict(self.options)
        return restore, (self.topic_name, self.project_id, options, self.backend)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        name: str,
        *,
        environ: Mapping[str, str] | None = None,
        **overrides: Unpack[ConfigOverrides],
    ) -> Self:
        """Read the client *name*: the table ``[clients.NAME]`` of a TOML file.

        If the environment has ``EVENTS_<NAME>_URL``, the variable takes precedence over the file.  Its URL replaces
        backend, project and topic.  If it names another backend, it replaces the file's options as well.  The file then
        need not have the table.  An empty variable counts as not set.

        The file may point at secrets.  Those that an argument or the variable replaces are not looked up.

        :raises ConfigurationError: if the file cannot be read or parsed, or if the client is configured nowhere.
        """
        file = _file(path)
        environ = _environ(environ)
        upper = cls.from_env(name, environ) if environ.get(variable_of(name)) else None
        clients = clients_of(file)
        if name not in clients:
            if upper is None:
                raise ConfigurationError(_nowhere(name, environ, file, clients))
            return upper.overridden(**overrides)
        # A test that runs on another backend has none of the file's secrets, so they must not be looked up for it.
        table = _uncovered(clients[name], upper, _options(overrides.get("options", {})))
        config = _from_table(cls, table, f"{file} [clients.{name}]", os.path.dirname(file), environ)
        if upper is not None:
            config = upper._over(config)
        return config.overridden(**overrides)

    @classmethod
    def from_url(cls, url: str, **overrides: Unpack[ConfigOverrides]) -> Self:
        """Read ``backend://project/topic?option=value``; the backend says what authority and path mean.

        All parts are percent-decoded.  In the value of an option, ``+`` is a space: write ``%2B`` for a plus.

        :raises ConfigurationError: if the URL is malformed.
        :raises BackendError: if the backend that the URL names cannot be loaded.
        """
        return _from_url(cls, url, "the URL").overridden(**overrides)

    @classmethod
    def from_env(
        cls, name: str, environ: Mapping[str, str] | None = None, **overrides: Unpack[ConfigOverrides]
    ) -> Self:
        """Read the URL in the environment variable ``EVENTS_<NAME>_URL``.

        The variable of ``client-7`` is ``EVENTS_CLIENT_7_URL``.

        :raises ConfigurationError: if the variable is not set, or malformed.
        """
        variable = variable_of(name)
        environ = _environ(environ)
        if not environ.get(variable):
            raise ConfigurationError(_nowhere(name, environ))
        return _from_url(cls, environ[variable], variable).overridden(**overrides)

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        **overrides: Unpack[ConfigOverrides],
    ) -> Self:
        """Read a mapping of the same form as a client's table in a file.

        Its options may also be paths and ``timedelta``.

        :raises ConfigurationError: for unknown keys and values of the wrong type.
        """
        return _from_table(cls, mapping, "the mapping", "", _environ(environ)).overridden(**overrides)

    def _over(self, lower: Self) -> Self:
        """Return this configuration with the options of *lower* that it does not have, and what *lower* requires.

        Requirements stay if another backend is chosen: they say what the program needs of any backend.
        """
        return attrs.evolve(
            self,
            require=self.require or lower.require,
            options={**lower.options, **self.options},
            origins={**lower.origins, **self.origins},
        )

    def overridden(self, **overrides: Unpack[ConfigOverrides]) -> Self:
        """Return this configuration with *overrides* in place of what it has.

        :raises ConfigurationError: for a value of the wrong type, and for options to be merged with an options object.
        """
        if "options" not in overrides:
            return attrs.evolve(self, **overrides)
        options = _options(overrides["options"])
        origins: Mapping[str, str] = {}
        if not isinstance(options, GivenOptions):
            if isinstance(self.options, GivenOptions):
                kind = _kind(self.options.given)
                raise ConfigurationError(
                    f"the options are an object of {kind}, which is never merged with others; "
                    "change a copy of it with attrs.evolve, and pass that"
                )
            origins = {**self.origins, **dict.fromkeys(options, "an argument")}
            options = {**self.options, **options}
        fields: dict[str, Any] = {**overrides, "options": options, "origins": origins}
        return attrs.evolve(self, **fields)


def _file(path: str | os.PathLike[str]) -> str:
    file = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(file, str):
        raise ConfigurationError(
            f"the path of a configuration file must be a str or os.PathLike, not {described(path)}"
        )
    return file


def _environ(given: Mapping[str, str] | None) -> Mapping[str, str]:
    # os.environ is no default of a parameter: help() and the documentation would print all of it, with its secrets.
    return os.environ if given is None else given


def variable_of(name: str) -> str:
    """Return the name of the environment variable that configures the client *name*."""
    if not isinstance(name, str):
        raise ConfigurationError(f"the name of a client must be a str, not {described(name)}")
    return f"EVENTS_{_middle(name)}_URL"


def _middle(name: str) -> str:
    # Shells accept only these characters in the name of a variable.
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def clients_of(path: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the table of each client in the file at *path*."""
    import tomllib  # only programs that read a file need it, and importing events_core must stay cheap

    try:
        # Some editors begin a file with a byte order mark, which TOML does not allow.
        document = tomllib.loads(read_bounded(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"cannot read configuration file '{path}': {error.strerror}") from error
    except ValueError as error:  # TOML that is malformed, text that is no UTF-8, an integer of thousands of digits
        raise ConfigurationError(f"configuration file '{path}' is not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigurationError(
            f"configuration file '{path}' is not usable: its values are nested too deeply"
        ) from None
    clients = document.get("clients", {})
    items = clients.items() if isinstance(clients, dict) else ()
    return {name: table for name, table in items if isinstance(table, dict)}


def _nowhere(name: str, environ: Mapping[str, str], file: str = "", clients: Collection[str] = ()) -> str:
    """Return the message of an error: which places were searched for the client *name*, and similar names there."""
    variable = variable_of(name)
    if not file:
        found = "no file is given, as in file='events.toml'"
    elif clients:
        found = f"'{file}' has no table [clients.{name}]; its clients are: {', '.join(map(repr, clients))}"
    else:
        found = f"'{file}' has no table [clients.{name}] and no other client"
    # Only names are shown: the URLs may have secrets.  Only the middle is compared: the rest makes all names similar.
    others = [match[1] for other in environ if (match := re.fullmatch("EVENTS_(.+)_URL", other)) and environ[other]]
    hint = did_you_mean(name, clients) or did_you_mean(_middle(name), others, written="EVENTS_{}_URL")
    return f"client {name!r} is configured nowhere: the environment variable {variable} is not set, and {found}{hint}"


def _uncovered(table: Mapping[str, Any], upper: EventConfig | None, given: Mapping[str, str]) -> Mapping[str, Any]:
    """Return *table* without the options that *upper* or *given* ones replace."""
    options = table.get("options", {})
    if not isinstance(options, Mapping):
        return table
    # The options of one backend mean nothing to another.
    if isinstance(given, GivenOptions) or (upper is not None and upper.backend != table.get("backend", "")):
        return {**table, "options": {}}
    replaced = {*given, *(upper.options if upper is not None else ())}
    return {**table, "options": {name: value for name, value in options.items() if name not in replaced}}


ConfigT = TypeVar("ConfigT", bound=EventConfig)

_FIELDS = ("backend", "topic_name", "project_id", "options", "require")


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
    try:
        Requirements.read(table.get("require", ()))
    except ConfigurationError as error:
        problems.append(str(error))
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
        require=table.get("require", ()),
        # A value from another file or a variable is hidden in errors, because it may be a secret.
        origins={name: SecretOrigin(where) if isinstance(raw[name], Mapping) else where for name in options},
    )


def _resolved(name: str, value: object, where: str, folder: str, environ: Mapping[str, str]) -> object:
    """Return *value*, or the text to which ``{ env = … }`` or ``{ file = … }`` points."""
    match value:
        case {"env": str(variable), **rest} if not rest:
            try:
                return environ[variable]
            except (KeyError, ValueError):  # ValueError if no variable can have such a name
                raise ConfigurationError(
                    f"{where}: option {name!r}: environment variable {variable} is not set"
                ) from None
        case {"file": str(path), **rest} if not rest:
            whole = _whole(os.path.join(folder, path))
            try:
                # Editors and "echo" end a file with a line break, which is not part of a key or password.
                return read_bounded(whole).decode().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not valid UTF-8"
                # A decoding error is not chained: its text would show the content.
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
    from urllib.parse import parse_qsl, unquote, urlsplit  # programs without a URL do not need it

    if not isinstance(url, str):
        raise ConfigurationError(f"{where} must be text, not a value of type {_kind(url)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        # The error is not chained: its text would repeat a part of the URL, which may be a secret.
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
    # The backend gives authority and path their meaning, so no URL can be read without importing it.  They are decoded
    # only now: a "/" that was written as %2F must not split the URL.
    location = load_backend(parts.scheme).parse_location(unquote(parts.netloc), unquote(parts.path))
    options = {**location.options, **options}
    return cls(
        topic_name=location.topic_name,
        project_id=location.project_id,
        backend=parts.scheme,
        options=options,
        origins=dict.fromkeys(options, where),
    )
