"""A web application that takes orders and sends them as messages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from events_core import ErrorCode, EventMessage, PublishError, create_client


class Order(BaseModel):
    """The body of a request."""

    order: int


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    async with create_client("orders", file="events.toml") as client:
        app.state.orders = client
        yield


app = FastAPI(lifespan=connected)


@app.post("/orders", status_code=202)
async def place_order(order: Order) -> dict[str, str]:
    message = EventMessage.from_json(order.model_dump())
    try:
        return {"id": await app.state.orders.send_message(message)}
    except PublishError as error:
        status = 422 if error.code is ErrorCode.INVALID else 503
        raise HTTPException(status, error.code) from error
