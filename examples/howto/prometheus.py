"""The metrics of a client at an address that Prometheus reads."""

from __future__ import annotations

import asyncio
import urllib.request

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from events_core import EventMessage, create_client
from events_core.integrations.opentelemetry import instrument


async def main() -> None:
    client = instrument(
        create_client("memory:///orders?subscription=billing")
    )
    async with client, client.subscribe() as receiver:
        await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
        for message in await receiver.receive_messages(2):
            async with receiver.processing(message):
                pass


if __name__ == "__main__":
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    server, thread = start_http_server(0, addr="127.0.0.1")  # usually 9464
    asyncio.run(main())
    # What Prometheus reads, without the times and most labels:
    address = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            operation = labels.get("messaging_operation_name")
            if operation and name.endswith(("_total", "_count")):
                print(f"{name} {operation}: {value:g}")
    server.shutdown()
