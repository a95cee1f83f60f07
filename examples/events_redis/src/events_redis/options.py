"""The options of a configuration, and the declared capabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from events_core import PORTABLE_LIMITS, Capabilities
from events_core.options import CommonOptions, option

__all__ = ["CAPABILITIES", "RedisOptions"]

CAPABILITIES = Capabilities(
    durable="process_crash",  # if the option of this name asks for it
    ordering="subscription",
    delivery_attempts=True,
    ack_confirmed=True,
    limits=PORTABLE_LIMITS,
)


@attrs.frozen(kw_only=True)
class RedisOptions(CommonOptions):
    """Options of the Redis backend."""

    server: str = option(
        default="localhost:6379", help="Host and port of the server."
    )
    database: int = option(
        default=0, minimum=0, help="Number of the server's database."
    )
    username: str | None = option(
        default=None, help="User of the server's access control list."
    )
    password: str | None = option(
        default=None,
        secret=True,
        help="Password of the user, or of the server.",
    )
    tls: bool = option(default=False, help="Encrypt the connection.")
    prefix: str = option(
        default="events", help="First part of the names of all keys."
    )
    durable: Literal["none", "process_crash"] = option(
        default="none",
        help="What a confirmed message must survive; process_crash needs a "
        "server with appendonly=yes and appendfsync=always.",
    )
    lease: float = option(
        default=30.0,
        minimum=1,
        maximum=3600,
        unit="seconds",
        help="Time until the messages of a dead process go to others.",
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        _, colon, port = self.server.rpartition(":")
        if not (colon and port.isdecimal()):
            yield f"option 'server': {self.server!r} is not HOST:PORT"
        if (self.subscription or "").startswith("~"):
            yield (
                "option 'subscription': names that begin with ~ are kept "
                "for ephemeral subscriptions"
            )
