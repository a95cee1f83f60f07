"""The engine: the door for authors of backends, who write a small driver and get the hard parts from here."""

from events_core.bounded_file import read_bounded
from events_core.engine.backoff import redelivery_delay
from events_core.engine.client import EngineClient
from events_core.engine.clock import uptime
from events_core.engine.dead_letter import DeadLetterLog, dead_letter_attributes, log_dead_letter
from events_core.engine.driver import BrokerError, Delivery, Driver, Outcome, Publishing, Settlement, Source
from events_core.engine.gate import Gate
from events_core.engine.keyed_queue import KeyedQueue
from events_core.engine.letters import Letters
from events_core.engine.limits import message_size
from events_core.engine.loop_thread import off_loop

__all__ = [
    "BrokerError",
    "DeadLetterLog",
    "Delivery",
    "Driver",
    "EngineClient",
    "Gate",
    "KeyedQueue",
    "Letters",
    "Outcome",
    "Publishing",
    "Settlement",
    "Source",
    "dead_letter_attributes",
    "log_dead_letter",
    "message_size",
    "off_loop",
    "read_bounded",
    "redelivery_delay",
    "uptime",
]
