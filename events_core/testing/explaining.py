"""The explanation at the start of a failure: point of cancellation, topic, receiver, and the backend's log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pytest

from events_core import EventReceiver

__all__ = ["Log", "described", "explain", "explained", "logged"]

_LINES = 10
"""Number of log records that a failure shows: the newest."""


class Log(logging.Handler):
    """The newest records of the library and of a backend, as lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_LINES)
        self._began = time.time()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*."""
        cause = record.exc_info[1] if record.exc_info else None
        text = f"{record.getMessage()}: {cause!r}" if cause else record.getMessage()
        self.lines.append(f"{record.created - self._began:.3f} s {record.levelname} {record.name}: {text}")

    @contextlib.contextmanager
    def of(self, *names: str) -> Iterator[None]:
        """Listen to the loggers *names*, at their own levels."""
        loggers = [logging.getLogger(name) for name in dict.fromkeys(names)]
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(self)


def described(receiver: EventReceiver) -> str:
    """Return one line about the state of *receiver*."""
    stats = receiver.stats
    age = "never" if stats.last_message_age is None else f"{stats.last_message_age:.3f} s ago"
    return (
        f"receiver: of subscription {receiver.subscription!r}, {stats.held} held, {stats.buffered} buffered, "
        f"{stats.blocked_keys} keys blocked, {stats.reconnects} reconnects, last message {age}"
    )


def explain(error: BaseException, lines: Iterable[str]) -> None:
    """Put *lines* after the first line of the text of *error*, and after lines that were put there before."""
    new = [line.replace("\n", " ") for line in lines]
    # An error passes several contexts on its way out: each adds its lines after those of the inner ones.
    known: int = getattr(error, "explained", 0)
    error.explained = known + len(new)  # type: ignore[attr-defined]
    if isinstance(error, AssertionError) and error.args:
        # The values that pytest adds to an assert may be long.  They come last.
        found = str(error.args[0]).split("\n")
        error.args = ("\n".join([*found[: 1 + known], *new, *found[1 + known :]]), *error.args[1:])
    elif isinstance(error, pytest.fail.Exception):
        error.msg = "\n".join([str(error.msg), *new])
    else:
        for line in new:
            error.add_note(line)


@contextlib.contextmanager
def explained(*describe: Callable[[], str]) -> Iterator[None]:
    """Explain an error that is raised inside, unless an inner context has done so."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        if not hasattr(error, "explained"):
            explain(error, _lines(describe))
        raise


@contextlib.contextmanager
def logged(log: Log) -> Iterator[None]:
    """Add *log* to the explanation of an error that is raised inside."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        explain(error, [f"log: {line}" for line in log.lines])
        raise


def _lines(describe: Iterable[Callable[[], str]]) -> Iterator[str]:
    for each in describe:
        try:
            line = each()
        except Exception as error:  # a broken backend may raise anything here, and must not hide the failure
            line = f"({error!r})"
        if line:
            yield line
