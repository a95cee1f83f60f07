"""Actions that the kit runs in other processes, which die or fork.

``python -m events_core.testing.child ACTION PATIENCE`` reads a configuration from the first line of standard input, as
JSON, and reports on standard output, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from events_core import (
    EventClient,
    EventConfig,
    EventError,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    create_client,
)


def _report(**facts: object) -> None:
    # Flushed at once, because the process may be killed in the next moment.
    print(json.dumps(facts), flush=True)


def _die() -> None:
    # Nothing is flushed, closed or given back: as when the kernel kills a process for its memory.
    os.kill(os.getpid(), signal.SIGKILL)


async def send_and_die(config: EventConfig, patience: float) -> None:
    """Send one message, tell its id, and die."""
    _report(sent=await create_client(config).send_message(EventMessage(b"x")))
    _die()


async def receive_and_die(config: EventConfig, patience: float) -> None:
    """Receive one message, tell its id, and die holding it."""
    receiver = await create_client(config).subscribe()
    message = await _receive(receiver, patience)
    _report(received=message.message_id)
    _die()


async def acknowledge_and_die(config: EventConfig, patience: float) -> None:
    """Receive one message, acknowledge it, tell its id, and die."""
    receiver = await create_client(config).subscribe()
    message = await _receive(receiver, patience)
    await receiver.acknowledge(message)
    _report(received=message.message_id)
    _die()


async def receive_run_and_die(config: EventConfig, patience: float) -> None:
    """Receive as many messages of a key as one call returns, tell their texts, and die holding them."""
    receiver = await create_client(config).subscribe()
    run = await receiver.receive_messages(2, patience)
    _report(received=[message.data_as_string() for message in run])
    _die()


async def hold(config: EventConfig, patience: float) -> None:
    """Receive one message and tell its id.  Then carry out each line of standard input."""
    async with create_client(config) as client:
        receiver = await client.subscribe()
        message = await _receive(receiver, patience)
        _report(received=message.message_id)
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "acknowledge": lambda: receiver.acknowledge(message),
            "nack": lambda: receiver.nack(message, delay=0),
            "close": lambda: receiver.close(timeout=0),
        }
        while word := await asyncio.to_thread(sys.stdin.readline):
            _report(outcome=await _outcome(calls[word.strip()]()))


async def _outcome(call: Coroutine[Any, Any, object]) -> str:
    """Return the code of the error that *call* raises, or ``done``."""
    try:
        await call
    except EventError as error:
        return error.code.value
    return "done"


async def _receive(receiver: EventReceiver, patience: float) -> ReceivedMessage:
    message = await receiver.receive_message(patience)
    assert message is not None, f"no message within {patience} s"
    return message


def fork_fresh(config: EventConfig, patience: float) -> None:
    """Construct a client, fork, and use it in the child."""
    client = create_client(config)
    _report(child=_in_fork(lambda: _round_trip(client, patience), patience))


def fork_connected(config: EventConfig, patience: float) -> None:
    """Connect a client, fork, try every call in the child, and use it in the parent."""
    # Each ``asyncio.run`` is over before the fork.  A running loop would be copied into the child.
    client = create_client(config)
    receiver = asyncio.run(client.subscribe())
    message = asyncio.run(_send_and_receive(client, receiver, b"x", patience))
    codes = _in_fork(lambda: _codes(client, receiver, message), patience)
    asyncio.run(receiver.acknowledge(message))
    message = asyncio.run(_send_and_receive(client, receiver, b"y", patience))
    asyncio.run(client.close(timeout=0))
    _report(child=codes, parent=f"received {message.data_as_string()}")


def fork_beside_connected(config: EventConfig, patience: float) -> None:
    """Connect a client, fork, send with a new client in the child, and close the parent's client between two sends."""
    client = create_client(config)
    asyncio.run(client.send_message(EventMessage(b"parent")))
    # Pipes and not times put the steps in order: a send, the parent's close, another send.
    sent, closed = os.pipe(), os.pipe()

    async def send_around_the_close() -> str:
        async with create_client(config) as own:
            try:
                await own.send_message(EventMessage(b"before"))
            except EventError as error:
                return error.code.value
            os.write(sent[1], b".")
            select.select([closed[0]], [], [], patience)
            await own.send_message(EventMessage(b"after"))
        return "sent"

    def close() -> None:
        os.close(sent[1])  # otherwise the read below would wait endlessly if the child is refused
        select.select([sent[0]], [], [], patience)
        asyncio.run(client.close(timeout=0))
        os.write(closed[1], b".")

    _report(child=_in_fork(send_around_the_close, patience, meanwhile=close))


async def _round_trip(client: EventClient, patience: float) -> str:
    async with client:
        receiver = await client.subscribe()
        message = await _send_and_receive(client, receiver, b"x", patience)
        await receiver.acknowledge(message)
    return f"received {message.data_as_string()}"


async def _send_and_receive(
    client: EventClient, receiver: EventReceiver, data: bytes, patience: float
) -> ReceivedMessage:
    await client.ping(patience)
    await client.send_message(EventMessage(data))
    return await _receive(receiver, patience)


async def _codes(client: EventClient, receiver: EventReceiver, message: ReceivedMessage) -> dict[str, str]:
    """Return the code of the error that each call raises."""
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "send_message": lambda: client.send_message(EventMessage(b"x")),
        "send_messages": lambda: client.send_messages([EventMessage(b"x")]),
        "subscribe": lambda: client.subscribe(),
        "delete_subscription": lambda: client.delete_subscription("any"),
        "ping": lambda: client.ping(),
        "receive_message": lambda: receiver.receive_message(0),
        "receive_messages": lambda: receiver.receive_messages(1, 0),
        "acknowledge": lambda: receiver.acknowledge(message),
        "acknowledge_messages": lambda: receiver.acknowledge_messages([message]),
        "nack": lambda: receiver.nack(message),
        "nack_messages": lambda: receiver.nack_messages([message]),
        "hand_back": lambda: receiver.hand_back(message),
        "receiver.close": lambda: receiver.close(timeout=0),
        "client.close": lambda: client.close(timeout=0),
    }
    codes = {}
    for name, call in calls.items():
        try:
            codes[name] = f"returned {await call()!r}"
        except EventError as error:
            codes[name] = error.code.value
    return codes


def _in_fork(
    work: Callable[[], Coroutine[Any, Any, Any]], patience: float, *, meanwhile: Callable[[], None] = lambda: None
) -> Any:
    """Return what *work* returns in a forked child, while the parent calls *meanwhile*."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(work, writing)
    os.close(writing)
    meanwhile()
    # Twice the patience: the work of a child waits for a ping and then for a message.
    ready, _, _ = select.select([reading], [], [], 2 * patience)
    if not ready:
        # A child that hangs must not keep the pipe open, from which the parent reads until its end.
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "no answer"


def _answer(work: Callable[[], Coroutine[Any, Any, Any]], writing: int) -> None:
    try:
        answer = asyncio.run(work())
    except BaseException as error:
        # Whatever happens, the child must not return into the code of its parent.
        answer = repr(error)
    os.write(writing, json.dumps(answer).encode())
    # Without the exit handlers that the child inherited: these belong to the parent.
    os._exit(0)


_ACTIONS: dict[str, Callable[[EventConfig, float], Coroutine[Any, Any, None] | None]] = {
    action.__name__: action
    for action in (
        send_and_die,
        receive_and_die,
        receive_run_and_die,
        acknowledge_and_die,
        hold,
        fork_fresh,
        fork_connected,
        fork_beside_connected,
    )
}


def main(action: str, patience: str) -> None:
    """Run *action* with the configuration on the first line of standard input."""
    work = _ACTIONS[action](EventConfig(**json.loads(sys.stdin.readline())), float(patience))
    if work is not None:
        asyncio.run(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
