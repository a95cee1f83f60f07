"""Contract Q4: what ``subscribe`` returns can be awaited, and entered with ``async with``."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import pytest

from events_core import (
    Capabilities,
    ErrorCode,
    EventClient,
    EventConfig,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
    ReceiverStats,
    create_client,
)
from events_core.interface import Joining


class PlainReceiver(EventReceiver):
    """A receiver that only knows whether it is closed."""

    subscription = "s"
    capabilities = Capabilities()
    closed = False

    @property
    def stats(self) -> ReceiverStats:
        raise NotImplementedError

    async def receive_message(self, timeout: float | None = None) -> ReceivedMessage | None: ...
    async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]: ...
    async def acknowledge(self, message: ReceivedMessage | str) -> None: ...
    async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None: ...
    async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None: ...
    async def nack_messages(self, messages: Any, *, delay: float | None = None) -> None: ...
    def __aiter__(self) -> AsyncIterator[ReceivedMessage]: ...

    async def close(self, timeout: float = 15.0) -> None:
        self.closed = True


class PlainClient(EventClient):
    """A client without the engine, as a third party may have written it for the first version."""

    api_version = 1
    is_connected = False
    topic_name = project_id = ""
    capabilities = Capabilities()

    def __init__(self, config: EventConfig) -> None:
        self.receivers: list[PlainReceiver] = []

    async def send_message(self, message: EventMessage) -> str: ...
    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]: ...
    async def delete_subscription(self, subscription: str) -> None: ...
    async def ping(self, timeout: float = 5.0) -> float: ...
    async def close(self, timeout: float = 15.0) -> None: ...

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        """Join."""
        await asyncio.sleep(0)
        self.receivers.append(PlainReceiver())
        return self.receivers[-1]


class WaitingReceiver(PlainReceiver):
    """A receiver that waits when it is entered."""

    async def __aenter__(self) -> WaitingReceiver:
        await asyncio.sleep(0)
        return self


class WaitingClient(PlainClient):
    """A client whose receivers wait when they are entered."""

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        self.receivers.append(WaitingReceiver())
        return self.receivers[-1]


class DerivedClient(PlainClient):
    """A client that extends another one's ``subscribe``."""

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        return await super().subscribe(subscription)


class Mixin:
    """A part of a client that knows nothing of the abstract class."""

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        return PlainReceiver()


class MixedClient(Mixin, PlainClient):
    """A client that inherits its ``subscribe`` from a mixin."""


CLIENTS: dict[str, Callable[[], EventClient]] = {
    "engine": lambda: create_client(EventConfig("joined", backend="memory")),
    "plain": lambda: PlainClient(EventConfig("joined")),
    "derived": lambda: DerivedClient(EventConfig("joined")),
    "mixed": lambda: MixedClient(EventConfig("joined")),
}


@pytest.fixture(params=CLIENTS)
def make_client(request: pytest.FixtureRequest) -> Callable[[], EventClient]:
    """Return what makes a client of each kind."""
    return CLIENTS[request.param]


def test_it_can_be_entered(make_client: Callable[[], EventClient]) -> None:
    """The receiver of ``async with client.subscribe()`` is closed at the end of the block."""

    async def scene() -> None:
        async with make_client() as client:
            async with client.subscribe("s") as receiver:
                assert isinstance(receiver, EventReceiver)
                assert not getattr(receiver, "closed", False)
            if isinstance(receiver, PlainReceiver):
                assert receiver.closed
            else:
                with pytest.raises(EventRuntimeError) as caught:
                    await receiver.receive_message(0)
                assert caught.value.code is ErrorCode.CLOSED

    asyncio.run(scene())


WAYS: dict[str, Callable[[Joining[EventReceiver]], Coroutine[Any, Any, EventReceiver]]] = {
    "await": lambda joining: joining,
    "a task": lambda joining: _first([asyncio.create_task(joining)]),
    "ensure_future": lambda joining: _first([asyncio.ensure_future(joining)]),
    "gather": lambda joining: _first([joining]),
    "wait_for": lambda joining: asyncio.wait_for(joining, 30),
    "a task group": lambda joining: _in_group(joining),
}


async def _first(awaitables: list[Any]) -> EventReceiver:
    (receiver,) = await asyncio.gather(*awaitables)
    return receiver


async def _in_group(joining: Joining[EventReceiver]) -> EventReceiver:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(joining)
    return task.result()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_can_be_awaited_in_every_way(
    make_client: Callable[[], EventClient], way: Callable[[Any], Coroutine[Any, Any, EventReceiver]]
) -> None:
    """Everything that takes a coroutine takes it too."""

    async def scene() -> None:
        async with make_client() as client, await way(client.subscribe("s")) as receiver:
            assert isinstance(receiver, EventReceiver)

    asyncio.run(scene())


def test_it_can_be_run(make_client: Callable[[], EventClient]) -> None:
    """``asyncio.run`` takes it as it takes a coroutine."""
    client = make_client()
    assert isinstance(asyncio.run(client.subscribe("s")), EventReceiver)
    asyncio.run(client.close())


def test_used_twice_it_fails_as_a_coroutine_does(make_client: Callable[[], EventClient]) -> None:
    """A second receiver needs a second call."""

    async def scene() -> None:
        async with make_client() as client:
            joining = client.subscribe("s")
            async with await joining:
                with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                    await joining
                with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                    async with joining:
                        pass

    asyncio.run(scene())


@pytest.mark.parametrize("kind", ["engine", "plain"])
def test_never_used_it_warns_as_a_coroutine_does(kind: str) -> None:
    """The warning names the method that was called."""
    client = CLIENTS[kind]()
    with pytest.warns(RuntimeWarning, match=r"coroutine '\w+Client\.subscribe' was never awaited"):
        _forget(client.subscribe("s"))


def _forget(joining: Joining[EventReceiver]) -> None:
    del joining
    gc.collect()


def test_the_repr_of_a_task_says_where_it_is(make_client: Callable[[], EventClient]) -> None:
    """A task that joins is shown with name and line, and prints its stack, as every other task."""

    async def scene() -> tuple[str, int]:
        async with make_client() as client:
            task = asyncio.create_task(client.subscribe("s"))
            shown, stack = repr(task), len(task.get_stack())
            await (await task).close()
        return shown, stack

    shown, stack = asyncio.run(scene())
    assert ".subscribe() running at" in shown
    assert stack == 1


def test_a_receivers_attribute_says_to_await() -> None:
    """A forgotten ``await`` is explained where the receiver is used."""
    joining = CLIENTS["engine"]().subscribe("s")
    with pytest.raises(AttributeError, match=r"'receive_message': .* 'await client\.subscribe"):
        joining.receive_message  # type: ignore[attr-defined]  # noqa: B018
    joining.close()


def test_its_documentation_and_signature_stay(make_client: Callable[[], EventClient]) -> None:
    """``help`` shows the method as its author wrote it."""
    method = make_client().subscribe
    assert method.__name__ == "subscribe"
    assert list(inspect.signature(method).parameters) == ["subscription"]


def test_cancelled_while_it_is_entered_it_leaves_no_receiver() -> None:
    """A cancellation at every point of the way either comes before the receiver is there, or closes it."""

    async def scene() -> list[int]:
        opened = []
        for turns in range(4):
            client = PlainClient(EventConfig("joined"))
            task = asyncio.create_task(_enter(client))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert all(receiver.closed for receiver in client.receivers)
            opened.append(len(client.receivers))
        return opened

    # Cancelled early there is no receiver at all, cancelled late there is one.
    assert set(asyncio.run(scene())) == {0, 1}


def test_a_receiver_that_cannot_be_entered_is_closed() -> None:
    """The caller never gets it, and so cannot close it."""

    class FailingReceiver(PlainReceiver):
        async def __aenter__(self) -> Any:
            raise ZeroDivisionError

    receiver = FailingReceiver()

    class FailingClient(PlainClient):
        async def subscribe(self, subscription: str | None = None) -> EventReceiver:
            return receiver

    with pytest.raises(ZeroDivisionError):
        asyncio.run(_enter(FailingClient(EventConfig("joined"))))
    assert receiver.closed


async def _enter(client: EventClient) -> None:
    async with client.subscribe("s"):
        await asyncio.Event().wait()


def test_a_generator_that_is_closed_closes_its_receiver() -> None:
    """A generator that is left early ends the block inside it."""
    client = PlainClient(EventConfig("joined"))

    async def receivers() -> AsyncIterator[EventReceiver]:
        async with client.subscribe("s") as receiver:
            yield receiver

    async def scene() -> None:
        generator = receivers()
        await anext(generator)
        assert not client.receivers[0].closed
        await generator.aclose()

    asyncio.run(scene())
    assert client.receivers[0].closed


def test_an_error_of_the_body_goes_on(make_client: Callable[[], EventClient]) -> None:
    """``async with`` closes the receiver and hides nothing."""

    async def scene() -> None:
        async with make_client() as client:
            with pytest.raises(ZeroDivisionError):
                async with client.subscribe("s"):
                    raise ZeroDivisionError

    asyncio.run(scene())


def test_the_garbage_collector_closes_no_receiver_that_is_being_entered() -> None:
    """Closing takes locks, and the collector may run in a thread that holds them."""
    client = WaitingClient(EventConfig("joined"))
    entering = client.subscribe("s").__aenter__()
    entering.send(None)  # type: ignore[attr-defined]  # waits in the receiver's __aenter__
    del entering
    gc.collect()
    assert not client.receivers[0].closed


def test_a_receiver_whose_entering_is_cancelled_is_closed() -> None:
    """No one else could close it."""

    async def scene() -> None:
        client = WaitingClient(EventConfig("joined"))
        entering = asyncio.ensure_future(client.subscribe("s").__aenter__())
        await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        assert client.receivers[0].closed

    asyncio.run(scene())
