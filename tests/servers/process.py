"""Servers that run as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .server import COMMAND_TIMEOUT, STOP_TIMEOUT, Runner

# A shell leaves a child that waits for the end of standard input, and becomes the server.  Standard input is a pipe
# from our process, which ends with it in whatever way that ends.  The child then kills the process group, and itself.
# As it is in the group, no other group can have got the number meanwhile.  The kernel's way (PR_SET_PDEATHSIG) will not
# do: it kills the server when the thread ends that has started it.
_ENDS_WITH_US = """
exec 3<&0
( (read -r _ <&3; kill -s KILL -- -$$) & )  # not a child of the server, which knows only its own
exec "$@" </dev/null 3<&-
"""


class Process(Runner):
    """A process of this machine and its children, in a group of their own.  They end when our process ends.

    :param command: the program, which is found on the ``PATH`` of *environment*, and its arguments.
    :param log: a file for what it prints.
    :param environment: all its variables; by default it inherits ours.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False

    def start(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._end(self._process)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _ENDS_WITH_US, "sh", *self._command],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which ends the server
            )

    def stop(self) -> None:
        self.resume()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT)
            self._end(self._process)

    def kill(self) -> None:
        if self._process is not None:
            self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of the group."""
        assert process.stdin is not None
        if not process.stdin.closed:
            with suppress(ProcessLookupError):  # somebody else has killed it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_TIMEOUT)
            process.stdin.close()
            _await_end_of_group(process.pid)
        self._is_paused = False

    def pause(self) -> None:
        assert self._process is not None
        self._is_paused = True
        self._process.send_signal(signal.SIGSTOP)
        # The threads of the server go on until one of them has got the signal: on a busy machine, for long enough to
        # answer a request.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
        self._is_paused = False

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None and not self._is_paused

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-1500:]

    def run(self, command: Sequence[str]) -> str:
        return run(command, self._environment)


def _await_end_of_group(number: int) -> None:
    """Wait until the children have ended too, because they may have the ports of the server."""
    # A machine whose first process does not wait for orphans, such as some containers, keeps them as zombies for ever.
    ends = time.monotonic() + 5
    with suppress(ProcessLookupError):
        while time.monotonic() < ends:
            os.killpg(number, 0)
            time.sleep(0.01)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command of this machine, and return what it prints.

    :raises OSError: if there is no such program.
    :raises RuntimeError: if the command fails, with what it printed.
    """
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout
