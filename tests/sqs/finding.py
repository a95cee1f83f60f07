"""The servers for the tests of a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from . import container, program
from .server import Missing, Server

Start = Callable[[], AbstractContextManager[Server]]


@contextmanager
def ministack(folder: Path, *, checks_access: bool = False) -> Iterator[Server]:
    """Enter with the server of SQS and SNS at ``EVENTS_TEST_SQS``, or with MiniStack.

    :param folder: an empty folder for the server's files.
    :param checks_access: it refuses wrong signatures, and what no policy allows; never the server at
        ``EVENTS_TEST_SQS``.
    :raises Missing: with all the reasons.
    """
    variable = "" if checks_access else "EVENTS_TEST_SQS"
    inside = partial(container.ministack, checks_access=checks_access)
    with _first(variable, inside, partial(program.ministack, folder, checks_access=checks_access)) as server:
        yield server


@contextmanager
def elasticmq(folder: Path) -> Iterator[Server]:
    """Enter with the server of SQS at ``EVENTS_TEST_ELASTICMQ``, or with ElasticMQ.

    :param folder: an empty folder for the server's files.
    :raises Missing: with all the reasons.
    """
    with _first("EVENTS_TEST_ELASTICMQ", container.elasticmq, partial(program.elasticmq, folder)) as server:
        yield server


@contextmanager
def _first(variable: str, *ways: Start) -> Iterator[Server]:
    if url := os.environ.get(variable):
        yield Server(url)
        return
    reasons = [f"{variable} is not set"] if variable else []
    with ExitStack() as stack:
        for start in ways:
            try:
                server = stack.enter_context(start())
            except Missing as reason:
                reasons.append(str(reason))
            else:
                yield server
                return
    raise Missing("; ".join(reasons))
