"""The end of a command: its exit code, and the one line that says why it failed."""

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
    """The exit codes of ``events``."""

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
        """The meaning of the code, for the help text."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the operation failed, perhaps in part; the error says what was done",
    ExitCode.UNUSABLE: "nothing was tried, because arguments, configuration, a file or a backend cannot be used",
    ExitCode.NOTHING: "receive timed out before a message came",
    ExitCode.HANGUP: "the terminal was closed (SIGHUP)",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C, SIGINT)",
    ExitCode.READER_GONE: "the reader of standard output is gone (a broken pipe)",
    ExitCode.TERMINATED: "terminated (SIGTERM)",
}


class CommandError(Exception):
    """The end of a command with the exit code *code*, and with the error line *text* unless it is empty."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code of a command that ended with *error*."""
    if isinstance(error, CommandError):
        return error.code
    return ExitCode.UNUSABLE if isinstance(error, (ConfigurationError, BackendError)) else ExitCode.FAILED


def is_watched() -> bool:
    """Return whether standard error is a terminal, so that a person reads it."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(level: str, text: str) -> None:
    """Write *text* to standard error as one line of the form ``events: level: text``."""
    show(f"events: {level}: {text}")


def show(text: str) -> None:
    """Write *text* to standard error as one line, without characters that control a terminal.

    If standard error cannot be written to, the line is lost and the command goes on.
    """
    with suppress(OSError):
        _write(f"{escaped(' '.join(text.split()))}\n")


def _write(line: str) -> None:
    stream = sys.__stderr__
    # A progress bar replaces sys.stderr.  A line that went past it would be overwritten by the bar.
    if sys.stderr is not stream:
        sys.stderr.write(line)
        sys.stderr.flush()
    elif stream is not None:
        write_all(stream.fileno(), line.encode(stream.encoding, "backslashreplace"))


def refusal(error: OSError) -> str:
    """Return a text that says what the operating system refused, and what to do."""
    advice = "; let this process open more (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return f"the operating system refuses: {error.strerror or error}{advice}"


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), _message(record))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # the arguments do not fit the text; a log record must not end the command
        return f"{record.msg} {record.args!r} ({error})"


def _say_what_killed(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread else "unknown"
    say("error", f"a defect in the thread {name!r}, {arguments.exc_value!r}{HOW_TO_TRACE}")


def _say_what_was_dropped(unraisable: sys.UnraisableHookArgs) -> None:
    # asyncio could not make a loop, for lack of descriptors, and collects its remains.  The error was shown already.
    if unraisable.object is asyncio.BaseEventLoop.__del__:
        return
    say("error", f"a defect in {unraisable.object!r}, {unraisable.exc_value!r}{HOW_TO_TRACE}")


def log_to_stderr() -> None:
    """Show log records, warnings and defects on standard error, each as one line without a traceback."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
    logging.captureWarnings(True)
    if not sys.flags.dev_mode:
        threading.excepthook = _say_what_killed
        sys.unraisablehook = _say_what_was_dropped
