"""A client in a separate process that carries out one command, reports, and goes on until it is killed.

The command is one line of JSON on standard input, and the report is one line of JSON on standard output.  Nothing that
the client does afterwards is reported.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from events_core import AcknowledgeError, EventConfig, EventMessage, ReceivedMessage, create_client


def _messages(described: list[list[Any]]) -> list[EventMessage]:
    return [EventMessage.from_string(text, attributes={"text": text}, ordering_key=key) for text, key in described]


def _described(message: ReceivedMessage) -> dict[str, Any]:
    names = ("message_id", "ordering_key", "delivery_attempt")
    known = {name: getattr(message, name) for name in names}
    return {"data": message.data_as_string(), "attributes": dict(message.attributes), **known}


async def main(work: dict[str, Any]) -> None:
    """Send, receive, acknowledge, tell; then send and acknowledge some more."""
    client = create_client(EventConfig(**work["config"]))
    receiver = await client.subscribe(work["subscription"])
    ids = await client.send_messages(_messages(work["send"]))
    received = await receiver.receive_messages(work["limit"], work["timeout"])
    done, left = received[: work["acknowledge"]], received[work["acknowledge"] :]
    expired: list[str] = []
    try:
        await receiver.acknowledge_messages(done)
    except AcknowledgeError as error:  # this process stood still for longer than its session
        expired += error.failed
    described = [_described(message) for message in received]
    print(json.dumps({"ids": ids, "received": described, "expired": expired}), flush=True)
    await asyncio.gather(
        client.send_messages(_messages(work["send_untold"])),
        receiver.acknowledge_messages(left[: work["acknowledge_untold"]]),
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
