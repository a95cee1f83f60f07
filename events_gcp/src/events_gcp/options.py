"""What can be configured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from events_core.options import CommonOptions, option

__all__ = ["GcpOptions"]


@attrs.frozen(kw_only=True)
class GcpOptions(CommonOptions):
    """Options of the Pub/Sub backend."""

    create: Literal["never", "subscription", "all"] | None = option(  # type: ignore[assignment]
        default=None,
        help="What may be created when it is missing: nothing, the subscription, or the topics as well; "
        "unset means all on an emulator and never on the service.",
    )
    max_delivery_attempts: int | None = option(
        default=None,
        minimum=5,
        maximum=100,
        help="Failed deliveries after which Pub/Sub moves a message to dead_letter_topic, without order per key.",
    )
    emulator_host: str | None = option(
        default=None,
        help="host:port of an emulator, used without encryption or credentials and before region and endpoint; "
        "unset takes the environment variable PUBSUB_EMULATOR_HOST.",
    )
    region: str | None = option(
        default=None,
        help="Region whose endpoint is used, such as europe-west2; order per key holds within one region.",
    )
    endpoint: str | None = option(default=None, help="host or host:port of the service, in place of a region's.")
    credentials_file: str | None = option(
        default=None, help="Path of a credentials file; unset takes Application Default Credentials."
    )
    ack_deadline: int = option(
        default=60,
        minimum=10,
        maximum=600,
        unit="seconds",
        help="Lease of a delivery, renewed while the receiver lives: after a crash, messages come again this late.",
    )

    def problems(self) -> Iterable[str]:
        """What contradicts itself between several options."""
        yield from super().problems()
        if self.region and self.endpoint:
            yield "options 'region' and 'endpoint' exclude each other; give one"
        if self.dead_letter_topic and self.ordering:
            yield (
                "options 'ordering' and 'dead_letter_topic' exclude each other: a receiver hands out again what is "
                "nacked of a key, and Pub/Sub does not count it"
            )
