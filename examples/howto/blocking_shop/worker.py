"""A worker that bills the orders."""

import signal
import threading

from events_core import ReceivedMessage
from events_core.sync import consume, create_client


def bill(message: ReceivedMessage) -> None:
    print("billed order", message.data_as_json()["order"], flush=True)


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    client = create_client("orders", file="events.toml")
    with client, client.subscribe() as receiver:
        consume(receiver, bill, concurrency=4, stop=stop)


if __name__ == "__main__":
    main()
