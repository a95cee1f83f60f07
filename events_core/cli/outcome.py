"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
import sys
import threading
from contextlib import suppress

from events_core import BackendError, ConfigurationError
from events_core.cli.escaping import escaped
from events_core.cli.writing import write_all

__all__ = [
    "HOW_TO_TRACE",
    "CommandError",
    "ExitCode",
    "exit_code",
    "is_watched",
    "log_to_stderr",
    "refusal",
    "say",
    "show",
]

HOW_TO_TRACE = "; for a traceback: python -X dev -m events_core.cli …"


class ExitCode(enum.IntEnum):
    """What a shell sees."""

    DONE = 0
    FAILED = 1
    UNUSABLE = 2
    NOTHING = 3
    HANGUP = 129
    INTERRUPTED = 130
    READER_GONE = 141
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """For the help text."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the operation failed, perhaps in part; the line says what was done",
    ExitCode.UNUSABLE: "nothing was attempted: arguments, configuration, a file or a backend cannot be used",
    ExitCode.NOTHING: "receive timed out and no message had come",
    ExitCode.HANGUP: "the terminal was closed (SIGHUP)",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C, SIGINT)",
    ExitCode.READER_GONE: "whoever read standard output is gone (a broken pipe)",
    ExitCode.TERMINATED: "terminated (SIGTERM)",
}


class CommandError(Exception):
    """Ends a command with *code* and, unless it is empty, the line *text*."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


def exit_code(error: Exception) -> ExitCode:
    """The exit code of a command that *error* ended."""
    if isinstance(error, CommandError):
        return error.code
    return ExitCode.UNUSABLE if isinstance(error, (ConfigurationError, BackendError)) else ExitCode.FAILED


def is_watched() -> bool:
    """Return whether a person reads standard error: it is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(level: str, text: str) -> None:
    """Write *text* to standard error as one line of the form ``events: level: text``."""
    show(f"events: {level}: {text}")


def show(text: str) -> None:
    """Write *text* to standard error as one line, without what a terminal would obey.

    A standard error that cannot be written to loses the line, and changes nothing else.
    """
    with suppress(OSError):
        _write(f"{escaped(' '.join(text.split()))}\n")


def _write(line: str) -> None:
    stream = sys.__stderr__
    if sys.stderr is not stream:  # a progress bar is shown, and has put itself in place of the stream
        sys.stderr.write(line)
        sys.stderr.flush()
    elif stream is not None:
        write_all(stream.fileno(), line.encode(stream.encoding, "backslashreplace"))


def refusal(error: OSError) -> str:
    """Return what the operating system refused, and what to do."""
    advice = "; let this process open more (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return f"the operating system refuses: {error.strerror or error}{advice}"


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), _message(record))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # the arguments do not fit the text
        return f"{record.msg} {record.args!r} ({error})"


def _say_what_killed(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread else "unknown"
    say("error", f"a defect in the thread {name!r}, {arguments.exc_value!r}{HOW_TO_TRACE}")


def _say_what_was_dropped(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.object is asyncio.BaseEventLoop.__del__:  # a loop without a descriptor: told already
        return
    say("error", f"a defect in {unraisable.object!r}, {unraisable.exc_value!r}{HOW_TO_TRACE}")


def log_to_stderr() -> None:
    """Show what the library and Python tell people, such as an outage, each as one line and without a traceback."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
    logging.captureWarnings(True)
    if not sys.flags.dev_mode:
        threading.excepthook = _say_what_killed
        sys.unraisablehook = _say_what_was_dropped
