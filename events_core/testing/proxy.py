"""A network between a client and a server that fails when a test wants it to."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["TcpProxy"]

_PROGRAM = Path(__file__).with_name("proxy_process.py")
_PATIENCE = 60.0
"""Seconds within which the process must answer, even on a busy machine."""


class TcpProxy:
    """A TCP proxy in a separate process, which can disturb the connections that pass through it.

    It listens on a free port of 127.0.0.1 and forwards each connection to *address*, the ``host:port`` of the server.
    Each fault is a context manager: it is in force while the context is entered.  Faults can be combined.

    ::

        with TcpProxy("127.0.0.1:6379") as proxy:
            client = create_client(f"redis://{proxy.address}/orders")
            with proxy.cut():
                ...

    The proxy has no thread and no socket in the test's own process, where they would be mistaken for what a client
    leaves behind (rule C3: after closing).  Its methods return when the fault is in force, and may be called from any
    thread.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {"is_open": True, "silent": False, "deaf": False, "delay": 0.0, "bandwidth": 0.0}
        self._process = subprocess.Popen(
            # Isolated and without ``site``: nothing of the test's environment reaches it, and it starts quickly.
            [sys.executable, "-I", "-S", str(_PROGRAM), host.strip("[]"), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C reaches the test only, which then closes the proxy
        )
        try:
            self.address = f"127.0.0.1:{self._answer()['port']}"
        except BaseException:
            self.close()
            raise

    address: str
    """The ``host:port`` on which the proxy listens; it never changes."""

    @property
    def sent(self) -> int:
        """Bytes passed on from clients to the server."""
        return self._tell()["sent"]

    @property
    def received(self) -> int:
        """Bytes passed on from the server to clients."""
        return self._tell()["received"]

    @property
    def connections(self) -> int:
        """Number of connections accepted."""
        return self._tell()["connections"]

    def cut(self) -> AbstractContextManager[None]:
        """Break all connections, and refuse new ones."""
        return self._fault(is_open=False)

    def drop(self) -> None:
        """Break all connections once; new ones work."""
        with self.cut():
            pass

    def silence(self) -> AbstractContextManager[None]:
        """Let nothing pass, in either direction, and keep all connections.

        New connections are accepted, and nothing passes on them either.  Bytes sent in that time pass afterwards.
        """
        return self._fault(silent=True)

    def lose_answers(self) -> AbstractContextManager[None]:
        """Pass on the bytes of clients, and throw away the answers of the server.

        When the fault ends, the connections that have lost an answer break.
        """
        return self._fault(deaf=True)

    def delay(self, seconds: float) -> AbstractContextManager[None]:
        """Let each byte take *seconds*, in each direction: a round trip takes twice as long."""
        return self._fault(delay=float(seconds))

    def limit(self, bytes_per_second: float) -> AbstractContextManager[None]:
        """Let no more than *bytes_per_second* pass in each direction, on all connections together."""
        if not bytes_per_second > 0:
            raise ValueError(
                f"bytes_per_second must be positive, not {bytes_per_second!r}; silence() lets nothing pass"
            )
        return self._fault(bandwidth=float(bytes_per_second))

    def close(self) -> None:
        """Break all connections and end the process.  Closing twice is a no-op."""
        with self._lock:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _fault(self, **values: Any) -> Iterator[None]:
        # Faults may be combined: each one restores only what it has changed itself.
        before = {name: self._values[name] for name in values}
        self._tell(**values)
        try:
            yield
        finally:
            self._tell(**before)

    def _tell(self, **values: Any) -> dict[str, int]:
        with self._lock:
            stdin = self._process.stdin
            if stdin is None or stdin.closed:
                raise RuntimeError(f"the proxy on {self.address} is closed")
            self._values.update(values)
            with suppress(BrokenPipeError):  # the process has died; ``_answer`` says so
                stdin.write(json.dumps(values).encode() + b"\n")
            return self._answer()

    def _answer(self) -> dict[str, int]:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], _PATIENCE)
        line = stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"the process of the proxy gave no answer within {_PATIENCE:g} s: {self._process}")
        answer: dict[str, int] = json.loads(line)
        return answer
