"""A web application: it sends orders, and its WebSockets publish events."""

from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket

from events_core import EventClient, EventMessage
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from events_core.integrations.fastapi import ClientNamed

app = FastAPI()
app.add_middleware(
    EventsMiddleware,
    clients=["orders"],
    websocket_events=WebSocketEvents(payload="size"),
    file="events.toml",
)

Orders = Annotated[EventClient, Depends(ClientNamed("orders"))]


@app.post("/orders/{number}", status_code=202)
async def place_order(number: int, orders: Orders) -> None:
    await orders.send_message(EventMessage.from_json({"order": number}))


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
