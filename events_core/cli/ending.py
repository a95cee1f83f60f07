"""Running a command so that signals end it in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from events_core import EventClient, EventConfig, create_client
from events_core.cli.outcome import CommandError, ExitCode

__all__ = ["Ending", "finish", "opened", "run"]

_CODES = {"SIGINT": ExitCode.INTERRUPTED, "SIGTERM": ExitCode.TERMINATED, "SIGHUP": ExitCode.HANGUP}

_CLOSE_SECONDS = 5.0
_FINISH_SECONDS = 2.0


class Ending:
    """Cancels the command's task when something outside asks for its end, and remembers why."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.reason: CommandError | None = None

    def request(self, reason: CommandError) -> None:
        """End the command with *reason*; only the first request counts."""
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()


def run(command: Callable[[Ending], Coroutine[Any, Any, None]]) -> None:
    """Run *command* on an event loop of its own until it ends or a signal ends it.

    :raises CommandError: when a signal, or whatever else asked, ended it.
    """
    asyncio.run(_guarded(command))


async def _guarded(command: Callable[[Ending], Coroutine[Any, Any, None]]) -> None:
    ending = Ending()
    for name, code in _CODES.items():
        _on_signal(name, lambda code=code: ending.request(CommandError("", code)))
    try:
        await command(ending)
    except asyncio.CancelledError:
        if ending.reason is None:
            raise
        raise ending.reason from None


def _on_signal(name: str, act: Callable[[], None]) -> None:
    number = getattr(signal, name, None)
    if number is None or signal.getsignal(number) is signal.SIG_IGN:  # as nohup and shells' background jobs ask
        return
    loop = asyncio.get_running_loop()

    def once() -> None:
        # The second signal ends the process at once, whatever closing waits for.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        act()

    try:
        loop.add_signal_handler(number, once)
    except NotImplementedError:  # event loops on Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))


@asynccontextmanager
async def opened(config: EventConfig) -> AsyncIterator[EventClient]:
    """The client of *config*, closed in the end without keeping the user waiting."""
    client = create_client(config)
    try:
        yield client
    finally:
        await client.close(timeout=_CLOSE_SECONDS)


async def finish(work: Awaitable[None]) -> None:
    """Await *work*; cancelled, it still gets a moment to end by itself, so that nothing stays half done."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_FINISH_SECONDS)
        task.cancel()
        raise
