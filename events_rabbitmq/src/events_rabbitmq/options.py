"""The options of this backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from events_core.options import CommonOptions, option
from events_rabbitmq.address import addresses
from events_rabbitmq.limits import name_objection

__all__ = ["RabbitMQOptions"]


@attrs.frozen(kw_only=True)
class RabbitMQOptions(CommonOptions):
    """Options of the RabbitMQ backend."""

    # Address and account

    host: str = option(
        default="localhost",
        help="host or host:port of the server; several, separated by commas, are tried in turn. The port is 5672, or "
        "5671 with tls.",
    )
    virtual_host: str = option(default="/", help="Virtual host of the server.")
    username: str = option(default="guest", help="User of the server.")
    password: str = option(default="guest", secret=True, help="Password of the user.")
    url: str | None = option(
        default=None,
        secret=True,
        help="amqp:// or amqps:// URL with user, password, host and virtual host, in place of these options; several, "
        "separated by spaces, are tried in turn.",
    )
    tls: bool = option(default=False, help="Encrypt the connection, and check the server's certificate.")
    tls_ca_file: str | None = option(
        default=None, help="Path of the certificates to trust, in PEM. Default: those of the system."
    )
    tls_cert_file: str | None = option(default=None, help="Path of the client's certificate, in PEM.")
    tls_key_file: str | None = option(
        default=None, help="Path of the key of the client's certificate, in PEM. Default: tls_cert_file has it."
    )
    heartbeat: int = option(
        default=10,
        minimum=1,
        maximum=3600,
        unit="seconds",
        help="Interval of signs of life. A connection without one is given up 5 seconds later.",
    )

    # Topics

    topology: Literal["exchange", "queue"] = option(
        default="exchange",
        help="exchange: a topic is an exchange, and a subscription is a queue that is bound to it. queue: a topic is "
        "one queue, and its only subscription has the same name.",
    )
    exchange_type: Literal["fanout", "topic", "direct", "headers"] = option(
        default="fanout", help="Type of the exchange."
    )
    routing_key: str | None = option(
        default=None, help="Routing key of each message that is sent, for exchanges of type topic or direct."
    )
    binding_keys: str | None = option(
        default=None,
        help="Routing keys with which a new queue is bound, separated by commas. Default: '#' for exchanges of type "
        "topic, routing_key for others.",
    )
    queue: str = option(
        default="{topic}:{subscription}",
        help="Name of a subscription's queue. {topic} and {subscription} stand for their names.",
    )

    # Sending

    unroutable: Literal["warn", "fail"] = option(
        default="warn",
        help="Reaction to a message that no queue gets: a warning, once, or NOT_FOUND for the send.",
    )
    max_message_bytes: int = option(
        default=16 * 2**20,
        minimum=1,
        maximum=512 * 2**20,
        unit="bytes",
        help="Largest message; at most the server's max_message_size, which is 128 MiB in RabbitMQ 3 and 16 MiB in 4.",
    )

    # Receiving

    consumer_timeout: float = option(
        default=1800.0,
        minimum=1,
        unit="seconds",
        help="The server's consumer_timeout. Messages go back a little earlier than that.",
    )
    ephemeral_expires: float = option(
        default=3600.0,
        minimum=1,
        maximum=2**32 / 1000,
        unit="seconds",
        help="Time without a receiver after which the server deletes an ephemeral subscription.",
    )

    def problems(self) -> Iterable[str]:
        """Yield contradictions between options."""
        yield from super().problems()
        yield from self._address_problems()
        exclusive = {
            "url": () if self.url is None else ("host", "virtual_host", "username", "password"),
            "topology=queue": _OF_EXCHANGES if self.topology == "queue" else (),
            "exchange_type=fanout": ("binding_keys",) if self.exchange_type == "fanout" else (),
        }
        for first, others in exclusive.items():
            for name in others:
                if getattr(self, name) != getattr(_DEFAULTS, name):
                    yield f"options {first!r} and {name!r} exclude each other; give one"
        for name in ("routing_key", "virtual_host"):
            yield from _too_long(f"option {name!r}", getattr(self, name) or "")
        for key in (self.binding_keys or "").split(","):
            yield from _too_long("a key in option 'binding_keys'", key.strip())
        if "{subscription}" not in self.queue:
            yield f"option 'queue': {self.queue!r} lacks {{subscription}}, so all subscriptions would be one queue"

    def queue_of(self, topic: str, subscription: str) -> str:
        """Return the name of the queue of a subscription.

        The first colon ends the topic: otherwise ``a:b`` of topic ``c`` and ``b`` of topic ``c:a`` would share a queue.
        """
        if self.topology == "queue":
            return topic
        escaped = topic.replace("%", "%25").replace(":", "%3A")
        return self.queue.replace("{topic}", escaped).replace("{subscription}", subscription)

    def _address_problems(self) -> Iterable[str]:
        """Yield what is wrong with the options of the address, without a secret."""
        try:
            found = addresses(self)
        except ValueError as reason:
            yield f"option {'host' if self.url is None else 'url'!r}: {reason}"
            return
        if not found:
            yield "option 'url' is empty"
        for address in found:
            if self.url is not None:
                yield from _too_long("the virtual host in option 'url'", address.virtual_host)
        for name in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
            if getattr(self, name) is not None and not any(each.tls for each in found):
                yield f"option {name!r} needs tls=true, or an amqps:// URL"
        if self.tls_key_file is not None and self.tls_cert_file is None:
            yield "option 'tls_key_file' needs 'tls_cert_file'; give both"


def _too_long(what: str, value: str) -> Iterable[str]:
    """Yield the reason why *value* is too long for AMQP, without the value: it may be part of a secret."""
    if name_objection(what, value):
        yield f"{what} has {len(value.encode())} bytes; RabbitMQ takes 255 at most"


_OF_EXCHANGES = ("exchange_type", "routing_key", "binding_keys", "queue")
_DEFAULTS = RabbitMQOptions()
