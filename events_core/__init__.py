"""Send, receive and acknowledge messages through any broker, chosen by name from configuration."""

from events_core.capabilities import PORTABLE_LIMITS, Capabilities, Limits
from events_core.config import EventConfig
from events_core.consuming import consume
from events_core.creation import create_client
from events_core.errors import (
    AcknowledgeError,
    BackendConflictError,
    BackendError,
    BackendLoadError,
    BackendNotFoundError,
    ConfigurationError,
    ErrorCode,
    EventConnectionError,
    EventError,
    EventRuntimeError,
    PublishError,
    ReceiveError,
)
from events_core.handling import Reject, RetryAfter
from events_core.interface import EventClient, EventReceiver, ReceiverStats
from events_core.message import EventMessage, ReceivedMessage
from events_core.observing import Observer, Operation
from events_core.registry import BackendInfo, available_backends, load_backend, register_backend

__all__ = [
    "PORTABLE_LIMITS",
    "AcknowledgeError",
    "BackendConflictError",
    "BackendError",
    "BackendInfo",
    "BackendLoadError",
    "BackendNotFoundError",
    "Capabilities",
    "ConfigurationError",
    "ErrorCode",
    "EventClient",
    "EventConfig",
    "EventConnectionError",
    "EventError",
    "EventMessage",
    "EventReceiver",
    "EventRuntimeError",
    "Limits",
    "Observer",
    "Operation",
    "PublishError",
    "ReceiveError",
    "ReceivedMessage",
    "ReceiverStats",
    "Reject",
    "RetryAfter",
    "available_backends",
    "consume",
    "create_client",
    "load_backend",
    "register_backend",
]
