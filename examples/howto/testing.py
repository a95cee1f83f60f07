"""An application that sends invoices, and its test."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from events_core import (
    EventMessage,
    ReceivedMessage,
    consume,
    create_client,
)

FILE = Path(__file__).with_name("events.toml")


async def bill_orders(stop: asyncio.Event) -> None:
    orders = create_client("orders", file=FILE)
    invoices = create_client("invoices", file=FILE)

    async def bill(order: ReceivedMessage) -> None:
        invoice = {"to pay": order.data_as_json()["total"]}
        await invoices.send_message(EventMessage.from_json(invoice))

    async with orders, invoices, orders.subscribe() as receiver:
        await consume(receiver, bill, stop=stop)


@pytest.fixture(autouse=True)
def on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = "memory:///orders?subscription=billing"
    monkeypatch.setenv("EVENTS_ORDERS_URL", orders)
    monkeypatch.setenv("EVENTS_INVOICES_URL", "memory:///invoices")


async def invoice_for(order: object) -> object:
    """Send *order* to the application, and return the invoice."""
    stop = asyncio.Event()
    async with (
        create_client("orders", file=FILE) as orders,
        create_client("invoices", file=FILE) as invoices,
        invoices.subscribe() as receiver,
    ):
        await orders.send_message(EventMessage.from_json(order))
        application = asyncio.create_task(bill_orders(stop))
        invoice = await receiver.receive_message(timeout=30)
        stop.set()
        await application
    return invoice and invoice.data_as_json()


def test_an_order_gives_an_invoice() -> None:
    invoice = asyncio.run(invoice_for({"order": 42, "total": "19.90"}))
    assert invoice == {"to pay": "19.90"}
