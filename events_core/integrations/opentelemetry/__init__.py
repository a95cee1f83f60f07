"""Traces and metrics of OpenTelemetry for a client; install ``events-core[otel]``.

One line switches it on:

.. code-block:: python

   client = instrument(create_client("orders", file="events.toml"))

Names follow version 1.44.0 of OpenTelemetry's semantic conventions for messaging, whose status is "development".  A
later release of this library may follow a later version.
"""

from __future__ import annotations

import importlib.metadata
from typing import TypeVar

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import TracerProvider

from events_core.integrations.opentelemetry.conventions import SCHEMA_URL
from events_core.integrations.opentelemetry.measuring import Metrics
from events_core.integrations.opentelemetry.observer import OpenTelemetryObserver
from events_core.integrations.opentelemetry.propagation import Propagation
from events_core.interface import EventClient

__all__ = ["SCHEMA_URL", "OpenTelemetryObserver", "instrument"]

ClientT = TypeVar("ClientT", bound=EventClient)

_SCOPE = "events_core"
"""The name of the instrumentation scope."""


def instrument(
    client: ClientT,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    propagator: TextMapPropagator | None = None,
    create_spans: bool = True,
) -> ClientT:
    """Give *client* an observer that makes spans and metrics, and return *client*.

    The observer puts the context of a trace into the attributes of each message that is sent, in the W3C form
    (``traceparent``), and finds it in each message that is received.  It never fails a send: a message that has no room
    for the attributes is sent without them.  It does no I/O itself, so neither a send nor a handler waits for it.

    It may be called at any time before the client closes, from any thread.  To switch it off again, set
    ``client.observer = None``.

    :param tracer_provider: the provider of spans; by default the global one.
    :param meter_provider: the provider of metrics; by default the global one.
    :param propagator: the form of the context in attributes; by default the global one, which is that of W3C unless
        ``OTEL_PROPAGATORS`` names another.
    :param create_spans: True to make one span for each message of a batch, so that each message has a context of its
        own.  Otherwise, and for a batch of more than 1,000 messages, they share that of the batch.
    :raises ValueError: if the client has an observer already.
    """
    if client.observer is not None:
        raise ValueError(
            f"the client of {client.topic_name!r} already has an observer, {client.observer!r}; "
            "a client has one observer, so set client.observer = None first"
        )
    version = importlib.metadata.version("events-core")
    client.observer = OpenTelemetryObserver(
        trace.get_tracer(_SCOPE, version, tracer_provider, SCHEMA_URL),
        Metrics(metrics.get_meter(_SCOPE, version, meter_provider, SCHEMA_URL)),
        Propagation(propagator, client.trace_prefix),
        system=client.messaging_system,
        create_spans=create_spans,
    )
    return client
