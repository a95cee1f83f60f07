"""A service that ends well.

Run ``EVENTS_ORDERS_URL=… python shutdown.py [SECONDS OF GRACE]``.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from events_core import ReceivedMessage, consume, create_client


async def bill(message: ReceivedMessage) -> None:
    print("billing", message.data_as_string(), flush=True)
    await asyncio.sleep(5)
    print("billed", message.data_as_string(), flush=True)


async def main(grace: float = 20.0) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    client = create_client("orders")
    try:
        async with asyncio.timeout(None) as patience:

            def end() -> None:
                if not stop.is_set():  # a second signal gives no more time
                    stop.set()
                    patience.reschedule(loop.time() + grace)

            loop.add_signal_handler(signal.SIGTERM, end)
            async with client.subscribe() as receiver:
                await consume(receiver, bill, stop=stop)
        print("stopped")
    except TimeoutError:
        print("gave up")
    finally:
        await client.close(timeout=5)


if __name__ == "__main__":
    asyncio.run(main(*map(float, sys.argv[1:])))
