"""The addresses of the servers, and the account to use there.  This module does not import pika."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import attrs

if TYPE_CHECKING:
    from events_rabbitmq.options import RabbitMQOptions

__all__ = ["Address", "address_problems", "addresses", "ssl_context"]


@attrs.frozen
class Address:
    """One server, and the account to use there."""

    host: str
    port: int
    virtual_host: str
    username: str = attrs.field(repr=False)
    password: str = attrs.field(repr=False)
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def addresses(options: RabbitMQOptions) -> list[Address]:
    """Return the servers that *options* name, in the order in which they are tried.

    :raises ValueError: if one cannot be read.  The text says why, without a secret.
    """
    if options.url is not None:
        return [_from_url(text, options) for text in options.url.split()]
    return [_from_host(text.strip(), options) for text in options.host.split(",")]


def _from_host(text: str, options: RabbitMQOptions) -> Address:
    host, port = _host_and_port(text, tls=options.tls)
    return Address(host, port, options.virtual_host, options.username, options.password, options.tls)


def _from_url(text: str, options: RabbitMQOptions) -> Address:
    scheme, colon, rest = text.partition("://")
    if not colon or scheme not in ("amqp", "amqps"):
        raise ValueError("it does not begin with amqp:// or amqps://")
    # All is split by hand after the last "@": a password may have characters that urlsplit takes for an end.
    account, at, place = rest.rpartition("@")
    netloc, _, path = place.partition("?")[0].partition("/")
    username, _, password = account.partition(":")
    tls = scheme == "amqps" or options.tls
    host, port = _host_and_port(netloc, tls=tls)
    # "amqp://host" and "amqp://host/" both mean the virtual host "/", as in pika and the other clients.
    return Address(
        host,
        port,
        unquote(path) or options.virtual_host,
        unquote(username) if at else options.username,
        unquote(password) if at else options.password,
        tls,
    )


def _host_and_port(text: str, *, tls: bool) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{text}")
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if not host or "@" in text or "/" in text:
        raise ValueError("its host is not a host or host:port, for example localhost:5672")
    return host, port or (5671 if tls else 5672)


def ssl_context(options: RabbitMQOptions) -> ssl.SSLContext:
    """Return the context of encrypted connections; this reads files.

    :raises OSError: if a file cannot be read, or is no certificate.
    """
    for path in (options.tls_ca_file, options.tls_cert_file, options.tls_key_file):
        if path is not None:
            open(path, "rb").close()  # its error names the file, and that of ssl does not
    context = ssl.create_default_context(cafile=options.tls_ca_file)
    if options.tls_cert_file is not None:
        context.load_cert_chain(options.tls_cert_file, options.tls_key_file)
    return context


def address_problems(options: RabbitMQOptions) -> Iterable[str]:
    """Yield what is wrong with the options of the address, without a secret."""
    try:
        found = addresses(options)
    except ValueError as reason:
        yield f"option {'url' if options.url is not None else 'host'!r}: {reason}"
        return
    if not found:
        yield "option 'url' is empty"
    yield from _tls_problems(options, any(each.tls for each in found))


def _tls_problems(options: RabbitMQOptions, is_encrypted: bool) -> Iterator[str]:
    for name in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
        if getattr(options, name) is not None and not is_encrypted:
            yield f"option {name!r} needs tls=true, or an amqps:// URL"
    if options.tls_key_file is not None and options.tls_cert_file is None:
        yield "option 'tls_key_file' needs 'tls_cert_file'; give both"
