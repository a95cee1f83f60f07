"""A FastAPI dependency: the clients that :class:`~events_core.integrations.asgi.EventsMiddleware` has opened."""

from __future__ import annotations

import attrs
from starlette.requests import HTTPConnection

from events_core import EventClient

__all__ = ["ClientNamed"]


@attrs.frozen
class ClientNamed:
    """A dependency that gives a handler the client of that name.

    ::

        Orders = Annotated[EventClient, Depends(ClientNamed("orders"))]


        @app.post("/orders")
        async def place_order(order: Order, orders: Orders) -> None:
            await orders.send_message(EventMessage.from_json(order.model_dump()))

    Two dependencies of one name are equal, so a test may write
    ``app.dependency_overrides[ClientNamed("orders")] = …``.
    """

    name: str
    """The name of the client."""

    def __call__(self, connection: HTTPConnection) -> EventClient:
        """Return the client, for FastAPI.

        :raises LookupError: if the application has no ``EventsMiddleware``, or the middleware has no such client.
        """
        events = connection.scope.get("state", {}).get("events")
        if events is None:
            raise LookupError("the application has no clients; add EventsMiddleware to it")
        client: EventClient | None = events.clients.get(self.name)
        if client is None:
            names = ", ".join(repr(name) for name in events.clients) or "none"
            raise LookupError(f"EventsMiddleware has no client {self.name!r}; its clients are: {names}")
        return client
