"""The configurations that are refused before any I/O, and the address to which a client connects."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from pathlib import Path

import pytest
from google.auth.exceptions import DefaultCredentialsError

from events_core import (
    ConfigurationError,
    ErrorCode,
    EventConfig,
    EventConnectionError,
    EventMessage,
    PublishError,
    ReceiveError,
)
from events_core.options import CommonOptions, describe_options, read_options
from events_gcp import GcpPubSubClient
from events_gcp.credentials import load_credentials
from events_gcp.endpoint import Endpoint
from events_gcp.options import GcpOptions

from .console import PROJECT, Console, client

BAD_HOSTS = [
    *("https://pubsub.googleapis.com", "localhost:http", "localhost:0", "localhost:65536", "localhost:", ":8085"),
    *("a b:1", "a\nb:1", "a/b:1", "user@host:1", "::1", "[::1", "[x]:1", "\ud800:1", "é:1", "-a:1", "x" * 300 + ":1"),
]
BAD_REGIONS = ["Europe West", "europe/west", "europe.example.com", "europe-west2:443", "\ud800", "-", "x" * 100]


@pytest.mark.parametrize(
    ("topic", "project", "options", "text"),
    [
        ("orders", "", {}, "project_id '' is not a project"),
        ("orders", "projects/acme", {}, "project_id 'projects/acme' is not a project"),
        ("or", PROJECT, {}, "topic 'or' is not a valid"),
        ("google-orders", PROJECT, {}, "topic 'google-orders' is not a valid"),
        ("orders", PROJECT, {"subscription": "a b c"}, "subscription 'a b c' is not a valid"),
        ("orders", PROJECT, {"ack_deadline": "9"}, "'ack_deadline'.* 10 to 600 seconds"),
        ("orders", PROJECT, {"dead_letter_topic": "dead", "max_delivery_attempts": "4"}, "5 to 100"),
        ("orders", PROJECT, {"region": "europe-west2", "endpoint": "localhost"}, "'region' and 'endpoint'"),
        ("orders", PROJECT, {"receive_mode": "push"}, "'receive_mode'.*stream, pull"),
        ("orders", PROJECT, {"streams": "0"}, "'streams'.*1 to 20"),
        ("orders", PROJECT, {"filter": "é" * 129}, "'filter' has 258 bytes"),
        ("orders", PROJECT, {"retry_min_backoff": "1"}, "'retry_min_backoff' and 'retry_max_backoff' go together"),
        ("orders", PROJECT, {"retry_min_backoff": "9", "retry_max_backoff": "1"}, "9 seconds, more than the 1"),
        *(
            ("orders", project, {}, "is not a project")
            for project in ("a b", "a\nb", "é", "x" * 200, "a?b", "-", "\x1b[2J")
        ),
        *(("orders", PROJECT, {"region": region}, "option 'region'.* is not a region") for region in BAD_REGIONS),
        *(("orders", PROJECT, {"endpoint": host}, "option 'endpoint'.* is not a host") for host in BAD_HOSTS),
        *(
            ("orders", PROJECT, {"emulator_host": host}, "'emulator_host'.* is not a host")
            for host in [*BAD_HOSTS, "host"]
        ),
        ("orders", PROJECT, {"message_retention": "60"}, "'message_retention'.*600 to 2678400 seconds"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    topic: str, project: str, options: dict[str, str], text: str
) -> None:
    """The error comes before any I/O, and names the value and the reason."""
    with pytest.raises(ConfigurationError, match=text):
        client(topic, project, **options)


def test_dead_letters_are_declared_where_they_are_configured() -> None:
    """With a dead-letter topic, attempts and hand-backs are counted, and there is no order."""
    promised = client(dead_letter_topic="dead", max_delivery_attempts="5").capabilities
    assert (promised.dead_letter, promised.delivery_attempts, promised.handback_counts) == (True, True, True)
    assert promised.ordering == "none"
    assert not client().capabilities.delivery_attempts


def test_dead_letters_keep_order_where_both_are_asked_for() -> None:
    """With order as well, the receiver counts, and handing back counts nothing."""
    promised = client(dead_letter_topic="dead", max_delivery_attempts="5", ordering="true").capabilities
    assert (promised.ordering, promised.dead_letter, promised.delivery_attempts) == ("receiver", True, True)
    assert not promised.handback_counts


def test_options_of_its_own_are_few() -> None:
    """There are at most 25, each with a help text."""
    common = {info.name for info in describe_options(CommonOptions)}
    own = [info for info in describe_options(GcpOptions) if info.name not in common]
    assert len(own) <= 25
    assert all(info.help for info in own)


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, "pubsub.googleapis.com:443"),
        ({"region": "europe-west2"}, "europe-west2-pubsub.googleapis.com:443"),
        ({"endpoint": "pubsub.private.example"}, "pubsub.private.example:443"),
        ({"endpoint": "localhost:8443"}, "localhost:8443"),
        ({"endpoint": "localhost:8443", "emulator_host": "localhost:8085"}, "localhost:8085"),
        ({"endpoint": "[::1]"}, "[::1]:443"),
        ({"emulator_host": "[::1]:8085"}, "[::1]:8085"),
        ({"emulator_host": "pub_sub.local:8085"}, "pub_sub.local:8085"),
    ],
)
def test_options_name_the_endpoint(options: dict[str, str], target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint is the service's, a region's or a custom one; an emulator overrides all."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    endpoint = Endpoint.of(read_options(GcpOptions, options))
    assert endpoint.target == target
    assert endpoint.is_emulator is ("emulator_host" in options)


@pytest.mark.parametrize("value", ["http://localhost:8085", "localhost", "a b:1"])
def test_an_emulator_that_cannot_be_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBSUB_EMULATOR_HOST is checked before any I/O, and the error names it."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", value)
    with pytest.raises(ConfigurationError, match=r"variable PUBSUB_EMULATOR_HOST: .* is not a host"):
        client()


def test_another_account_is_impersonated(tmp_path: Path) -> None:
    """The credentials of the file request those of the account, and the named project pays."""
    file = tmp_path / "user.json"
    file.write_text(
        json.dumps({"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "t"})
    )
    account = "worker@acme.iam.gserviceaccount.com"
    credentials = load_credentials(
        Endpoint("localhost:1", False, str(file), impersonate_service_account=account, quota_project_id="billed")
    )
    assert credentials.service_account_email == account
    assert credentials.quota_project_id == "billed"


USER = {"type": "authorized_user", "client_id": "i", "client_secret": "hunter2", "refresh_token": "t"}
KEY = {"type": "service_account", "client_email": "a@b", "token_uri": "u", "private_key": "-----BEGIN hunter2"}


def read(folder: Path, options: str, **environ: str) -> EventConfig:
    """Return the configuration of a file with *options* for one client."""
    path = folder / "events.toml"
    text = f'[clients.a]\nbackend = "gcp"\ntopic_name = "orders"\nproject_id = "{PROJECT}"\n[clients.a.options]\n'
    path.write_text(text + options)
    return EventConfig.from_file(path, "a", environ=environ)


@pytest.mark.parametrize("content", [json.dumps(KEY, indent=1), "\ufeff " + json.dumps(KEY), "-----BEGIN\nhunter2\n"])
def test_the_content_of_a_key_given_as_its_path_is_not_shown(tmp_path: Path, content: str) -> None:
    """The error names the option that takes the content, and shows nothing of it."""
    (tmp_path / "key.json").write_text(content)
    config = read(tmp_path, 'credentials_file = { file = "key.json" }')
    with pytest.raises(ConfigurationError, match="'credentials'") as caught:
        GcpPubSubClient(config)
    assert "hunter2" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


@pytest.mark.parametrize("text", ["hunter2", "[1]", "{}", '{"type": "hunter2 x"}', '{"a":' * 100_000, "1" * 5000])
def test_credentials_that_are_none_are_refused(text: str) -> None:
    """The error comes before any I/O, and does not show the value."""
    with pytest.raises(ConfigurationError, match="option 'credentials' is not the JSON") as caught:
        client(credentials=text)
    assert "hunter2" not in str(caught.value)


def test_what_a_reference_points_at_is_in_no_problem(tmp_path: Path) -> None:
    """O2: a problem that only this backend finds does not show the value of a reference either."""
    config = read(tmp_path, 'endpoint = { env = "KEY" }\nregion = { env = "KEY" }', KEY="hunter2 / hunter2")
    with pytest.raises(ConfigurationError, match="option 'endpoint': its value is not a host") as caught:
        GcpPubSubClient(config)
    assert "hunter2" not in str(caught.value)


def test_credentials_are_given_in_one_way() -> None:
    """A path and the content exclude each other."""
    with pytest.raises(ConfigurationError, match="'credentials' and 'credentials_file' exclude each other"):
        client(credentials=json.dumps(USER), credentials_file="user.json")


def test_credentials_may_be_read_from_a_secret(tmp_path: Path) -> None:
    """The option credentials takes the content of a file or of a variable."""
    config = read(tmp_path, 'credentials = { env = "KEY" }', KEY=json.dumps(USER))
    options = read_options(GcpOptions, config.options)
    endpoint = Endpoint.of(options)
    assert load_credentials(endpoint).refresh_token == "t"
    assert "hunter2" not in f"{options!r} {endpoint!r}"


@pytest.mark.parametrize("key", [KEY["private_key"], [KEY["private_key"]], {"pem": KEY["private_key"]}])
@pytest.mark.parametrize("name", ["credentials", "credentials_file"])
def test_credentials_that_do_not_work_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, name: str, key: object
) -> None:
    """The error says that the credentials are wrong; neither it nor a log record shows a part of them."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    caplog.set_level(logging.DEBUG)
    text = json.dumps({**KEY, "private_key": key})
    path = tmp_path / "key.json"
    path.write_text(text)

    async def subscribe() -> None:
        async with client(**{name: text if name == "credentials" else str(path)}) as tried:
            await tried.subscribe("billing")

    with pytest.raises(ReceiveError) as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.UNAUTHENTICATED
    assert "credentials" in str(caught.value)
    assert "hunter2" not in f"{caught.getrepr(chain=True)} {caplog.text}"


def test_the_content_of_a_key_in_googles_variable_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """GOOGLE_APPLICATION_CREDENTIALS takes a path too, and Google's packages would show its value."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", json.dumps(KEY))

    async def subscribe() -> None:
        async with client() as tried:
            await tried.subscribe("billing")

    with pytest.raises(ReceiveError, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.UNAUTHENTICATED
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("given", ["credentials_file", "GOOGLE_APPLICATION_CREDENTIALS"])
@pytest.mark.parametrize(("kind", "reason"), [("large", "it has more than 1 MiB"), ("FIFO", "it did not end within")])
def test_credentials_that_cannot_be_read_whole_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, kind: str, reason: str
) -> None:
    """A path may be mistyped; a file without an end must not fill the memory, and a FIFO must not block."""
    monkeypatch.setattr("events_core.bounded_file.PATIENCE", 0.2)
    path = tmp_path / "key.json"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.write_text(json.dumps(USER) + " " * 2**20)
    if given == "credentials_file":
        endpoint = Endpoint("localhost:1", False, str(path))
    else:
        monkeypatch.setenv(given, str(path))
        endpoint = Endpoint("localhost:1", False)
    with pytest.raises(DefaultCredentialsError, match=rf"cannot read the file '.*key\.json': {reason}"):
        load_credentials(endpoint)
    if kind == "FIFO":
        os.close(os.open(path, os.O_RDWR))  # lets go of the thread that waits to open it


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "\xff", '{"type": "x"}'])
def test_a_file_that_has_no_credentials_is_named(tmp_path: Path, content: str) -> None:
    """The error names the file."""
    path = tmp_path / "key.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DefaultCredentialsError, match=r"key\.json"):
        load_credentials(Endpoint("localhost:1", False, str(path)))


@pytest.mark.parametrize("name", ["endpoint", "emulator_host"])
def test_a_password_before_a_host_is_not_shown(name: str) -> None:
    """Pub/Sub has no such passwords, but a copied URL may have one."""
    with pytest.raises(ConfigurationError, match="@localhost:1'") as caught:
        client(**{name: "user:hunter2@localhost:1"})
    assert "hunter2" not in str(caught.value)


def test_a_password_before_a_project_is_not_shown() -> None:
    """The same in a URL whose host becomes the project."""
    with pytest.raises(ConfigurationError, match="project_id '…@localhost' is not a project") as caught:
        GcpPubSubClient(EventConfig.from_url("gcp://user:hunter2@localhost/orders"))
    assert "hunter2" not in str(caught.value)


CREDENTIALS = {
    "credentials_file": "user.json",
    "credentials": json.dumps(USER),
    "impersonate_service_account": "worker@acme.iam.gserviceaccount.com",
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_an_emulator_with_credentials_is_a_contradiction(name: str) -> None:
    """If one place gives both, messages for the service could go to an emulator, or the reverse."""
    with pytest.raises(ConfigurationError, match=f"'emulator_host' and '{name}' contradict each other") as caught:
        client(emulator_host="localhost:1", **{name: CREDENTIALS[name]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("source", ["argument", "variable"])
@pytest.mark.parametrize("name", CREDENTIALS)
def test_an_emulator_from_elsewhere_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    """A test may redirect the configuration of production; the log says that its credentials are not used."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    (tmp_path / "user.json").write_text(json.dumps(USER))
    value = '{ file = "user.json" }' if name == "credentials" else repr(CREDENTIALS[name])
    config = read(tmp_path, f"{name} = {value}")
    if source == "argument":
        config = EventConfig.from_file(tmp_path / "events.toml", "a", options={"emulator_host": "localhost:1"})
    else:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "localhost:1")
    GcpPubSubClient(config)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name == "events_gcp"
    where = "emulator_host (from an argument)" if source == "argument" else "PUBSUB_EMULATOR_HOST"
    assert where in record.getMessage()
    assert f"'{name}' (from {tmp_path}/events.toml [clients.a]) is not used" in record.getMessage()


def test_an_emulator_without_credentials_is_not_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default credentials of the machine cause no warning."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "user.json")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "localhost:1")
    client()
    client(emulator_host="localhost:1")
    assert caplog.records == []


@pytest.mark.parametrize("attributes", [{}, {"google": "y"}, {"googclient": "y"}, {"": "y"}])
def test_what_pubsub_refuses_is_not_sent(attributes: dict[str, str]) -> None:
    """An empty message and reserved attributes are INVALID without a request."""
    with pytest.raises(PublishError) as caught:
        asyncio.run(client().send_message(EventMessage(b"", attributes)))
    assert caught.value.code is ErrorCode.INVALID


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing credentials file is UNAUTHENTICATED, and the error names it."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    missing = tmp_path / "credentials.json"

    async def subscribe() -> None:
        async with client(credentials_file=str(missing)) as tried:
            await tried.subscribe("billing")

    with pytest.raises(ReceiveError, match=re.escape(str(missing))) as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.UNAUTHENTICATED


def test_nobody_listening_is_a_connection_error() -> None:
    """Subscribe ends within connect_timeout, and then the client closes at once."""

    async def subscribe() -> None:
        async with client(emulator_host="127.0.0.1:9", connect_timeout="0.5") as tried:
            with pytest.raises(EventConnectionError):
                await tried.subscribe("billing")
            assert not tried.is_connected

    asyncio.run(asyncio.wait_for(subscribe(), 60))


def test_the_environment_names_the_emulator(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBSUB_EMULATOR_HOST overrides a region, so you can try a program without changing its configuration."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", console.emulator)

    async def send() -> str:
        async with client(console.topic_name, region="europe-west2") as sender:
            return await sender.send_message(EventMessage(b"x"))

    assert asyncio.run(send())
