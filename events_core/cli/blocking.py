"""Blocking calls beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_daemon_thread"]

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """The result of *function*, called in a thread that never keeps the process from ending.

    Standard input may never end and standard output may never drain; an executor's thread would be joined at exit.
    Cancelled, the call goes on and its result is dropped.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, name="events-cli-io", daemon=True).start()
    return await asyncio.wrap_future(future)
