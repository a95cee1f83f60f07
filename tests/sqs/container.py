"""Servers of SQS in containers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from ..servers.container import started
from ..servers.ports import reserved_ports
from .server import REGION, Server

MINISTACK = os.environ.get("EVENTS_TEST_MINISTACK_IMAGE", "ministackorg/ministack")
ELASTICMQ = os.environ.get("EVENTS_TEST_ELASTICMQ_IMAGE", "softwaremill/elasticmq-native")


def ministack(*, checks_access: bool = False) -> AbstractContextManager[Server]:
    """Enter with MiniStack in a container.

    :raises Missing: if there is no Docker, or not the image, or if the server does not answer.
    """
    return _running("MiniStack", MINISTACK, 4566, {"AUTH": str(checks_access).lower(), "MINISTACK_REGION": REGION})


def elasticmq() -> AbstractContextManager[Server]:
    """Enter with ElasticMQ in a container.

    :raises Missing: as above.
    """
    return _running("ElasticMQ", ELASTICMQ, 9324, {})


@contextmanager
def _running(name: str, image: str, port: int, variables: Mapping[str, str]) -> Iterator[Server]:
    with reserved_ports(1) as (outside,), started(image, {port: outside}, environment=variables) as runner:
        server = Server(f"http://127.0.0.1:{outside}", runner, name, image.partition(":")[2])
        server.await_answer()
        yield server
