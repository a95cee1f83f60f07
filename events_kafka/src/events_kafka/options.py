"""The options of this backend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import attrs

from events_core.options import CommonOptions, option
from events_kafka import settings

__all__ = ["KafkaOptions"]


def _start_objection(text: str) -> str:
    if text in ("latest", "earliest") or _time(text) is not None:
        return ""
    return "is not latest, earliest or a time such as 2026-11-26T12:00:00Z"


def _time(text: str) -> datetime | None:
    """Return the time that *text* states in ISO 8601, in UTC if it names no zone; ``None`` if it states none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@attrs.frozen(kw_only=True)
class KafkaOptions(CommonOptions):
    """Options of the Kafka backend."""

    # Address and account

    bootstrap_servers: str = option(
        default="localhost:9092",
        help="host:port of a broker; several, separated by commas, are tried in turn. The client learns the others.",
    )
    tls: bool = option(default=False, help="Encrypt the connection, and check the brokers' certificates.")
    tls_ca_file: str | None = option(
        default=None, help="Path of the certificates to trust, in PEM. Default: those of the system."
    )
    tls_cert_file: str | None = option(default=None, help="Path of the client's certificate, in PEM.")
    tls_key_file: str | None = option(
        default=None, help="Path of the key of the client's certificate, in PEM. Default: tls_cert_file has it."
    )
    tls_key_password: str | None = option(default=None, secret=True, help="Password of the client's key.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"] | None = option(
        default=None, help="Method to authenticate. Default: none, or the client's certificate."
    )
    username: str | None = option(default=None, help="User, for PLAIN and SCRAM.")
    password: str | None = option(default=None, secret=True, help="Password of the user, for PLAIN and SCRAM.")
    oauth_callback: str | None = option(
        default=None,
        help="For OAUTHBEARER: package.module:function that returns a token and the time.time() at which it expires.",
    )
    rack: str | None = option(default=None, help="Rack of this client, to read from a replica in the same one.")
    librdkafka: str | None = option(
        default=None,
        secret=True,
        help="Other settings of librdkafka as name=value, separated by spaces: 'linger.ms=5 fetch.min.bytes=1000'. "
        "Those that a promise of the backend depends on are refused.",
    )

    # Topics

    partitions: int | None = option(
        default=None, minimum=1, maximum=100_000, help="Partitions of a new topic. Default: as the broker is set."
    )
    replication_factor: int | None = option(
        default=None, minimum=1, maximum=32767, help="Replicas of a new topic. Default: as the broker is set."
    )
    retention: float | None = option(
        default=None,
        minimum=0.001,
        unit="seconds",
        help="Time for which a new topic keeps messages. Default: as the broker is set, usually 7 days.",
    )

    # Sending

    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = option(
        default="none", help="Compression of the records of a request."
    )
    max_message_bytes: int = option(
        default=1_000_000,
        minimum=1,
        maximum=1_000_000_000,
        unit="bytes",
        help="Largest message; the topic's max.message.bytes bounds it too, which is 1,048,588 by default.",
    )

    # Receiving

    start: str = option(  # type: ignore[assignment]
        default="latest",
        check=_start_objection,
        help="First message of a new subscription: latest, the next one that is sent; earliest, the oldest one that is "
        "kept; or the first one from a time on, for example 2026-11-26T12:00:00Z.",
    )
    group_id: str = option(
        default="{topic}.{subscription}",
        help="Id of a subscription's consumer group. {topic} and {subscription} stand for their names.",
    )
    group_protocol: Literal["classic", "consumer"] = option(
        default="classic", help="Protocol of consumer groups; consumer is that of KIP-848, from Kafka 4.0 on."
    )
    static_member: str | None = option(
        default=None,
        help="Name of this receiver in its group, for static membership: its partitions stay with it for "
        "session_timeout after it has closed.",
    )
    session_timeout: float = option(
        default=45.0,
        minimum=1,
        maximum=3600,
        unit="seconds",
        help="Time without a sign of life after which a receiver's partitions go to others. The broker bounds it, and "
        "sets it itself with group_protocol=consumer.",
    )
    isolation: Literal["read_committed", "read_uncommitted"] = option(
        default="read_committed", help="Receive only what transactions have committed, or everything."
    )
    max_gap: int = option(
        default=10_000,
        minimum=1,
        help="Largest number of messages after an unsettled one that a partition delivers before it pauses.",
    )

    def problems(self) -> Iterable[str]:
        """Yield contradictions between options."""
        yield from super().problems()
        yield from settings.problems(self)
        yield from self._address_problems()
        yield from self._account_problems()
        if "{subscription}" not in self.group_id:
            yield f"option 'group_id': {self.group_id!r} lacks {{subscription}}: all subscriptions would be one group"

    def group_of(self, topic: str, subscription: str) -> str:
        """Return the id of the consumer group of a subscription."""
        parts = {"{topic}": topic, "{subscription}": subscription}
        # In one pass: the name of a subscription may contain "{topic}".
        return re.sub(r"{topic}|{subscription}", lambda found: parts[found[0]], self.group_id)

    @property
    def start_time(self) -> datetime | None:
        """The time at which a new subscription starts; ``None`` if ``start`` is no time."""
        return _time(self.start)

    def _address_problems(self) -> Iterable[str]:
        for server in self.bootstrap_servers.split(","):
            host, _, port = server.strip().rpartition(":")
            if not (host or port) or (host and not (port.isdecimal() and 0 < int(port) < 65536)):
                yield f"option 'bootstrap_servers': {server.strip()!r} is not host:port, for example localhost:9092"

    def _account_problems(self) -> Iterable[str]:
        for name in ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_key_password"):
            if getattr(self, name) is not None and not self.tls:
                yield f"option {name!r} needs tls=true"
        if (self.tls_key_file or self.tls_key_password) and self.tls_cert_file is None:
            yield "options 'tls_key_file' and 'tls_key_password' need 'tls_cert_file'; give it too"
        has_password = self.sasl_mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        for name in ("username", "password"):
            if (getattr(self, name) is not None) is not has_password:
                yield (
                    f"sasl_mechanism={self.sasl_mechanism} needs the option {name!r}"
                    if has_password
                    else f"option {name!r} needs sasl_mechanism=PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
                )
        if self.oauth_callback is not None:
            if self.sasl_mechanism != "OAUTHBEARER":
                yield "option 'oauth_callback' needs sasl_mechanism=OAUTHBEARER"
            if not re.fullmatch(r"[\w.]+:\w+", self.oauth_callback):
                yield f"option 'oauth_callback': {self.oauth_callback!r} is not package.module:function"
