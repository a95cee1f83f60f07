"""Running a command so that signals end it in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any

from events_core import EventClient, EventConfig, create_client
from events_core.cli.outcome import CommandError, ExitCode

__all__ = ["Ending", "finish", "interruptible", "opened", "run"]

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
    with asyncio.Runner() as runner:
        runner.get_loop()  # first, so that no coroutine is left over if no loop can be made
        runner.run(_guarded(command))


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


@contextmanager
def interruptible() -> Iterator[Callable[[], ExitCode]]:
    """Let signals raise :exc:`KeyboardInterrupt` in work that runs event loops of its own.

    Gives a function that tells the exit code of the first one.  On leaving, the next signal ends the process at once.
    """
    came: list[ExitCode] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(_CODES[signal.Signals(number)])
        handler = signal.getsignal(signal.SIGINT)  # that of the event loop that runs, if one does
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    watched = [number for number in _CODES if signal.getsignal(number) is not signal.SIG_IGN]
    for number in watched:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else interrupt)
    try:
        yield lambda: came[0] if came else ExitCode.INTERRUPTED
    finally:
        for number in watched:
            signal.signal(number, signal.SIG_DFL)
