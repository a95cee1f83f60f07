"""A server of SQS for tests.

::

    with ministack(folder) as server:
        config = EventConfig("orders", options={"endpoint_url": server.url}, backend="sqs")
"""

from __future__ import annotations

import urllib.error
import urllib.request
from urllib.parse import urlsplit

from ..servers import server
from ..servers.server import Runner

REGION = "us-east-1"
"""The region of every server of the tests."""
KEY, SECRET = "test", "test"
"""The access key of somebody who may do everything."""


class Server(server.Server):
    """A server at *url*, which may belong to somebody else.

    :param name: the name of the emulator, if it is ours.
    :param version: the version of the emulator, if it is ours.
    :param keeps_messages: True if messages are there again after :meth:`stop` and :meth:`start`; never after a kill.
    """

    def __init__(
        self, url: str, runner: Runner | None = None, name: str = "", version: str = "", keeps_messages: bool = False
    ) -> None:
        parts = urlsplit(url)
        super().__init__(f"{parts.hostname}:{parts.port or 80}", runner)
        self.url = url
        """The URL for the option ``endpoint_url``."""
        self.name = name
        self.version = version
        self.keeps_messages = keeps_messages

    def answers(self, timeout: float) -> bool:
        """Send an HTTP request, and return True: a refusal is an answer."""
        try:
            # Never through the proxy of the environment.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(f"{self.url}/health", timeout=timeout).close()
        except urllib.error.HTTPError as refusal:
            refusal.close()
        return True
