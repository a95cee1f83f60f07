"""Blocking calls beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_daemon_thread"]

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """The result of *function*, called in a thread that never keeps the process from ending.

    Standard input may never end and standard output may never drain; an executor's thread would be joined at exit.
    Cancelled, the call goes on and its result is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def resolve(set_outcome: Callable[[], None]) -> None:
        if not future.done():
            set_outcome()

    def call() -> None:
        try:
            result = function()
        except Exception as error:
            outcome: Callable[[], None] = lambda error=error: future.set_exception(error)
        else:
            outcome = lambda: future.set_result(result)
        with suppress(RuntimeError):  # the loop is closed: the command has ended
            loop.call_soon_threadsafe(resolve, outcome)

    threading.Thread(target=call, name="events-cli-io", daemon=True).start()
    return await future
