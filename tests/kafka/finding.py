"""The server for the tests of a process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ..servers.finding import first
from .container import container
from .program import program
from .server import Server


def find_or_start(folder: Path) -> AbstractContextManager[Server]:
    """Enter with the server at ``EVENTS_TEST_KAFKA``, or with a container, or with a broker from its jars.

    :param folder: an empty folder for the server's files.
    :raises Missing: with all the reasons.
    """
    return first(["EVENTS_TEST_KAFKA"], Server, partial(container, folder), partial(program, folder))
