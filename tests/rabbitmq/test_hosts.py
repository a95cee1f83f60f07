"""Several hosts, which are tried in turn."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest

from events_core import EventConnectionError, EventMessage
from events_core.testing import TcpProxy
from events_rabbitmq import links
from events_rabbitmq.address import Address
from events_rabbitmq.connection import Connection, connect

from ..receiving import PATIENCE, take
from ..servers.ports import reserved_ports
from .console import Console, client


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not take a host of a busy machine for one that is silent."""
    monkeypatch.setattr(links, "_PATIENCE", PATIENCE)


def test_the_first_host_that_answers_is_used(console: Console) -> None:
    """Two hosts refuse the connection, and the third one answers."""

    async def scenario(ports: list[int]) -> None:
        dead = [f"amqp://guest:guest@127.0.0.1:{port}/" for port in ports]
        async with console.client(url=" ".join([*dead, console.url])) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            await receiver.acknowledge(await take(receiver))

    with reserved_ports(2) as ports:
        asyncio.run(scenario(ports))


@pytest.mark.usefixtures("patient")
def test_another_host_takes_over(console: Console) -> None:
    """F1: when the host in use goes away, client and receiver go on with the next one, and later with the first."""

    async def scenario() -> None:
        with TcpProxy(console.server.address) as first, TcpProxy(console.server.address) as second:
            url = " ".join(console.server.url_for(address=each.address) for each in (first, second))
            async with console.client(url=url, send_timeout="120") as both, both.subscribe() as receiver:
                await both.send_message(EventMessage(b"1"))
                await receiver.acknowledge(await take(receiver))
                assert second.connections == 0
                with first.cut():
                    await both.send_message(EventMessage(b"2"))
                    await receiver.acknowledge(await take(receiver))
                with second.cut():
                    await both.send_message(EventMessage(b"3"))
                    await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_all_hosts_that_failed_are_named() -> None:
    """The error names each host and its reason, without the password."""

    async def scenario(ports: list[int]) -> str:
        url = " ".join(f"amqp://guest:s3cret@127.0.0.1:{port}/" for port in ports)
        async with client("orders", url=url, connect_timeout="2") as sender:
            with pytest.raises(EventConnectionError) as caught:
                await sender.ping(timeout=10)
            return str(caught.value)

    with reserved_ports(2) as ports:
        text = asyncio.run(scenario(ports))
    assert all(str(port) in text for port in ports)
    assert "s3cret" not in text


def test_a_silent_host_does_not_hold_up_the_others(console: Console) -> None:
    """A host that accepts the connection and says nothing is left in time for the next one."""

    async def scenario() -> None:
        with TcpProxy(console.server.address) as silent:
            url = f"{console.server.url_for(address=silent.address)} {console.url}"
            with silent.silence():
                async with console.client(url=url, connect_timeout="20") as both:
                    await both.send_message(EventMessage(b"1"))

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient")
def test_a_caller_that_gave_up_is_followed_by_the_next_host(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was silent until a caller gave up is not the first one to be tried again."""
    tried: list[str] = []

    async def noted(address: Address, *arguments: Any) -> Connection:
        tried.append(str(address))
        return await connect(address, *arguments)

    monkeypatch.setattr(links, "connect", noted)

    async def scenario() -> None:
        with TcpProxy(console.server.address) as silent, silent.silence():
            url = f"{console.server.url_for(address=silent.address)} {console.url}"
            async with console.client(url=url) as both:
                while not tried:  # the time of a ping may be over before it comes to connecting
                    with pytest.raises(EventConnectionError):
                        await both.ping(timeout=0.5)
                await both.ping(timeout=PATIENCE)
            assert tried == [silent.address, console.server.address]

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient")
def test_the_host_that_answered_is_tried_first(console: Console) -> None:
    """The connection for sending goes to the host that the one for receiving has found."""

    async def scenario() -> None:
        with TcpProxy(console.server.address) as other:
            url = f"{console.server.url_for(address=other.address)} {console.url}"
            async with console.client(url=url) as both:
                with other.cut():
                    await both.subscribe()
                await both.send_message(EventMessage(b"1"))
                assert other.connections == 0

    asyncio.run(scenario())


def test_a_connect_can_be_given_up_at_any_moment(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """C1: callers that stop waiting at each step of a connect leave no error in the log."""

    async def scenario() -> None:
        for step in range(40):
            async with console.client() as both:
                with suppress(EventConnectionError):
                    await both.ping(timeout=0.0005 * (step + 1))

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert not [record for record in caplog.records if record.name == "asyncio"]
