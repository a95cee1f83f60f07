"""The events of WebSocket connections, as messages.

Each event is JSON, with the attributes ``event_type`` and ``client_id``:

* ``client_connected``, when the server has accepted the connection
* ``client_message``, for each message that the application receives
* ``client_disconnected``, with ``close_code``, ``duration`` in seconds, ``messages_received`` and ``messages_sent``

All have ``event_type``, ``client_id`` and ``timestamp`` (RFC 3339, UTC).  Nothing of the handshake is published unless
the application asks for it: headers and queries carry cookies and tokens.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

import attrs

from events_core import EventMessage
from events_core.integrations.outbox import Outbox

__all__ = ["CONNECTED", "DISCONNECTED", "EVENT_TYPES", "MESSAGE", "ConnectionEvents", "EventType", "WebSocketEvents"]

_log = logging.getLogger("events_core.websockets")

ConnectionT = TypeVar("ConnectionT")
EventType: TypeAlias = Literal["client_connected", "client_message", "client_disconnected"]
CONNECTED: EventType = "client_connected"
"""The type of the event of a connection that was accepted."""
MESSAGE: EventType = "client_message"
"""The type of the event of a message that came from the client."""
DISCONNECTED: EventType = "client_disconnected"
"""The type of the event of a connection that has ended."""
EVENT_TYPES: Collection[EventType] = get_args(EventType)
_COMMON = ("event_type", "client_id", "timestamp")
"""The fields that every event has, and that no detail replaces."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _random_id(_: object) -> str:
    return secrets.token_hex(8)


def _no_details(_: object) -> Mapping[str, Any]:
    return {}


def _known(_: object, attribute: attrs.Attribute[Any], value: Collection[str]) -> None:
    if isinstance(value, str) or not set(value) <= set(EVENT_TYPES):
        raise ValueError(f"{attribute.name} must be a collection of {', '.join(EVENT_TYPES)}, not {value!r}")


def _valid_payload(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("none", "size", "whole") and not callable(value):
        raise ValueError(f"{attribute.name} must be 'none', 'size', 'whole' or a function, not {value!r}")


@attrs.frozen(kw_only=True)
class WebSocketEvents(Generic[ConnectionT]):
    """The application's choice of what is published about its WebSocket connections.

    The functions get the connection: the scope of ASGI, or the connection of the library ``websockets``.  They are
    called in the event loop, so they must return soon.  If one raises, the log has the exception, and the connection
    goes on: with a random id in place of *client_id*, and otherwise without this event.

    :raises ValueError: for an unknown type of event, or an unknown *payload*.
    """

    publish: Collection[EventType] = attrs.field(default=EVENT_TYPES, validator=_known)
    """The types of the events that are published."""
    payload: Literal["none", "size", "whole"] | Callable[[str | bytes], object] = attrs.field(
        default="none", validator=_valid_payload
    )
    """The part of a message that ``client_message`` publishes.

    ``size`` adds ``size``, in bytes.  ``whole`` adds ``payload``: text as it is, and bytes in Base64 together with
    ``"payload_encoding": "base64"``.  A function returns the value of ``payload``, which must be of a JSON type.
    """
    client_id: Callable[[ConnectionT], str] = _random_id
    """Returns the id of a client.  By default each connection gets a random one.

    It is called when the connection is accepted, so it finds what the application has learned in the handshake.
    """
    details: Callable[[ConnectionT], Mapping[str, object]] = _no_details
    """Returns more fields for ``client_connected``, such as the path."""


class ConnectionEvents(Generic[ConnectionT]):
    """The events of one connection.

    An integration calls its methods in the event loop.  They do not raise, and only :meth:`room` waits.  Nothing is
    published before :meth:`connected` or after :meth:`disconnected`.
    """

    __slots__ = ("_began", "_choice", "_id", "_key", "_outbox", "_quoted_id", "_received", "_sent", "_state")

    def __init__(self, choice: WebSocketEvents[ConnectionT], outbox: Outbox) -> None:
        self._choice = choice
        self._outbox = outbox
        self._state: Literal["new", "open", "over"] = "new"
        self._id = self._quoted_id = ""
        self._key: str | None = None
        self._began = 0.0
        self._received = 0
        self._sent = 0

    async def room(self) -> None:
        """Wait until the outbox is not full, if its policy is ``wait``.

        Call it before a message is taken from the connection, and not after: if it is cancelled then, no message is
        lost.
        """
        await self._outbox.room()

    def connected(self, connection: ConnectionT) -> None:
        """Publish that the server has accepted *connection*; the second call does nothing."""
        if self._state != "new":
            return
        self._state = "open"
        self._began = time.monotonic()
        self._id = self._identified(connection)
        self._quoted_id = _encode(self._id)
        # Without order, a send with a key would be refused.
        if self._outbox.client.capabilities.ordering != "none":
            self._key = self._id
        if CONNECTED in self._choice.publish:
            self._publish(CONNECTED, lambda: self._choice.details(connection))

    @property
    def keeps_payload(self) -> bool:
        """True if :meth:`received` needs the data."""
        return MESSAGE in self._choice.publish and self._choice.payload != "none"

    def received(self, data: str | bytes) -> None:
        """Publish that the client has sent *data*."""
        if self._state != "open":
            return
        self._received += 1
        if MESSAGE in self._choice.publish:
            self._publish(MESSAGE, lambda: self._described(data))

    def sent(self) -> None:
        """Count a message to the client."""
        self._sent += 1

    def disconnected(self, close_code: int | None) -> None:
        """Publish that the connection has ended; the second call does nothing.

        :param close_code: the code of RFC 6455; ``None`` if it is not known.
        """
        if self._state != "open":
            return
        self._state = "over"  # before publishing, so that no message of this client can follow
        if DISCONNECTED in self._choice.publish:
            self._publish(
                DISCONNECTED,
                lambda: {
                    "close_code": close_code,
                    "duration": round(time.monotonic() - self._began, 6),
                    "messages_received": self._received,
                    "messages_sent": self._sent,
                },
            )

    def _identified(self, connection: ConnectionT) -> str:
        try:
            client_id: object = self._choice.client_id(connection)
            if isinstance(client_id, str) and client_id:
                return client_id
            _log.error("client_id must return a str that is not empty, not %r; the id will be random", client_id)
        except Exception:
            _log.exception("client_id failed; the id will be random")
        return _random_id(connection)

    def _described(self, data: str | bytes) -> Mapping[str, object]:
        payload = self._choice.payload
        if payload == "none":
            return {}
        if payload == "size":
            # The size on the wire; text that is ASCII has as many bytes as characters, which is known without encoding.
            return {"size": len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())}
        if callable(payload):
            return {"payload": payload(data)}
        if isinstance(data, str):
            return {"payload": data}
        return {"payload": base64.b64encode(data).decode(), "payload_encoding": "base64"}

    def _publish(self, event_type: EventType, details: Callable[[], Mapping[str, object]]) -> None:
        try:
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            # Put together as text: this runs for each message, and to encode one object would cost twice as much.
            body = f'{{"event_type":"{event_type}","client_id":{self._quoted_id},"timestamp":"{now}"'
            more = {name: value for name, value in details().items() if name not in _COMMON}
            body += f",{_encode(more)[1:]}" if more else "}"
            attributes = {"event_type": event_type, "client_id": self._id}
            message = EventMessage(body.encode(), attributes, ordering_key=self._key)
        except Exception:
            # A defect in a function of the application costs this event, and not the connection.
            _log.exception("an event %s of client %s could not be made", event_type, self._id)
            return
        self._outbox.put_nowait(message)
