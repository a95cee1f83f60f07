"""Names of the semantic conventions for messaging, version 1.44.0, as far as this integration uses them.

They are constants here, because OpenTelemetry's own package offers those in development only as private modules, which
change from version to version.  A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from events_core.errors import EventError

__all__ = [
    "BATCH_COUNT",
    "CONSUMED",
    "DESTINATION",
    "DURATION",
    "DURATION_BOUNDARIES",
    "ERROR_TYPE",
    "MESSAGE_ID",
    "OPERATION_NAME",
    "OPERATION_TYPE",
    "PROCESS_DURATION",
    "RECONNECT_DURATION",
    "SCHEMA_URL",
    "SENT",
    "SERVER_ADDRESS",
    "SERVER_PORT",
    "SUBSCRIPTION",
    "SYSTEM",
    "error_type",
    "server_of",
]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions, which travels with all spans and metrics."""

SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
SUBSCRIPTION = "messaging.destination.subscription.name"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
MESSAGE_ID = "messaging.message.id"
BATCH_COUNT = "messaging.batch.message_count"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"

DURATION = "messaging.client.operation.duration"
SENT = "messaging.client.sent.messages"
CONSUMED = "messaging.client.consumed.messages"
PROCESS_DURATION = "messaging.process.duration"
RECONNECT_DURATION = "events_core.client.reconnect.duration"
"""Not in the conventions: they have no name for an outage."""

DURATION_BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Seconds between the buckets of each duration, as the conventions advise."""


def error_type(error: BaseException) -> str:
    """Return the value of ``error.type``: the code of an :class:`EventError`, or the class of another exception."""
    if isinstance(error, EventError):
        return error.code.value
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def server_of(address: str) -> Mapping[str, str | int]:
    """Return the attributes of the server at *address*, ``host:port``; none if there are several, or none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "," in address:
        return {}
    return {SERVER_ADDRESS: host.strip("[]"), SERVER_PORT: int(port)}
