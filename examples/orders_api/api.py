"""The web application: it takes orders by HTTP, and sends each of them as a message."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from events_core import ErrorCode, EventClient, EventConnectionError, EventMessage, PublishError, create_client


class Order(BaseModel):
    """The body of a request."""

    order: int
    customer: str = Field(min_length=1, max_length=100)
    total: int = Field(gt=0, description="In cents.")


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    async with create_client("orders", file="events.toml") as client:
        app.state.orders = client
        yield


app = FastAPI(lifespan=connected)


def get_orders(request: Request) -> EventClient:
    client: EventClient = request.app.state.orders
    return client


Orders = Annotated[EventClient, Depends(get_orders)]


@app.post("/orders", status_code=202)
async def place_order(order: Order, orders: Orders) -> dict[str, str]:
    message = EventMessage.from_json(order.model_dump(), ordering_key=order.customer)
    try:
        return {"id": await orders.send_message(message)}
    except PublishError as error:
        # A message that no broker would take is the fault of the request.  Everything else is ours, and may pass.
        status = 422 if error.code is ErrorCode.INVALID else 503
        raise HTTPException(status, error.code) from error


@app.get("/health")
async def health(orders: Orders) -> dict[str, str]:
    try:
        await orders.ping(timeout=1)
    except EventConnectionError as error:
        raise HTTPException(503, error.code) from error
    return {"broker": "connected"}
