"""The application and the worker, tested without a broker."""

import asyncio

import pytest
from fastapi.testclient import TestClient
from shop import app
from worker import bill

from events_core import create_client

URL = "memory:///orders?subscription=billing"


async def next_order() -> None:
    async with create_client(URL) as client, client.subscribe() as receiver:
        message = await receiver.receive_message(timeout=30)
        async with receiver.processing(message):
            await bill(message)


def test_an_order_is_billed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENTS_ORDERS_URL", URL)
    with TestClient(app) as http:
        assert http.post("/orders", json={"order": 42}).status_code == 202
    asyncio.run(next_order())
    assert capsys.readouterr().out == "billed order 42\n"
