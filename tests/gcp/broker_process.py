"""The broker of ``broker.py`` in a separate process.  It prints its address and ends when its standard input closes."""

from __future__ import annotations

import asyncio
import sys
import threading

from .broker import Broker
from .faults import serving


async def main() -> None:
    """Serve until standard input closes."""
    ends = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ends.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    async with serving(Broker()) as broker:
        print(broker.address, flush=True)
        await ends.wait()


if __name__ == "__main__":
    asyncio.run(main())
