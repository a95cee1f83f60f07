"""Deliveries, put together from their frames."""

from __future__ import annotations

from collections.abc import Callable

from pika import spec  # type: ignore[import-untyped]

__all__ = ["Inlet"]

_METHOD, _HEADER, _BODY = spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY
_DELIVER = spec.Basic.Deliver.INDEX.to_bytes(4, "big")


class Inlet:
    """The deliveries of one channel.

    A delivery is a method frame, a header frame and then body frames, as many as the size in the header asks for.

    :param arrived: called with the payloads of the method and of the header, and with the whole body.
    """

    def __init__(self, arrived: Callable[[bytes, bytes, bytes], None]) -> None:
        self._arrived = arrived
        self._method = b""
        """Empty between deliveries."""
        self._header = b""
        self._parts: list[bytes] = []
        self._left = 0
        """Bytes of the body that are still to come."""

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame of the channel; return False if it is no part of a delivery, and left to pika."""
        if kind == _METHOD and payload.startswith(_DELIVER):
            self._method = payload
            return True
        if not self._method or kind not in (_HEADER, _BODY):
            return False
        if kind == _HEADER:
            self._header = payload
            self._left = int.from_bytes(payload[4:12], "big")
        else:
            self._parts.append(payload)
            self._left -= len(payload)
        if self._left <= 0:
            method, self._method = self._method, b""
            parts, self._parts = self._parts, []
            self._arrived(method, self._header, parts[0] if len(parts) == 1 else b"".join(parts))
        return True
