"""An application that sends an invoice for each order, and its test: ``pytest testing.py``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from events_core import EventClient, EventConfig, EventMessage, ReceivedMessage, consume, create_client


def client_of(name: str) -> EventClient:
    return create_client(EventConfig.from_file(Path(__file__).with_name("events.toml"), name))


async def bill_orders(stop: asyncio.Event) -> None:
    async with client_of("orders") as orders, client_of("invoices") as invoices:

        async def bill(order: ReceivedMessage) -> None:
            await invoices.send_message(EventMessage.from_json({"to pay": order.data_as_json()["total"]}))

        async with orders.subscribe() as receiver:
            await consume(receiver, bill, stop=stop)


async def invoice_for(order: object) -> object:
    """What the application makes of *order*."""
    stop = asyncio.Event()
    async with client_of("orders") as orders, client_of("invoices") as invoices, invoices.subscribe() as receiver:
        await orders.send_message(EventMessage.from_json(order))
        application = asyncio.create_task(bill_orders(stop))
        invoice = await receiver.receive_message(timeout=5)
        stop.set()
        await application
    return invoice and invoice.data_as_json()


def test_an_order_gives_an_invoice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was ordered is to be paid."""
    monkeypatch.setenv("EVENTS_ORDERS_URL", "memory:///orders?subscription=billing")
    monkeypatch.setenv("EVENTS_INVOICES_URL", "memory:///invoices")
    assert asyncio.run(invoice_for({"order": 42, "total": "19.90"})) == {"to pay": "19.90"}
