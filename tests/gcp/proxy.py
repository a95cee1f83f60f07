"""A TCP proxy that can be cut, to take a server away from its clients without losing what it stores."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Forwards a port of its own to *address* until it is closed."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._open = False
        self.sent = 0
        """Bytes from clients to the server."""
        self._listen(0)
        self.address = f"127.0.0.1:{self._port}"

    def _listen(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self._port = self._server.getsockname()[1]
        self._open = True
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = server.accept()
                upstream = socket.create_connection(self._target)
                with self._lock:
                    self._sockets |= {client, upstream}
                    if not self._open:
                        self._drop()
                for source, sink, counts in ((client, upstream, True), (upstream, client, False)):
                    threading.Thread(target=self._forward, args=(source, sink, counts), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.sent += len(data) if counts else 0
                sink.sendall(data)
        _shut(source)
        _shut(sink)

    def close(self) -> None:
        """Drop every connection and refuse new ones."""
        _shut(self._server)
        with self._lock:
            self._open = False
            self._drop()

    def _drop(self) -> None:
        while self._sockets:
            _shut(self._sockets.pop())

    @contextmanager
    def cut(self) -> Iterator[None]:
        """While this is entered nobody gets through."""
        self.close()
        try:
            yield
        finally:
            self._listen(self._port)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
