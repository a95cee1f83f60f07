"""A worker that bills the orders."""

import logging
import signal
import threading

from events_core import ReceivedMessage
from events_core.sync import consume, create_client

log = logging.getLogger(__name__)


def bill(message: ReceivedMessage) -> None:
    log.info("billed order %s", message.data_as_json()["order"])


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    client = create_client("orders", file="events.toml")
    with client, client.subscribe() as receiver:
        consume(receiver, bill, concurrency=4, stop=stop)


if __name__ == "__main__":
    main()
