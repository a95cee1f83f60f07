"""Log records, an observer that counts, and the state of a receiver."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import cast

from events_core import EventMessage, Operation, create_client


class Metrics:
    """Messages and seconds, for each kind of operation and outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.messages: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self, operation: Operation) -> None:
        operation.context = time.monotonic()

    def end(
        self, operation: Operation, error: BaseException | None
    ) -> None:
        took = time.monotonic() - cast(float, operation.context)
        name = f"{operation.name} {type(error).__name__ if error else 'ok'}"
        with self._lock:
            self.messages[name] += operation.messages
            self.seconds[name] += took


async def main(metrics: Metrics) -> None:
    client = create_client("memory:///orders?subscription=billing")
    client.observer = metrics
    orders = [EventMessage.from_string(text) for text in "abc"]
    async with client, client.subscribe() as receiver:
        await client.send_messages(orders)
        first, *_ = await receiver.receive_messages(3)
        await receiver.acknowledge(first)
        print("held", receiver.stats.held, "of", receiver.subscription)


if __name__ == "__main__":
    form = "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=form)
    metrics = Metrics()
    asyncio.run(main(metrics))
    for name, messages in metrics.messages.items():
        seconds = metrics.seconds[name]
        print(f"{name}: {messages} messages in {seconds:.3f} s")
