"""Names of ephemeral subscriptions: they say whose they are, and tell them from durable ones."""

from __future__ import annotations

import os
import re
import socket
import uuid

__all__ = ["ephemeral_name", "is_ephemeral"]

_END = re.compile(r"-[0-9]+-[0-9a-f]{16}$")
"""The process's number, and what makes the name unique."""


def ephemeral_name(topic_name: str) -> str:
    """Return a new name."""
    host = re.sub(r"[^A-Za-z0-9\-]", "-", socket.gethostname())[:32]
    return f"{topic_name[:180]}-{host}-{os.getpid()}-{uuid.uuid4().hex[:16]}"


def is_ephemeral(name: str) -> bool:
    """Return whether *name*, alone or full, is one of :func:`ephemeral_name`."""
    return _END.search(name) is not None
