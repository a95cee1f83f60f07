"""Wrong values of every kind at every entry point: only the documented errors come out.

Each table maps a name to a call; whatever the call is given, only the error that its test names may leave it.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from events_core import (
    BackendError,
    ConfigurationError,
    EventConfig,
    EventMessage,
    create_client,
    load_backend,
)
from events_core.options import CommonOptions, read_options

from .shell import BOUND, Shell

HALF = "\ud800"
"""Half of a surrogate pair, which is not valid text: UTF-8 cannot encode it."""
DIGITS = 10**5000
"""More digits than Python prints."""
DEPTH = 100_000
NOTHING: dict[str, str] = {}


class Odd:
    """A value that cannot even be printed."""

    def __repr__(self) -> str:
        raise RecursionError


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


ODD: dict[str, Any] = {
    "None": None,
    "a number": 7,
    "more digits than Python prints": DIGITS,
    "NaN": math.nan,
    "bytes": b"orders",
    "a list": ["orders"],
    "a deep mapping": nested(DEPTH),
    "what cannot be printed": Odd(),
    "half a surrogate pair": HALF,
}

FIELDS = ["topic_name", "project_id", "backend", "options", "require", "origins"]


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_no_text_is_a_configuration_error(field: str, value: Any) -> None:
    """EventConfig takes text, and mappings of text to text."""
    with pytest.raises(ConfigurationError, match=field.removesuffix("s")):
        EventConfig(**{"topic_name": "orders", field: value})


@pytest.mark.parametrize("value", [{1: "x"}, {None: "x"}, {"x": DIGITS}, {"x": None}, {"x": Odd()}, {HALF: None}])
@pytest.mark.parametrize("field", ["options", "origins"])
def test_mappings_of_something_else_are_a_configuration_error(field: str, value: Any) -> None:
    """A name or a value of another type is refused."""
    with pytest.raises(ConfigurationError, match=field.removesuffix("s")):
        EventConfig("orders", **{field: value})


def table(**options: Any) -> dict[str, Any]:
    return {"topic_name": "orders", "options": options}


MAPPINGS: dict[str, Any] = {
    **{f"{name} as the mapping": value for name, value in ODD.items() if name != "a deep mapping"},
    **{f"{name} as the topic": {"topic_name": value} for name, value in ODD.items()},
    **{f"{name} as the options": {"topic_name": "t", "options": value} for name, value in ODD.items()},
    **{f"{name} as the requirements": {"topic_name": "t", "require": value} for name, value in ODD.items()},
    **{f"{name} as an option": table(x=value) for name, value in ODD.items() if name not in ("a number", "NaN")},
    "a key that is no text": {5: "x", "topic_name": "t"},
    "no key at all": {None: None, "topic_name": "t"},
    "an option's name that is no text": {"topic_name": "t", "options": {5: "x"}},
    "a file with a null byte": table(x={"file": "a\0b"}),
    "a file that is no text": table(x={"file": HALF}),
    "a file that is a directory": table(x={"file": "/"}),
    "a variable with a null byte": table(x={"env": "a\0b"}),
    "a variable that is no text": table(x={"env": HALF}),
    "a variable with =": table(x={"env": "a=b"}),
}
del MAPPINGS["half a surrogate pair as an option"]  # a path may be such; where it names something it is refused later


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_a_mapping_is_explained(mapping: Any) -> None:
    """from_mapping raises ConfigurationError for everything that is not a configuration."""
    with pytest.raises(ConfigurationError):
        EventConfig.from_mapping(mapping)


URLS: dict[str, Any] = {
    **ODD,
    "nothing": "",
    "a colon": ":",
    "slashes": "://",
    "a scheme": "memory:",
    "a scheme and slashes": "memory://",
    "no topic": "memory:///",
    "a topic of slashes": "memory:////",
    "a topic that is no text": f"memory:///{HALF}",
    "a project that is no text": f"memory://{HALF}/orders",
    "a scheme with digits": "1:x",
    "an open bracket": "memory://[/orders",
    "a closed bracket": "memory://]/orders",
    "an address of letters": "memory://[x]/orders",
    "a letter that NFKC makes a slash": "memory://a\u2100/orders",
    "an option without a name": "memory:///orders?=5",
    "only &": "memory:///orders?&&",
    "only =": "memory:///orders?=",
    "an unknown option": "memory:///orders?" + "x" * 100_000 + "=1",
    "many options": "memory:///orders?" + "&".join(f"x{n}=1" for n in range(10_000)),
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_url_is_explained(url: Any) -> None:
    """from_url, from_env and create_client raise ConfigurationError, or BackendError for the name of a backend."""
    with pytest.raises((ConfigurationError, BackendError)):
        create_client(EventConfig.from_url(url))
    with pytest.raises((ConfigurationError, BackendError)):
        create_client(EventConfig.from_env("a", {"EVENTS_A_URL": url}))
    with pytest.raises((ConfigurationError, BackendError)):
        create_client(url, environ=NOTHING)


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_name_of_a_client_is_explained(name: Any, tmp_path: Path) -> None:
    """from_env, from_file and create_client raise ConfigurationError for a name that does not exist."""
    (tmp_path / "c.toml").write_text('[clients.a]\ntopic_name = "t"')
    with pytest.raises(ConfigurationError):
        EventConfig.from_env(name, NOTHING)
    with pytest.raises(ConfigurationError):
        EventConfig.from_file(tmp_path / "c.toml", name, environ=NOTHING)
    with pytest.raises(ConfigurationError):
        create_client(name, file=tmp_path / "c.toml", environ=NOTHING)


PATHS: dict[str, Any] = {
    **ODD,
    "nothing": "",
    "a null byte": "a\0b",
    "a directory": "/",
    "an empty file": "/dev/null",
    "a link to itself": "loop",
    "a link to nothing": "dangling",
    "a name that is too long": "x" * 5000,
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_is_explained(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """from_file raises ConfigurationError at once for a path without a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone")
    with pytest.raises(ConfigurationError):
        EventConfig.from_file(path, "orders", environ=NOTHING)
    if isinstance(path, str):
        with pytest.raises(ConfigurationError):
            EventConfig.from_mapping(table(x={"file": path if path not in ("", "/dev/null") else "/"}))


FILES = {
    "deep arrays": b"x = " + b"[" * DEPTH + b"]" * DEPTH,
    "deep tables": b"x = " + b"{a=" * DEPTH + b"1" + b"}" * DEPTH,
    "a deep value for a topic": b"[clients.orders]\ntopic_name" + b".a" * 3000 + b" = 1",
    "a deep value for an option": b'[clients.orders]\ntopic_name="t"\noptions.x' + b".a" * 3000 + b" = 1",
    "many digits": b'[clients.orders]\ntopic_name="t"\noptions.x = ' + b"1" * 5000,
    "no UTF-8": b"\xff",
    "a null byte": b"\0",
    "UTF-16": "[clients.orders]\ntopic_name = 't'".encode("utf-16"),
    "clients as a list": b"[[clients]]\norders = 1",
    "a client as a list": b"[[clients.orders]]\ntopic_name = 't'",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_the_content_of_a_file_is_explained(content: bytes, tmp_path: Path) -> None:
    """from_file raises ConfigurationError for a file that is not valid TOML, or does not have the client."""
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ConfigurationError):
        EventConfig.from_file(tmp_path / "c.toml", "orders", environ=NOTHING)


def test_a_deleted_working_directory_is_no_riddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that a relative path leads nowhere, and calls without one work."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ConfigurationError, match="No such file"):
        EventConfig.from_mapping(table(x={"file": "token"}))
    with pytest.raises(ConfigurationError, match="No such file"):
        EventConfig.from_file("c.toml", "orders", environ=NOTHING)
    assert EventConfig.from_url("memory:///orders").topic_name == "orders"


OVERRIDES: dict[str, Any] = {
    f"{name} as {field}": {field: value} for field in FIELDS[:-1] for name, value in ODD.items()
}


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
def test_an_argument_beside_a_source_is_explained(overrides: Any) -> None:
    """An explicit argument is checked like the value of a source."""
    with pytest.raises(ConfigurationError):
        EventConfig.from_url("memory:///orders", **overrides)


BACKENDS = [
    "",
    ":",
    "a:",
    ":b",
    "a:b:c",
    "..:x",
    ".a:x",
    "a b:c",
    "\0:x",
    "os:path",
    "os:gone",
    HALF,
    f"{HALF}:x",
    "os.:x",
]


@pytest.mark.parametrize("name", [*BACKENDS, *ODD.values()], ids=[*map(ascii, BACKENDS), *ODD])
def test_a_backends_name_is_explained(name: Any) -> None:
    """load_backend raises BackendError."""
    with pytest.raises(BackendError):
        load_backend(name)


@pytest.mark.parametrize("option", ["subscription", "dead_letter_topic", "send_timeout", "publish_max_bytes", "create"])
@pytest.mark.parametrize("text", [HALF, "", "9" * 5000, "1e999", "nan", "-1", "0x10"])
def test_a_text_for_an_option_is_explained(option: str, text: str) -> None:
    """read_options raises ConfigurationError for a text that the option cannot have."""
    if option in ("subscription", "dead_letter_topic") and text not in (HALF, ""):
        pytest.skip("a name like any other")
    if (option, text) == ("publish_max_bytes", "9" * 4000):
        pytest.skip("a number")
    with pytest.raises(ConfigurationError, match=option):
        read_options(CommonOptions, {option: text, **({"max_delivery_attempts": "5"} if "dead" in option else {})})


# Data: the sender controls what data_as_json gets


@pytest.mark.parametrize(
    "data", [b"[" * DEPTH, b'{"a":' * DEPTH, b"[" * DEPTH + b"]" * DEPTH, b"1" * 5000, b"\xff", b""]
)
def test_data_that_is_no_usable_json_is_a_value_error(data: bytes) -> None:
    """data_as_json raises ValueError for data that is not usable JSON."""
    with pytest.raises(ValueError, match=r"."):
        EventMessage(data).data_as_json()


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [nested(DEPTH), circle(), HALF, {HALF: 1}, math.nan, DIGITS],
    ids=["deep", "circle", "half", "key", "NaN", "digits"],
)
def test_a_value_that_json_cannot_carry_is_a_value_error(value: Any) -> None:
    """from_json raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        EventMessage.from_json(value)


# The command line


def in_shell(shell: Shell, script: str) -> tuple[int, str]:
    """Run *script*, which may call ``events``, in a new shell.  Return the exit code and the standard error."""
    process = subprocess.run(
        ["bash", "-c", f'events() {{ "{sys.executable}" -m events_core.cli "$@"; }}; {script}'],
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert "Traceback" not in process.stderr, process.stderr
    assert "a defect" not in process.stderr, process.stderr
    return process.returncode, process.stderr


@pytest.mark.parametrize("arguments", ["--help", "--version", "send --help", "backends", "backends memory --json"])
def test_a_full_disk_under_standard_output_is_named(shell: Shell, arguments: str) -> None:
    """The error is one line, for every kind of output."""
    code, text = in_shell(shell, f"events {arguments} > /dev/full")
    assert code == 1
    assert re.fullmatch("events: error: .*No space left on device.*\n", text)


@pytest.mark.parametrize("link", ["loop", "dangling"])
@pytest.mark.parametrize("arguments", ["send memory:///orders --file", "ping --client a --config"])
def test_a_link_that_leads_nowhere_is_named_at_once(shell: Shell, arguments: str, link: str) -> None:
    """The command does not try again, because that cannot help."""
    (shell.folder / "loop").symlink_to("loop")
    (shell.folder / "dangling").symlink_to("gone")
    code, text = in_shell(shell, f"events {arguments} {link}")
    assert code == 2
    assert re.fullmatch(f"events: error: cannot read .*'{link}': .*\n", text)


def test_a_configuration_that_is_nested_too_deeply_is_named(shell: Shell) -> None:
    """A file that would exhaust the stack is refused in one line."""
    (shell.folder / "deep.toml").write_bytes(FILES["deep arrays"])
    code, text = in_shell(shell, "events ping --config deep.toml --client a")
    assert (code, text) == (
        2,
        "events: error: configuration file 'deep.toml' is not usable: its values are nested too deeply\n",
    )


@pytest.mark.parametrize("limit", [5, 6])
def test_too_few_descriptors_are_named(shell: Shell, limit: int) -> None:
    """A process that may open only a few files says how to raise the limit."""
    code, text = in_shell(shell, f"ulimit -n {limit}; events send 'sqlite:e.db/orders?send_timeout=5' x")
    assert code == 1
    assert "Too many open files" in text
    assert "ulimit -n" in text
    assert text.splitlines()[-1].startswith("events: error: ")


def test_in_a_deleted_folder_what_needs_none_works(shell: Shell) -> None:
    """Only a file that is searched in the folder is not found."""
    gone = "mkdir gone; cd gone; rmdir ../gone"
    assert in_shell(shell, f"{gone}; events send 'memory:///orders?subscription=s' x")[0] == 0
    code, text = in_shell(shell, f"{gone}; events ping --config c.toml --client a")
    assert (code, text) == (2, "events: error: cannot read configuration file 'c.toml': No such file or directory\n")
