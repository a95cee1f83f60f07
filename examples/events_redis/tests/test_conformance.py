"""Redis keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import pytest

from events_core import EventConfig
from events_core.testing import ConformanceSuite, Harness, TcpProxy

from .servers import Server


class RedisHarness(Harness):
    """A server behind a proxy.  All tests share the server."""

    patience, bound = 30.0, 120.0  # for a machine that is busy
    sdk_modules = ("redis",)

    def __init__(self, server: Server, proxy: TcpProxy) -> None:
        self._server = server
        self._proxy = proxy
        self.lease, self.lease_options = 5.0, {"lease": "5"}

    def config(
        self,
        topic_name: str,
        options: Mapping[str, str],
    ) -> EventConfig:
        own = {
            "server": self._proxy.address,
            "create": "all",
            "durable": "process_crash",
            **options,
        }
        return EventConfig(topic_name, options=own, backend="redis")

    def outage(self) -> AbstractContextManager[None]:
        return self._proxy.cut()

    def lost_answers(self) -> AbstractContextManager[None]:
        return self._proxy.lose_answers()

    def restart(self) -> bool:
        return self._server.restart()


class TestRedis(ConformanceSuite):
    """The kit."""

    @pytest.fixture
    def harness(self, server: Server) -> Iterator[Harness]:
        with TcpProxy(server.address) as proxy:
            yield RedisHarness(server, proxy)
