"""The addresses of the servers, and the account to use there.  This module does not import pika."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import attrs

if TYPE_CHECKING:
    from events_rabbitmq.options import RabbitMQOptions

__all__ = ["Address", "addresses"]


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
        return [_address(text, options) for text in options.url.split()]
    return [_address(f"amqp://{text.strip()}", options) for text in options.host.split(",")]


def _address(text: str, options: RabbitMQOptions) -> Address:
    scheme, colon, rest = text.partition("://")
    if not colon or scheme not in ("amqp", "amqps"):
        raise ValueError("it does not begin with amqp:// or amqps://")
    # All is split by hand after the last "@": a password may have characters that urlsplit takes for an end.
    account, _, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    if query:
        raise ValueError("it has a query; give the options of this backend instead")
    netloc, _, path = place.partition("/")
    try:
        found = urlsplit(f"//{netloc}")
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if not host or port == 0:
        raise ValueError("its host is not a host or host:port, for example localhost:5672")
    username, _, password = account.partition(":")
    tls = scheme == "amqps" or options.tls
    return Address(
        host,
        port or (5671 if tls else 5672),
        # "amqp://host" and "amqp://host/" both mean the virtual host "/", as in pika and the other clients.
        unquote(path) or options.virtual_host,
        unquote(username) if account else options.username,
        unquote(password) if account else options.password,
        tls,
    )
