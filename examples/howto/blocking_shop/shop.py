"""The part of the shop that does not depend on the web framework."""

import atexit
import functools

from events_core import EventMessage
from events_core.sync import EventClient, create_client


@functools.cache
def orders() -> EventClient:
    """Return the client of this process, made at its first use."""
    client = create_client("orders", file="events.toml")
    atexit.register(client.close, timeout=5)
    return client


def place(number: int) -> str:
    message = EventMessage.from_json({"order": number})
    return orders().send_message(message)
