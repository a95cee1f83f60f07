"""The command ``events backends``."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from events_core import BackendInfo, Capabilities, EventClient, EventError, available_backends, load_backend
from events_core.cli.ndjson import dump
from events_core.cli.printing import printed
from events_core.options import OptionInfo, describe_options

__all__ = ["describe_backend", "list_backends"]


@attrs.frozen
class _Loaded:
    """A backend, with its class, or with the problem that importing it had."""

    info: BackendInfo
    cls: type[EventClient] | None = None
    problem: str = ""

    @classmethod
    def of(cls, info: BackendInfo) -> _Loaded:
        # Only importing a backend shows whether it can be used.
        try:
            return cls(info, load_backend(info.name))
        except EventError as error:
            return cls(info, problem=str(error))

    def as_json(self) -> dict[str, object]:
        described: dict[str, object] = {**attrs.asdict(self.info), "error": self.problem or None}
        if self.cls is not None:
            described["capabilities"] = attrs.asdict(self.cls.full_capabilities)
            described["options"] = [_option_as_json(option) for option in describe_options(self.cls.options_class)]
        return described


def list_backends(*, as_json: bool) -> bytes:
    """Return a table, or JSON lines, of all installed backends, with the problems of those that cannot be used."""
    found = [_Loaded.of(info) for info in available_backends()]
    if as_json:
        return b"".join(dump(backend.as_json()) for backend in found)
    table = Table("name", "distribution", "version", "status", box=None, pad_edge=False, header_style="bold")
    for backend in found:
        status = Text("ok", "green") if backend.cls else Text("broken", "red")
        table.add_row(backend.info.name, backend.info.distribution, backend.info.version, status)
    problems = [Text(f"\n{backend.info.name}: {backend.problem}") for backend in found if backend.problem]
    return printed(table, *problems)


def describe_backend(name: str, *, as_json: bool) -> bytes:
    """Return the distribution, the capabilities and the options of the backend *name*.

    :raises BackendError: if the backend cannot be found or used.
    """
    cls = load_backend(name)
    target = f"{cls.__module__}:{cls.__qualname__}"
    unlisted = BackendInfo(name=name, distribution="", version="", target=target)
    info = next((info for info in available_backends() if info.name == name), unlisted)
    if as_json:
        return dump(_Loaded(info, cls).as_json())
    return printed(
        Text.assemble((name, "bold"), f": {info}"),
        _heading("Capabilities, at most"),
        _capabilities(cls.full_capabilities),
        _heading("Options"),
        *(_option(option) for option in describe_options(cls.options_class)),
    )


def _heading(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _capabilities(capabilities: Capabilities) -> Padding:
    table = Table.grid(padding=(0, 2))
    limits = attrs.asdict(capabilities.limits)
    for name, value in {**attrs.asdict(capabilities), **limits}.items():
        if name != "limits":
            table.add_row(name, _word(value))
    return Padding(table, (0, 0, 0, 2))


def _word(value: object) -> str:
    words: Sequence[tuple[object, str]] = ((True, "yes"), (False, "no"), (None, "no limit"))
    return next((word for known, word in words if value is known), str(value))


def _option(option: OptionInfo) -> Padding:
    facts = [option.type, _default(option), option.range]
    if option.unit:
        facts.append(f"in {option.unit}")
    head = Text.assemble((option.name, "cyan"), "  ", (", ".join(filter(None, facts)), "dim"))
    return Padding(Group(head, Padding(option.help, (0, 0, 0, 4))), (0, 0, 0, 2))


def _default(option: OptionInfo) -> str:
    if option.default is None:
        return "required"
    return f"default {option.default}" if option.default and not option.secret else ""


def _option_as_json(option: OptionInfo) -> dict[str, object]:
    described = attrs.asdict(option)
    # A default may be a real password, for example in a backend for one company.
    if option.secret and option.default:
        del described["default"]
    return described
