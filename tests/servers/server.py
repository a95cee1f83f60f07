"""A server that tests use, wherever it runs.

A broker's tests derive a class from :class:`Server`, which knows how that broker answers.  An object of it has a
*runner*, a process or a container, if the tests have started the server.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress

START_TIMEOUT = 120.0
"""Seconds that a server may take to answer.  On a quiet machine it takes 2 to 5."""
STOP_TIMEOUT = 120.0
"""Seconds that an orderly stop may take."""
COMMAND_TIMEOUT = 120.0
"""Seconds that a command of an administrator may take.  It takes less than one on a quiet machine."""


class Missing(Exception):
    """The reason why there is no server, or why it cannot do what a test needs."""


class Runner(ABC):
    """A process or a container in which a server runs.  It keeps its ports and its data over a stop or a kill."""

    @abstractmethod
    def start(self) -> None:
        """Start it, unless it runs or is paused.  Do not wait until the server answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it in an orderly way, also if it is paused."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it with SIGKILL, if it has not ended."""

    @abstractmethod
    def pause(self) -> None:
        """Stop it from running, and return when no thread of it runs any more."""

    @abstractmethod
    def resume(self) -> None:
        """Let it run again, if it is paused."""

    @abstractmethod
    def is_running(self) -> bool:
        """Return whether it has been started, has not ended and is not paused."""

    @abstractmethod
    def exit_code(self) -> int | None:
        """Return the exit code if it has ended, otherwise None."""

    @abstractmethod
    def log(self) -> str:
        """Return the end of what the server has logged."""

    @abstractmethod
    def run(self, command: Sequence[str]) -> str:
        """Run a command where the server runs, and return what it prints.

        :raises RuntimeError: if the command fails, with what it printed.
        """


class Server(ABC):
    """A server at *address*, which may belong to somebody else.

    If there is a *runner*, the server is *ours*: a test may stop, kill, pause and administer it.  The methods for that
    raise :class:`Missing` for the server of somebody else, because other programs may use it.
    """

    def __init__(self, address: str, runner: Runner | None = None) -> None:
        self.address = address
        """The ``host:port``, for example for a proxy."""
        self._runner = runner

    @abstractmethod
    def answers(self, timeout: float) -> bool:
        """Send a request to the server, and return whether it gave the right answer.

        :raises OSError: if the server cannot be reached, or says nothing within *timeout* seconds.
        """

    @property
    def is_ours(self) -> bool:
        return self._runner is not None

    @property
    def runner(self) -> Runner:
        """The process or the container.

        :raises Missing: if the server is not ours.
        """
        if self._runner is None:
            raise Missing(f"the server at {self.address} was not started by the tests, so they leave it alone")
        return self._runner

    def start(self) -> None:
        """Start the server on the same port with the data that it has stored, and wait until it answers."""
        self.runner.start()
        self.await_answer()

    def await_answer(self) -> None:
        """Wait until the server, which is ours, answers a request.

        :raises Missing: if it ends or does not answer, with the end of its log.
        """
        ends = time.monotonic() + START_TIMEOUT
        while time.monotonic() < ends:
            if (code := self.runner.exit_code()) is not None:
                raise Missing(f"the server at {self.address} ended with exit code {code}: {self.runner.log()}")
            with suppress(OSError):
                if self.answers(5):
                    return
            time.sleep(0.05)
        raise Missing(f"no answer at {self.address} within {START_TIMEOUT:g} s: {self.runner.log()}")

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        self.runner.stop()

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.runner.kill()

    def pause(self) -> None:
        """Stop the server from running.  Connections stay open and nobody answers on them."""
        self.runner.pause()

    def resume(self) -> None:
        """Let a paused server run again."""
        self.runner.resume()

    def restart(self) -> bool:
        """Kill the server and start it again; return False if it is not ours."""
        if not self.is_ours:
            return False
        self.kill()
        self.start()
        return True

    def restore(self) -> None:
        """Bring the server back to the state in which every test finds it: it runs."""
        self.resume()
        self.start()
