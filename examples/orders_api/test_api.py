"""The web application, without a worker."""

from fastapi.testclient import TestClient

from events_core import ErrorCode, EventMessage
from events_core.testing.fixtures import MemoryBroker

ORDER = {"order": 42, "customer": "alice", "total": 1990}


def test_an_order_is_sent(http: TestClient, memory_broker: MemoryBroker) -> None:
    answer = http.post("/orders", json=ORDER)
    assert answer.status_code == 202
    assert answer.json()["id"]
    assert memory_broker.sent("orders") == [EventMessage.from_json(ORDER, ordering_key="alice")]


def test_what_is_no_order_is_not_sent(http: TestClient, memory_broker: MemoryBroker) -> None:
    assert http.post("/orders", json={**ORDER, "total": -1}).status_code == 422
    assert memory_broker.sent("orders") == []


def test_in_an_outage_the_customer_is_told(http: TestClient, memory_broker: MemoryBroker) -> None:
    assert http.get("/health").status_code == 200
    with memory_broker.failing():
        assert http.post("/orders", json=ORDER).status_code == 503
        assert http.get("/health").status_code == 503
    assert http.post("/orders", json=ORDER).status_code == 202
    assert len(memory_broker.sent("orders")) == 1


def test_nobody_waits_forever_for_a_broker_that_stalls(http: TestClient, memory_broker: MemoryBroker) -> None:
    with memory_broker.stalling():
        assert http.post("/orders", json=ORDER).status_code == 503


def test_a_broker_that_refuses_us_is_not_the_customers_fault(http: TestClient, memory_broker: MemoryBroker) -> None:
    with memory_broker.failing(ErrorCode.PERMISSION_DENIED):
        answer = http.post("/orders", json=ORDER)
    assert (answer.status_code, answer.json()) == (503, {"detail": "PERMISSION_DENIED"})
