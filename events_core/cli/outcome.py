"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import enum
import logging
import sys

from events_core import BackendError, ConfigurationError

__all__ = ["CommandError", "ExitCode", "log_to_stderr", "one_line", "say", "stopped_by"]


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


class CommandError(Exception):
    """Ends a command with *code* and, unless it is empty, the line *text*."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


def stopped_by(error: Exception) -> ExitCode:
    """The exit code of a command that *error* ended."""
    if isinstance(error, CommandError):
        return error.code
    return ExitCode.UNUSABLE if isinstance(error, (ConfigurationError, BackendError)) else ExitCode.FAILED


def one_line(text: str) -> str:
    """*text* on one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def say(level: str, text: str) -> None:
    """Write one line to standard error, where there is one."""
    if sys.stderr is not None:
        sys.stderr.write(f"events: {level}: {one_line(text)}\n")
        sys.stderr.flush()


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), record.getMessage())


def log_to_stderr() -> None:
    """Show warnings of the library, such as an outage, each as one line and without a traceback."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
