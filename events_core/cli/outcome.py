"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import enum
import logging
import sys

from events_core import BackendError, ConfigurationError

__all__ = ["CommandError", "ExitCode", "exit_code", "log_to_stderr", "say"]


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


def say(level: str, text: str) -> None:
    """Write *text* to standard error as one line, without what a terminal would obey."""
    if sys.stderr is not None:
        line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
        sys.stderr.write(f"events: {level}: {line}\n")
        sys.stderr.flush()


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), record.getMessage())


def log_to_stderr() -> None:
    """Show warnings of the library, such as an outage, each as one line and without a traceback."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
