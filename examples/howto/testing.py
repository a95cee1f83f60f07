"""An application that sends invoices, and its tests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events_core import (
    EventMessage,
    ReceivedMessage,
    Reject,
    consume,
    create_client,
)
from events_core.testing.fixtures import MemoryBroker

FILE = Path(__file__).with_name("events.toml")

# Usually in conftest.py.
pytest_plugins = ["events_core.testing.fixtures"]


async def bill_orders(stop: asyncio.Event) -> None:
    orders = create_client("orders", file=FILE)
    invoices = create_client("invoices", file=FILE)

    async def bill(order: ReceivedMessage) -> None:
        total = order.data_as_json().get("total")
        if total is None:
            raise Reject("there is no total")
        invoice = {"to pay": total}
        await invoices.send_message(EventMessage.from_json(invoice))

    async with orders, invoices, orders.subscribe() as receiver:
        await consume(receiver, bill, stop=stop)


async def place(broker: MemoryBroker, order: object) -> None:
    """Send *order* to the application, and let it work."""
    client = broker.client("orders", file=FILE)
    broker.client("invoices", file=FILE)
    stop = asyncio.Event()
    application = asyncio.create_task(bill_orders(stop))
    await client.send_message(EventMessage.from_json(order))
    await broker.until_handled("orders")
    stop.set()
    await application


def test_an_order_gives_an_invoice(memory_broker: MemoryBroker) -> None:
    asyncio.run(place(memory_broker, {"order": 42, "total": "19.90"}))
    (invoice,) = memory_broker.sent("invoices")
    assert invoice.data_as_json() == {"to pay": "19.90"}


def test_an_order_without_a_total_is_kept(
    memory_broker: MemoryBroker,
) -> None:
    asyncio.run(place(memory_broker, {"order": 43}))
    (letter,) = memory_broker.sent("orders-dead")
    reason = letter.attributes["dead_letter_reason"]
    assert reason == "there is no total"
    assert memory_broker.sent("invoices") == []


async def place_in_an_outage(broker: MemoryBroker) -> None:
    with broker.failing():
        placing = asyncio.create_task(place(broker, {"total": "5"}))
        await asyncio.wait([placing], timeout=0.1)
        assert not placing.done()
    await placing  # the client has tried again by itself


def test_an_outage_delays_the_invoice(memory_broker: MemoryBroker) -> None:
    asyncio.run(place_in_an_outage(memory_broker))
    assert len(memory_broker.sent("invoices")) == 1
