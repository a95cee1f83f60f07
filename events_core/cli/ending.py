"""The end of a command: by signals, by a reader that is gone, or by itself.

A signal must not cut a command off between writing a line and acknowledging its message.  So a signal cancels the
command's task once (:class:`Ending`), and the command closes its client within :data:`_CLOSE_SECONDS`.  From then on
all signals have their default action again: a second one ends the process at once.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any

from events_core import EventClient, EventConfig, create_client
from events_core.cli.outcome import CommandError, ExitCode

__all__ = ["Ending", "Interrupt", "finish", "opened", "run"]

_CODES = {
    signal.SIGHUP: ExitCode.HANGUP,
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}

_CLOSE_SECONDS = 5.0
"""Seconds that closing a client may take: as long as a user waits before pressing Ctrl-C again."""
_FINISH_SECONDS = 2.0
"""Seconds that a running write may take after a signal, because the reader of the output may have stopped."""
_BLOCKED_SECONDS = 2.0
"""Seconds after a signal from which on work without an event loop counts as blocked.  An event loop starts sooner."""
_RETRY_SECONDS = 0.1
"""Seconds between two tries to interrupt work."""


class Ending:
    """A request to end the command, with its reason: cancels the task that created this object."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.reason: CommandError | None = None

    def request(self, reason: CommandError) -> None:
        """End the command with *reason*.  Only the first request counts."""
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()


def run(command: Callable[[Ending], Coroutine[Any, Any, None]]) -> None:
    """Run *command* on a new event loop until it ends, or until a signal or :meth:`Ending.request` ends it.

    :raises CommandError: with the exit code of the signal that ended it.
    """
    with asyncio.Runner() as runner:
        # First the loop.  If none can be made, no coroutine exists that Python would report as never awaited.
        runner.get_loop()
        runner.run(_guarded(command))


async def _guarded(command: Callable[[Ending], Coroutine[Any, Any, None]]) -> None:
    ending = Ending()
    for number, code in _CODES.items():
        # nohup and the background jobs of a shell ignore signals, and must go on doing so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, partial(_end_by_signal, ending, code))
    try:
        await command(ending)
    except asyncio.CancelledError:
        if ending.reason is None:
            raise
        raise ending.reason from None


def _end_by_signal(ending: Ending, code: ExitCode) -> None:
    loop = asyncio.get_running_loop()
    for each in _CODES:
        if loop.remove_signal_handler(each):  # it has none if the signal is ignored
            signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once
    ending.request(CommandError("", code))


@asynccontextmanager
async def opened(config: EventConfig) -> AsyncGenerator[EventClient, None]:
    """Enter with a client of *config*; on leaving, close it within :data:`_CLOSE_SECONDS`."""
    client = create_client(config)
    try:
        yield client
    finally:
        await client.close(timeout=_CLOSE_SECONDS)


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Await *work*.  If this is cancelled, wait up to :data:`_FINISH_SECONDS` more before cancelling *work* too.

    So what was written is also acknowledged.  The work does not go on in the background: it uses a client that is about
    to be closed.
    """
    task = asyncio.ensure_future(work)
    # The shield keeps the cancellation from the work, which would otherwise stop between two steps.
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_FINISH_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


class Interrupt:
    """The first signal during work that runs its own event loops.  The work is inside this context.

    Python may run a handler anywhere: in a finalizer, or while pytest or asyncio changes its own state.  An exception
    that is raised there is lost or leaves a mess.  Cancelling a task, as ``asyncio.run`` does, is not enough either: a
    test may swallow the cancellation.  So the handler only notes the signal, and the work says where it may be
    interrupted (:meth:`allowed`).

    After the first signal, and after the context, a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.code: ExitCode | None = None
        """The exit code of the signal; ``None`` before it."""
        self._gives_up = 0.0
        self._is_allowed = False

    def __enter__(self) -> Interrupt:
        self._watched = [number for number in _CODES if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._watched:
            signal.signal(number, self._note)
        signal.signal(signal.SIGALRM, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        for number in self._watched:
            signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let a signal end the work in this context.

        :raises KeyboardInterrupt: after a signal, also if it came before.
        """
        self._is_allowed = True
        try:
            if self.code is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_allowed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.code = _CODES[signal.Signals(number)]
        self._gives_up = time.monotonic() + _BLOCKED_SECONDS
        self._release()
        self._interrupt(number, frame)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """End the running event loop.  If none runs, try again soon; if none comes, the work blocks: interrupt it."""
        if not self._is_allowed:
            return
        # Also if a loop runs: it may end before it has run the callback, and the work may start another one.
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
        loop = asyncio._get_running_loop()
        if loop is not None:
            loop.call_soon_threadsafe(self._raise)
        elif time.monotonic() >= self._gives_up:
            self._raise()

    def _raise(self) -> None:
        if self._is_allowed:
            self._is_allowed = False  # once: what follows is cleaning up
            raise KeyboardInterrupt
