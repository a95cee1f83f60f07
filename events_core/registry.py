"""The registry: it finds the class of a backend by its name, through entry points, and explains every failure.

``importlib.metadata`` chooses the entry point, because only it knows the distribution of an entry point.  Stevedore
then loads that one entry point.  Stevedore's own scan is not used: it reads a disk cache that can be stale, and it
imports every candidate of a name before it looks for conflicts.
"""

from __future__ import annotations

import inspect
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs

from events_core.arguments import described
from events_core.errors import BackendConflictError, BackendLoadError, BackendNotFoundError
from events_core.interface import API_VERSION, EventClient
from events_core.options import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BackendInfo", "available_backends", "load_backend", "register_backend"]

GROUP = "events_core.backends"

_EXTRAS = {"gcp", "kafka", "rabbitmq", "sqs"}
"""Backends of other distributions that events-core knows.  The extra that installs one has its name."""

_registered: dict[str, type[EventClient]] = {}
_loaded: dict[str, type[EventClient]] = {}
# The lock guards the two dictionaries only, and is never held during an import.  A thread that imports a module holds
# the module's own lock; if that module loaded a backend, the two threads would wait for each other forever.
_lock = threading.Lock()


@attrs.frozen(kw_only=True)
class BackendInfo:
    """The origin of a backend."""

    name: str
    """The name in a configuration."""
    distribution: str
    """Name of the distribution; ``""`` for a backend registered by this process."""
    version: str
    """Version of the distribution; ``""`` for a backend registered by this process."""
    target: str
    """The class, as ``package.module:Class``."""

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}" if self.distribution else "registered by this process"
        return f"{origin} ({self.target})"


def register_backend(name: str, cls: type[EventClient]) -> None:
    """Register *cls* as the backend *name* in this process, in place of any installed backend of that name.

    :raises BackendLoadError: if *cls* is not a usable client class.
    """
    info = BackendInfo(name=name, distribution="", version="", target=_target(cls))
    checked = _checked(cls, info)
    with _lock:
        _registered[name] = checked


def available_backends() -> list[BackendInfo]:
    """Return every installed and every registered backend, sorted by name, without importing any."""
    with _lock:
        registered = dict(_registered)
    found = [
        BackendInfo(name=name, distribution="", version="", target=_target(cls)) for name, cls in registered.items()
    ]
    found += [_info(entry) for entry in _entry_points() if entry.name not in registered]
    return sorted(found, key=lambda info: (info.name, info.distribution))


def load_backend(name: str) -> type[EventClient]:
    """Import and check the backend *name*, and return its class.  No other backend is imported.

    :param name: the name of a registered or installed backend, or ``"package.module:Class"``.
    :raises BackendNotFoundError: if no installed distribution provides it.  The message says how to install it, or
        names the nearest backend.
    :raises BackendConflictError: if two distributions provide it; neither is imported.
    :raises BackendLoadError: if it is installed and cannot be used.
    """
    if not isinstance(name, str):
        raise BackendNotFoundError(f"a backend's name must be a str, not {described(name)}")
    with _lock:
        # A backend that this process registered takes precedence over an installed one, so that tests can replace it.
        known = _registered.get(name) or _loaded.get(name)
    if known is not None:
        return known
    if ":" in name:
        info = BackendInfo(name=name, distribution="", version="", target=name)
        return _checked(_import_target(name, info), info)
    entry = _choose(name)
    cls = _checked(_import(entry), _info(entry))
    with _lock:
        # Another thread may have loaded it at the same time: all callers get the same class.
        return _loaded.setdefault(name, cls)


def _entry_points(name: str | None = None) -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points  # 50 ms, which importing events_core must not cost

    # importlib.metadata lists a distribution once, also if it is on the path twice (editable and built).
    return tuple(entry_points(group=GROUP) if name is None else entry_points(group=GROUP, name=name))


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _info(entry: EntryPoint) -> BackendInfo:
    version = entry.dist.version if entry.dist else ""
    return BackendInfo(name=entry.name, distribution=_owner(entry), version=version, target=entry.value)


def _choose(name: str) -> EntryPoint:
    entries = _entry_points(name)
    if not entries:
        raise BackendNotFoundError(_not_found(name), backend=name)
    if len(entries) > 1:
        owners = ", ".join(sorted(str(_info(entry)) for entry in entries))
        raise BackendConflictError(
            f"more than one installed distribution provides the backend {name!r}: {owners}; "
            "uninstall all but one, or pass the class to register_backend()",
            backend=name,
        )
    return entries[0]


def _not_found(name: str) -> str:
    if name in _EXTRAS:
        return (
            f"the backend {name!r} is not installed; install it with: pip install 'events-core[{name}]' "
            f"(available: {_names()})"
        )
    known = {info.name for info in available_backends()} | _EXTRAS
    return f"no backend named {name!r}{did_you_mean(name, known)} (available: {_names()})"


def _names() -> str:
    return ", ".join(dict.fromkeys(info.name for info in available_backends())) or "none"


def _import(entry: EntryPoint) -> object:
    from stevedore.driver import DriverManager

    class Chosen(DriverManager[Any]):
        """A manager of the one entry point that is already chosen: without a scan, and without the disk cache."""

        def list_entry_points(self) -> list[EntryPoint]:
            return [entry]

    try:
        return Chosen(entry.group, entry.name).extensions[0].plugin
    except (Exception, SystemExit) as error:
        # SystemExit too: a backend whose import calls sys.exit must not end the program.
        raise _import_failed(_info(entry), error) from error


def _import_target(target: str, info: BackendInfo) -> object:
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise _import_failed(info, error) from error


def _import_failed(info: BackendInfo, error: BaseException) -> BackendLoadError:
    advice = "reinstall or upgrade it with its dependencies" if info.distribution else "correct the name or the module"
    return BackendLoadError(
        f"{_introduced(info)} could not be imported: {type(error).__name__}: {error}; {advice}",
        backend=info.name,
    )


def _introduced(info: BackendInfo) -> str:
    """Return the backend's name together with its origin, unless the name says the origin."""
    if info.distribution:
        return f"the backend {info.name!r} from {info}"
    return f"the backend {info.name!r}" + ("" if info.name == info.target else f", {info},")


def _checked(cls: object, info: BackendInfo) -> type[EventClient]:
    """Return *cls* if it is a usable client class of this interface version.

    :raises BackendLoadError: if it is not.
    """
    reason = _objection(cls)
    if reason:
        raise BackendLoadError(f"{_introduced(info)} cannot be used: {reason}", backend=info.name)
    assert isinstance(cls, type)
    return cls


def _objection(cls: object) -> str:
    if not isinstance(cls, type):
        return f"it is {cls!r}, not a class; point the entry point at a subclass of events_core.EventClient"
    if not issubclass(cls, EventClient):
        return f"{cls.__qualname__} is not a subclass of events_core.EventClient; point the entry point at one"
    # The checks go from the coarse to the fine, so that the reason named is the one to act on.
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        return f"{cls.__qualname__} does not implement {missing}; upgrade the backend"
    version = getattr(cls, "api_version", None)
    if version is None:
        return f"{cls.__qualname__} declares no api_version; this events-core speaks {API_VERSION}, upgrade the backend"
    if version != API_VERSION:
        newer = isinstance(version, int) and version > API_VERSION
        fix = "upgrade events-core" if newer else "upgrade the backend"
        return f"it was written for interface version {version!r}, this events-core speaks {API_VERSION}; {fix}"
    return ""


def _target(cls: object) -> str:
    return f"{cls.__module__}:{cls.__qualname__}" if isinstance(cls, type) else repr(cls)
