"""A receiver in a process of its own, which a test stops: ``python -m tests.kafka.stopped_worker ADDRESS TOPIC``.

It reads words from its standard input and answers each with a line: ``take`` with the data of the next message or
``nothing``, ``buffered`` with the number of buffered messages, and ``acknowledge`` with ``done`` or an error's code.
"""

from __future__ import annotations

import asyncio
import sys

from events_core import AcknowledgeError

from .console import client


async def main(address: str, topic: str) -> None:
    options = {"bootstrap_servers": address, "subscription": "s", "session_timeout": "6"}
    async with client(topic, **options) as both, both.subscribe() as receiver:
        held = None
        print("ready", flush=True)
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if word == "buffered":
                answer = str(receiver.stats.buffered)
            elif word == "take":
                held = await receiver.receive_message(3)
                answer = held.data.decode() if held is not None else "nothing"
            else:
                assert held is not None
                try:
                    await receiver.acknowledge(held)
                    answer = "done"
                except AcknowledgeError as error:
                    answer = error.code.name
            print(answer, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
