"""The clients for programs without an event loop: the same names and errors, with calls that block.

::

    from events_core import EventMessage
    from events_core.sync import create_client

    with create_client("orders", file="events.toml") as client:
        client.send_message(EventMessage.from_json({"order": 42}))
        with client.subscribe("billing") as receiver:
            for message in receiver:
                with receiver.processing(message):
                    bill(message)

Messages, configurations and errors are those of :mod:`events_core`.
"""

from events_core.sync.client import EventClient, create_client
from events_core.sync.consuming import consume
from events_core.sync.receiver import EventReceiver

__all__ = ["EventClient", "EventReceiver", "consume", "create_client"]
