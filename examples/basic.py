"""Send, receive and acknowledge one message, on the backend that ``events.toml`` names.

Run ``python examples/basic.py [CLIENT]``.  Without an argument, the client is ``memory``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from events_core import EventMessage, create_client


async def main(name: str) -> None:
    file = Path(__file__).with_name("events.toml")
    async with create_client(name, file=file) as client:
        order = EventMessage.from_json({"order": 42, "total": "19.90"}, attributes={"kind": "created"})
        print("sent", await client.send_message(order))

        async with client.subscribe() as receiver:
            message = await receiver.receive_message(timeout=30)
            if message is None:
                raise SystemExit("no message within 30 seconds")
            print("received", message.message_id, message.data_as_json(), dict(message.attributes))
            await receiver.acknowledge(message)
            print("acknowledged", message.message_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["memory"]))
