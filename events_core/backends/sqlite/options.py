"""The options of the SQLite backend, and the capabilities that follow from them."""

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
    # When a commit fails, the transaction is rolled back, and the retry overwrites its pages in the log.
    idempotent_publish=True,
    redelivery="lease",
    limits=PORTABLE_LIMITS,
)


@attrs.frozen(kw_only=True)
class SQLiteOptions(CommonOptions):
    """Options of the SQLite backend."""

    path: str = option(help="File that holds the topics.  With create=all it is created, but not its directory.")
    create: Literal["never", "subscription", "all"] = option(
        default="all",
        help="What may be created if it is missing: nothing, the subscription, or also the topic and the file.",
    )
    durability: Literal["full", "normal"] = option(
        default="full",
        help="What a confirmed send or acknowledgement survives: a power loss or, faster, a crash of the process.",
    )
    retention: float | None = option(
        default=None,
        minimum=0,
        unit="seconds",
        help="How long the topic keeps messages for later subscriptions; unset keeps its present value, at first 0.",
    )
    session_timeout: float = option(
        default=15.0,
        minimum=1,
        unit="seconds",
        help="Time after which the messages that a dead process held go to other receivers.",
    )


def capabilities_of(options: SQLiteOptions) -> Capabilities:
    """Return the capabilities of a client with *options*."""
    safe = options.durability == "full"
    return attrs.evolve(
        FULL_CAPABILITIES,
        durable="power_loss" if safe else "process_crash",
        ordering="none" if options.ordering is False else "subscription",
        exactly_once=safe,  # after a power loss, the last acknowledgements may be missing
    )
