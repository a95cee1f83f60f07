"""The object that ``EventClient.subscribe`` returns: await it, or enter it with ``async with``.

``await`` hands over the receiver, and the caller closes it.  ``async with`` also closes the receiver at its end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from events_core.errors import ErrorCode, EventRuntimeError

if TYPE_CHECKING:
    from events_core.interface import EventClient, EventReceiver

__all__ = ["Joining", "joins"]

ParamsT = ParamSpec("ParamsT")
ClientT = TypeVar("ClientT", bound="EventClient")
ReceiverT = TypeVar("ReceiverT", bound="EventReceiver", covariant=True)


class Joining(Coroutine[Any, Any, ReceiverT], AbstractAsyncContextManager[ReceiverT, None]):
    """A subscription that is being joined.

    It is a coroutine, so ``asyncio.create_task``, ``asyncio.gather`` and ``asyncio.wait_for`` take it.
    Nothing happens before it is awaited or entered.  It can be used once, and Python warns if it is never used.
    If it is cancelled before it has a receiver, no receiver stays open.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, ReceiverT]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, ReceiverT]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> ReceiverT:
        self._receiver = await self._coroutine
        try:
            return await self._receiver.__aenter__()
        except GeneratorExit:
            raise  # perhaps of the garbage collector, for which closing could wait for a lock without end
        except BaseException:
            # Python calls no ``__aexit__`` then, and the caller has no receiver to close.
            await self._receiver.close(timeout=0)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._receiver.__aexit__(kind, error, trace)

    def send(self, value: Any) -> Any:
        """Run until the next suspension, as a task does with every coroutine."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise *error* in the coroutine where it is suspended."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Raise ``GeneratorExit`` in the coroutine where it is suspended."""
        self._coroutine.close()

    if not TYPE_CHECKING:  # otherwise type checkers would accept every attribute

        def __getattr__(self, name: str) -> Any:
            # asyncio and debuggers print a task by its coroutine's name, and its stack by cr_frame and cr_code.
            if name.startswith("cr_") or name in ("__name__", "__qualname__"):
                return getattr(self._coroutine, name)
            raise AttributeError(
                f"no attribute {name!r}: subscribe() returned no receiver yet; write 'await client.subscribe(…)' or "
                "'async with client.subscribe(…) as receiver:'",
                name=name,
                obj=self,
            )


def joins(
    subscribe: Callable[Concatenate[ClientT, ParamsT], Coroutine[Any, Any, ReceiverT]],
) -> Callable[Concatenate[ClientT, ParamsT], Joining[ReceiverT]]:
    """Decorate the coroutine function *subscribe* of a client, so that its result also works with ``async with``.

    The result also compares the receiver's capabilities with what the configuration requires (rule O4: require).
    """

    async def checked(client: ClientT, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ReceiverT:
        receiver = await subscribe(client, *args, **kwargs)
        required = client.requirements
        # Without requirements, do not read the capabilities: the receiver may not know them yet.
        objection = required.objection(receiver.capabilities) if required.each else ""
        if objection:
            # The caller never gets this receiver, so no one else could close it.
            await receiver.close(timeout=0)
            raise EventRuntimeError(
                f"subscription {receiver.subscription!r}: {objection}",
                code=ErrorCode.UNSUPPORTED,
                backend=required.backend,
                topic_name=client.topic_name,
            )
        return receiver

    # A task and the warning "was never awaited" show the name of the coroutine.
    functools.update_wrapper(checked, subscribe)

    @functools.wraps(subscribe)
    def joining(client: ClientT, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> Joining[ReceiverT]:
        return Joining(checked(client, *args, **kwargs))

    return joining
