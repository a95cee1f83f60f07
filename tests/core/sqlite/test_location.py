"""The file and the topic that a URL and the options name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from events_core import ConfigurationError, EventConfig
from events_core.backends.sqlite import SQLiteClient


@pytest.mark.parametrize(
    ("path", "file", "topic_name"),
    [
        ("/var/lib/events.db/orders", "/var/lib/events.db", "orders"),
        ("data/events.db/orders", "data/events.db", "orders"),
    ],
)
def test_last_part_of_the_path_is_the_topic(path: str, file: str, topic_name: str) -> None:
    """The rest is the path of the file, absolute or relative."""
    assert SQLiteClient.parse_location("", path) == (topic_name, "", {"path": file})


def test_authority_is_an_error_that_says_how_to_write_it() -> None:
    """After two slashes, the first part of the path is a host."""
    with pytest.raises(ConfigurationError, match=r"host 'events\.db'.*sqlite:///"):
        SQLiteClient.parse_location("events.db", "/orders")


@pytest.mark.parametrize("authority", ["user:s3cret@host", "user:s3cret@s3cret@host", ":s3cret@", "user:s3cret"])
def test_password_of_a_url_is_not_shown(authority: str) -> None:
    """O2: the error shows only the host."""
    with pytest.raises(ConfigurationError, match="sqlite:///") as caught:
        EventConfig.from_url(f"sqlite://{authority}/events.db/orders")
    assert "s3cret" not in f"{caught.value!r} {caught.value}"


def test_relative_path_needs_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O1: if the working directory was deleted, the error says so, and an absolute path works."""
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ConfigurationError, match=r"'path' is .*events\.db.*working directory.*absolute path"):
        SQLiteClient(EventConfig("orders", options={"path": "events.db"}))
    SQLiteClient(EventConfig("orders", options={"path": str(tmp_path / "events.db")}))


@pytest.mark.parametrize("path", ["", "/", "orders", "/orders", "/var/lib/events.db/"])
def test_path_needs_a_file_and_a_topic(path: str) -> None:
    """If one is missing, the error shows an example."""
    with pytest.raises(ConfigurationError, match="the file, then the topic"):
        SQLiteClient.parse_location("", path)


def test_path_is_required() -> None:
    """A client cannot be constructed without a file."""
    with pytest.raises(ConfigurationError, match="'path' is required"):
        SQLiteClient(EventConfig("orders"))


@pytest.mark.parametrize(
    ("topic_name", "options", "objection"),
    [
        ("orders", {"path": ":memory:"}, "must name a file"),
        ("orders", {"path": "a\0b.db"}, "'path' is .* no NUL"),
        ("orders", {"path": "\udcff.db"}, "'path' is .* cannot be written in UTF-8"),
    ],
)
def test_what_no_file_can_hold_is_an_error_beforehand(topic_name: str, options: dict[str, str], objection: str) -> None:
    """O1: it is an error of the configuration, not one of SQLite."""
    with pytest.raises(ConfigurationError, match=objection):
        SQLiteClient(EventConfig(topic_name, options=options))


def test_two_slashes_before_a_path_change_nothing(client: Callable[..., SQLiteClient], file: Path) -> None:
    """SQLAlchemy's URLs have four slashes before an absolute path."""

    async def run() -> None:
        async with client(path=f"/{file}") as working:
            await working.ping(60)

    asyncio.run(run())
    assert file.exists()


def test_constructing_touches_no_file(client: Callable[..., SQLiteClient], file: Path) -> None:
    """The capabilities are known without the file."""
    assert client().capabilities.durable == "power_loss"
    assert not file.exists()


def test_durability_is_part_of_the_capabilities(client: Callable[..., SQLiteClient]) -> None:
    """Without a sync for each transaction, a power loss takes back messages and acknowledgements."""
    relaxed = client(durability="normal").capabilities
    assert relaxed.durable == "process_crash"
    assert not relaxed.exactly_once


def test_relative_path_is_resolved_when_constructing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of directory does not change the file."""
    monkeypatch.chdir(tmp_path)
    made = SQLiteClient(EventConfig("orders", options={"path": "events.db"}))
    os.chdir("/")
    assert made._driver.options.path == str(tmp_path / "events.db")
