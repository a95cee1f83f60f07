"""The server for the tests of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .container import container
from .program import program
from .server import Missing, Server


@contextmanager
def find_or_start(folder: Path) -> Iterator[Server]:
    """Enter with the server at ``EVENTS_TEST_KAFKA``, or with a container, or with a broker from its jars.

    :param folder: an empty folder for the server's files.
    :raises Missing: with all the reasons.
    """
    if address := os.environ.get("EVENTS_TEST_KAFKA"):
        yield Server(address)
        return
    reasons = ["EVENTS_TEST_KAFKA is not set"]
    with ExitStack() as stack:
        for number, start in enumerate((container, program)):
            own = folder / str(number)
            own.mkdir()
            try:
                server = stack.enter_context(start(own))
            except Missing as reason:
                reasons.append(str(reason))
            else:
                yield server
                return
    raise Missing("; ".join(reasons))
