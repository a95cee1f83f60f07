"""The options of a configuration, and the declared capabilities."""

from __future__ import annotations

from typing import Literal

import attrs

from events_core import Capabilities, Limits
from events_core.options import CommonOptions, option

__all__ = ["CAPABILITIES", "AcmeOptions"]

CAPABILITIES = Capabilities(
    durable="process_crash",  # nothing waits for the disk
    delivery_attempts=True,
    ack_confirmed=True,
    limits=Limits(max_message_bytes=10_000_000),
)


@attrs.frozen(kw_only=True)
class AcmeOptions(CommonOptions):
    """Options of the Acme backend."""

    path: str = option(help="Folder that holds the topics.")
    create: Literal["never", "subscription", "all"] = option(
        default="all",
        help="What may be created if it is missing: nothing, the "
        "subscription, or the topic too.",
    )
    lease: float = option(
        default=30.0,
        minimum=1,
        maximum=600,
        unit="seconds",
        help="Time until the messages of a dead process go to others.",
    )
    poll_interval: float = option(
        default=0.05,
        minimum=0.001,
        unit="seconds",
        help="How often a receiver looks for messages.",
    )
