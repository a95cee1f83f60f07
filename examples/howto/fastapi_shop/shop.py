"""A web application that takes orders and sends them as messages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException

from events_core import ErrorCode, EventMessage, PublishError, create_client


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    async with create_client("orders", file="events.toml") as client:
        app.state.orders = client
        yield


app = FastAPI(lifespan=connected)


@app.post("/orders", status_code=202)
async def place_order(order: dict[str, Any]) -> dict[str, str]:
    message = EventMessage.from_json(order)
    try:
        return {"id": await app.state.orders.send_message(message)}
    except PublishError as error:
        status = 422 if error.code is ErrorCode.INVALID else 503
        raise HTTPException(status, error.code) from error
