"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from .server import Missing


@contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Yield ports of 127.0.0.1 on which servers may listen, now or later, and which nothing else gets meanwhile.

    While a server is down, a client that tries to reconnect could get the server's own port for its end.  On loopback
    it would then connect to itself, and the server could not listen there any more.

    The ports are below those that the system gives to outgoing connections.  rabbitmqctl adds 10,000 to one of them.
    """
    with ExitStack() as keeping:
        found: list[int] = []
        for port in random.sample(range(10_000, 32_768), 1000):
            if len(found) == number:
                break
            keeper = keeping.enter_context(socket.socket())
            with suppress(OSError):
                keeper.bind(("127.0.0.1", port))
                # Only now: with this option, a port that another program keeps in this way would count as free.
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.append(port)
        else:
            raise Missing(f"no {number} unused ports of 127.0.0.1 between 10000 and 32767")
        yield found


@contextmanager
def reserved_address() -> Iterator[str]:
    """Yield a ``host:port`` as above.  Without a server it refuses connections."""
    with reserved_ports(1) as (port,):
        yield f"127.0.0.1:{port}"
