"""The servers for the tests of a process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ..servers.finding import first
from . import container, program
from .server import Server


def ministack(folder: Path, *, checks_access: bool = False) -> AbstractContextManager[Server]:
    """Enter with the server of SQS and SNS at ``EVENTS_TEST_SQS``, or with MiniStack.

    :param folder: an empty folder for the server's files.
    :param checks_access: it refuses wrong signatures, and what no policy allows; never the server at
        ``EVENTS_TEST_SQS``.
    :raises Missing: with all the reasons.
    """
    variables = [] if checks_access else ["EVENTS_TEST_SQS"]
    inside = partial(container.ministack, checks_access=checks_access)
    return first(variables, Server, inside, partial(program.ministack, folder, checks_access=checks_access))


def elasticmq(folder: Path) -> AbstractContextManager[Server]:
    """Enter with the server of SQS at ``EVENTS_TEST_ELASTICMQ``, or with ElasticMQ.

    :param folder: an empty folder for the server's files.
    :raises Missing: with all the reasons.
    """
    return first(["EVENTS_TEST_ELASTICMQ"], Server, container.elasticmq, partial(program.elasticmq, folder))
