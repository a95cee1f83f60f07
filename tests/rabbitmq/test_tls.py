"""Encrypted connections, with certificates that the tests make."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from events_core import ErrorCode, EventConnectionError, EventError, EventMessage

from ..receiving import take
from ..servers.ports import reserved_ports
from ..servers.server import Missing
from .console import client
from .server import Server, program


@dataclass
class Files:
    """Certificates in files, in PEM."""

    ca: Path
    server: Path
    client: Path
    other_ca: Path
    other_client: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Make an authority with a server and a client, and another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    made = Files(*(folder / f"{name}.pem" for name in ("ca", "server", "client", "other_ca", "other_client")))
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(made.ca))
    other.cert_pem.write_to_path(str(made.other_ca))
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(made.server))
    authority.issue_cert("billing@example.org").private_key_and_cert_chain_pem.write_to_path(str(made.client))
    other.issue_cert("billing@example.org").private_key_and_cert_chain_pem.write_to_path(str(made.other_client))
    return made


@dataclass
class Encrypted:
    """A server with a port for TLS only, which asks for a client's certificate and does not require it."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"amqps://guest:guest@localhost:{self.port}/"


@pytest.fixture(scope="module")
def encrypted(server: Server, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Start a server of its own: another one at hand may not have TLS."""
    with reserved_ports(1) as (port,):
        settings = [
            f"listeners.ssl.1 = 127.0.0.1:{port}",
            f"ssl_options.cacertfile = {files.ca}",
            f"ssl_options.certfile = {files.server}",
            f"ssl_options.keyfile = {files.server}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = false",
        ]
        try:
            with program(tmp_path_factory.mktemp("encrypted"), settings) as running:
                yield Encrypted(running, port)
        except Missing as reason:
            pytest.skip(f"no RabbitMQ server with TLS: {reason}")


def exchange(options: dict[str, str]) -> None:
    async def scenario() -> None:
        async with client("orders", subscription="billing", **options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_an_authority_of_its_own_is_trusted(encrypted: Encrypted, files: Files) -> None:
    """With tls_ca_file an amqps URL is enough."""
    exchange({"url": encrypted.url, "tls_ca_file": str(files.ca)})


def test_options_do_the_same_as_a_url(encrypted: Encrypted, files: Files) -> None:
    """tls=true with a host and a port."""
    exchange({"host": f"localhost:{encrypted.port}", "tls": "true", "tls_ca_file": str(files.ca)})


def test_a_client_shows_its_certificate(encrypted: Encrypted, files: Files) -> None:
    """The server sees the subject of tls_cert_file; the key may be in the same file."""

    async def scenario() -> list[str]:
        options = {"url": encrypted.url, "tls_ca_file": str(files.ca), "tls_cert_file": str(files.client)}
        async with client("orders", **options) as sender:
            await sender.send_message(EventMessage(b"1"))
            rows = await asyncio.to_thread(encrypted.server.listed, "list_connections", "ssl", "peer_cert_subject")
            return [row["peer_cert_subject"] for row in rows if row["ssl"]]

    # The server may still list the connection of a test before, which showed no certificate.
    assert any("trustme" in subject for subject in asyncio.run(scenario()))


def refused(options: dict[str, str]) -> EventError:
    async def scenario() -> EventError:
        async with client("orders", **options) as sender:
            with pytest.raises(EventConnectionError) as caught:
                await sender.ping(timeout=60)
            return caught.value

    return asyncio.run(scenario())


def test_a_server_of_an_unknown_authority_is_refused(encrypted: Encrypted) -> None:
    """Without tls_ca_file the system's authorities count; the error says that the certificate cannot be verified."""
    error = refused({"url": encrypted.url})
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert "certificate verify failed" in str(error)
    assert "tls_" in str(error)


def test_a_certificate_for_another_name_is_refused(encrypted: Encrypted, files: Files) -> None:
    """The name in the URL must be in the certificate."""
    error = refused({"url": encrypted.url.replace("localhost", "127.0.0.2"), "tls_ca_file": str(files.ca)})
    assert error.code in (ErrorCode.UNAUTHENTICATED, ErrorCode.UNAVAILABLE)


def test_a_client_of_another_authority_is_refused(encrypted: Encrypted, files: Files) -> None:
    """The server does not take its certificate."""
    error = refused({"url": encrypted.url, "tls_ca_file": str(files.ca), "tls_cert_file": str(files.other_client)})
    assert error.code in (ErrorCode.UNAUTHENTICATED, ErrorCode.UNAVAILABLE)


def test_a_missing_file_is_named(encrypted: Encrypted) -> None:
    """The error names the option's path."""
    assert "/nowhere/ca.pem" in str(refused({"url": encrypted.url, "tls_ca_file": "/nowhere/ca.pem"}))


def test_plain_text_on_an_encrypted_port_ends_with_an_error(encrypted: Encrypted) -> None:
    """The error names the address, and comes within the time."""
    error = refused({"url": f"amqp://guest:guest@localhost:{encrypted.port}/"})
    assert str(encrypted.port) in str(error)


def test_encryption_on_a_plain_port_ends_with_an_error(encrypted: Encrypted, files: Files) -> None:
    """The error names the address, and comes within the time."""
    address = encrypted.server.address
    error = refused({"url": f"amqps://guest:guest@{address}/", "tls_ca_file": str(files.ca)})
    assert address in str(error)
