"""Names of ephemeral subscriptions.

A name says which topic, host and process it belongs to, and that the subscription is not durable.
"""

from __future__ import annotations

import os
import re
import socket
import uuid

__all__ = ["ephemeral_name", "is_ephemeral"]

_END = re.compile(r"-[0-9]+-[0-9a-f]{16}$")
"""The process id, and random digits that make the name unique."""


def ephemeral_name(topic_name: str) -> str:
    """Return a new name for a subscription of *topic_name*."""
    host = re.sub(r"[^A-Za-z0-9\-]", "-", socket.gethostname())[:32]
    return f"{topic_name[:180]}-{host}-{os.getpid()}-{uuid.uuid4().hex[:16]}"


def is_ephemeral(name: str) -> bool:
    """Return whether :func:`ephemeral_name` made *name*, which may be short or full."""
    return _END.search(name) is not None
