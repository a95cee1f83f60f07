"""Running a command so that signals end it in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from events_core import EventClient, EventConfig, create_client
from events_core.cli.outcome import CommandError, ExitCode

__all__ = ["Ending", "finish", "opened", "run"]

_CODES = {
    signal.SIGHUP: ExitCode.HANGUP,
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}

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
    """Run *command* on an event loop of its own until it ends or something outside ends it.

    :raises CommandError: with the exit code of the signal that ended it.
    """
    asyncio.run(_guarded(command))


async def _guarded(command: Callable[[Ending], Coroutine[Any, Any, None]]) -> None:
    ending = Ending()
    for number, code in _CODES.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background jobs have it
            asyncio.get_running_loop().add_signal_handler(number, partial(_end_by_signal, ending, number, code))
    try:
        await command(ending)
    except asyncio.CancelledError:
        if ending.reason is None:
            raise
        raise ending.reason from None


def _end_by_signal(ending: Ending, number: signal.Signals, code: ExitCode) -> None:
    asyncio.get_running_loop().remove_signal_handler(number)
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once, whatever closing waits for
    ending.request(CommandError("", code))


@asynccontextmanager
async def opened(config: EventConfig) -> AsyncGenerator[EventClient, None]:
    """The client of *config*, closed in the end without keeping the user waiting."""
    client = create_client(config)
    try:
        yield client
    finally:
        await client.close(timeout=_CLOSE_SECONDS)


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Await *work*; cancelled, it still gives *work* a moment to end by itself, so that nothing stays half done."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_FINISH_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
