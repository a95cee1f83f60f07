"""The bounds of what one client has in flight (P6).  This module does no I/O."""

from __future__ import annotations

from events_core.errors import ErrorCode, PublishError
from events_core.options import CommonOptions

__all__ = ["Bounds"]


class Bounds:
    """The most messages and bytes that may be in flight, and the error for a send beyond them."""

    __slots__ = ("max_bytes", "max_messages", "refuses")

    def __init__(self, options: CommonOptions) -> None:
        self.max_messages = options.publish_max_messages
        self.max_bytes = options.publish_max_bytes
        self.refuses = options.publish_on_limit == "error"
        """True if a send beyond the bounds fails at once, False if it waits."""

    def check(self, messages: int, size: int, *, in_flight: tuple[int, int] = (0, 0), has_queue: bool = False) -> None:
        """Refuse *messages* of *size* bytes together if they do not fit.  A single message fits if it is alone.

        :param in_flight: the messages in flight, and their bytes.
        :param has_queue: True if other messages wait for room already.
        :raises PublishError: ``EXHAUSTED``, which is retryable.
        """
        now_messages, now_bytes = in_flight
        fits = now_messages + messages <= self.max_messages and now_bytes + size <= self.max_bytes
        # Otherwise a message that is larger than the bound could never be sent.
        is_alone = messages == 1 and not now_messages
        if has_queue or not (fits or is_alone):
            raise PublishError(
                f"{now_messages} messages of {now_bytes} bytes are in flight, and {messages} more of {size} bytes "
                f"pass publish_max_messages={self.max_messages} or "
                f"publish_max_bytes={self.max_bytes}; send fewer at once, raise the bound, or set "
                "publish_on_limit=wait",
                code=ErrorCode.EXHAUSTED,
                retryable=True,
            )
