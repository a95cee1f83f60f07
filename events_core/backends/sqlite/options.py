"""What the SQLite backend is configured with, and what it promises in that configuration."""

from __future__ import annotations

from typing import Literal

import attrs

from events_core import PORTABLE_LIMITS, Capabilities
from events_core.options import CommonOptions, option

__all__ = ["FULL_CAPABILITIES", "SQLiteOptions", "capabilities_of"]

FULL_CAPABILITIES = Capabilities(
    durable="power_loss",
    ordering="subscription",
    replay=True,
    dead_letter=True,
    reject=True,
    delivery_attempts=True,
    ack_confirmed=True,
    exactly_once=True,
    # A transaction whose commit failed is rolled back, and its pages of the log are written over by the retry.
    idempotent_publish=True,
    redelivery="lease",
    limits=PORTABLE_LIMITS,
)


@attrs.frozen(kw_only=True)
class SQLiteOptions(CommonOptions):
    """Options of the SQLite backend."""

    path: str = option(help="File that holds the topics; created, but not its directory, where create=all.")
    create: Literal["never", "subscription", "all"] = option(
        default="all",
        help="What may be created when it is missing: nothing, the subscription, or the file and topic as well.",
    )
    durability: Literal["full", "normal"] = option(
        default="full", help="What is confirmed survives a power loss, or, faster, only the crash of a process."
    )
    retention: float | None = option(
        default=None,
        minimum=0,
        unit="seconds",
        help="How long the topic keeps messages for subscriptions yet to come; unset leaves it as it is, 0 at first.",
    )
    session_timeout: float = option(
        default=15.0, minimum=1, unit="seconds", help="How soon what a dead process held goes to others."
    )


def capabilities_of(options: SQLiteOptions) -> Capabilities:
    """What a client with *options* promises."""
    safe = options.durability == "full"
    return attrs.evolve(
        FULL_CAPABILITIES,
        durable="power_loss" if safe else "process_crash",
        ordering="none" if options.ordering is False else "subscription",
        exactly_once=safe,  # a power loss may take back the last acknowledgements
    )
