"""Records, an observer that counts, and a receiver's state."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import cast

from events_core import EventConfig, EventMessage, Operation, create_client


class Metrics:
    """Messages and seconds, for each kind of operation and outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.messages: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self, operation: Operation) -> None:
        operation.context = time.monotonic()

    def end(self, operation: Operation, error: BaseException | None) -> None:
        took = time.monotonic() - cast(float, operation.context)
        outcome = f"{operation.name} {type(error).__name__ if error else 'ok'}"
        with self._lock:
            self.messages[outcome] += operation.messages
            self.seconds[outcome] += took


async def main() -> None:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    metrics = Metrics()
    async with create_client(EventConfig.from_url("memory:///orders?subscription=billing")) as client:
        client.observer = metrics
        await client.send_messages(EventMessage.from_string(f"order {number}") for number in range(3))
        async with client.subscribe() as receiver:
            first, *_ = await receiver.receive_messages(3)
            await receiver.acknowledge(first)
            stats = receiver.stats
            print("held", stats.held, "buffered", stats.buffered, "reconnects", stats.reconnects)
    for outcome, messages in metrics.messages.items():
        print(f"{outcome}: {messages} messages in {metrics.seconds[outcome]:.3f} s")


if __name__ == "__main__":
    asyncio.run(main())
