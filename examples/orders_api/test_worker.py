"""The worker, without the web application."""

import asyncio

import bank
import pytest
import worker

from events_core import EventClient, EventMessage
from events_core.testing.fixtures import MemoryBroker


class Bank:
    """A bank that remembers whom it charged, and may be closed or refuse a customer at first."""

    def __init__(self) -> None:
        self.charged: list[tuple[str, int]] = []
        self.answers: list[Exception] = []

    async def charge(self, customer: str, cents: int) -> None:
        if self.answers:
            raise self.answers.pop(0)
        self.charged.append((customer, cents))


@pytest.fixture
def our_bank(monkeypatch: pytest.MonkeyPatch) -> Bank:
    """Replace the bank."""
    ours = Bank()
    monkeypatch.setattr(bank, "charge", ours.charge)
    monkeypatch.setattr(worker, "PAUSE", 0.1)
    return ours


def order(number: int, customer: str = "alice") -> EventMessage:
    body = {"order": number, "customer": customer, "total": 1000 + number}
    return EventMessage.from_json(body, ordering_key=customer)


def handle(broker: MemoryBroker, orders: EventClient, *messages: EventMessage) -> None:
    """Let the worker handle *messages*."""

    async def main() -> None:
        stop = asyncio.Event()
        working = asyncio.create_task(worker.work(stop))
        await orders.send_messages(messages)
        await broker.until_handled("orders")
        stop.set()
        await working

    asyncio.run(main())


def test_orders_are_billed_in_turn(memory_broker: MemoryBroker, orders: EventClient, our_bank: Bank) -> None:
    handle(memory_broker, orders, *[order(number) for number in range(20)])
    assert our_bank.charged == [("alice", 1000 + number) for number in range(20)]


def test_an_order_waits_until_the_bank_opens(memory_broker: MemoryBroker, orders: EventClient, our_bank: Bank) -> None:
    our_bank.answers = [bank.BankClosed(), bank.BankClosed()]
    handle(memory_broker, orders, order(1), order(2))
    assert our_bank.charged == [("alice", 1001), ("alice", 1002)]
    assert memory_broker.sent("orders-dead") == []


def test_a_refused_card_is_not_tried_again(memory_broker: MemoryBroker, orders: EventClient, our_bank: Bank) -> None:
    our_bank.answers = [bank.CardRefused("the card was stolen")]
    handle(memory_broker, orders, order(1), order(2))
    (letter,) = memory_broker.sent("orders-dead")
    assert letter.data_as_json()["order"] == 1
    assert letter.attributes["dead_letter_reason"] == "the card was stolen"
    assert our_bank.charged == [("alice", 1002)]


def test_an_order_that_always_fails_becomes_a_letter(
    memory_broker: MemoryBroker, orders: EventClient, our_bank: Bank
) -> None:
    our_bank.answers = [RuntimeError("a defect")] * 5
    handle(memory_broker, orders, order(1))
    (letter,) = memory_broker.sent("orders-dead")
    assert letter.attributes["dead_letter_delivery_attempts"] == "5"
    assert our_bank.charged == []
