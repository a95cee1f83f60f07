"""What can be configured, and what is promised."""

from __future__ import annotations

from typing import Literal

import attrs

from events_core import Capabilities, Limits
from events_core.options import CommonOptions, option

__all__ = ["CAPABILITIES", "AcmeOptions"]

CAPABILITIES = Capabilities(
    durable="process_crash",  # a power loss may take what the file system has not written yet
    delivery_attempts=True,
    ack_confirmed=True,
    limits=Limits(max_message_bytes=10_000_000),
)


@attrs.frozen(kw_only=True)
class AcmeOptions(CommonOptions):
    """Options of the Acme backend."""

    path: str = option(help="Folder that holds the topics.")
    create: Literal["never", "subscription", "all"] = option(
        default="all", help="What may be created when it is missing: nothing, the subscription, or the topic as well."
    )
    lease: float = option(
        default=30.0, minimum=1, maximum=600, unit="seconds", help="How soon what a dead process held goes to others."
    )
    poll_interval: float = option(
        default=0.05, minimum=0.001, unit="seconds", help="How often a receiver looks for messages."
    )
