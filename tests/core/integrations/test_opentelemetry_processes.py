"""One trace across two processes and two backends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")

from events_core import EventMessage, ReceivedMessage, consume, create_client

from .telemetry import Telemetry, ids, links

SENDER = Path(__file__).with_name("traced_sender.py")
PATIENCE = 60.0


def test_one_trace_crosses_processes_and_backends(tmp_path: Path) -> None:
    """A process sends on SQLite; the handler in this one sends on memory, whose handler ends the trace."""
    url = f"sqlite:{tmp_path}/events.db/orders?subscription=billing"
    telemetry = Telemetry()
    orders, invoices = create_client(url), create_client("memory://traced/invoices?subscription=mail")
    telemetry.instrument(orders, invoices)
    stop = asyncio.Event()

    async def bill(message: ReceivedMessage) -> None:
        await invoices.send_message(EventMessage(message.data))

    async def mail(_: ReceivedMessage) -> None:
        stop.set()

    async def test() -> str:
        async with (
            asyncio.timeout(2 * PATIENCE),
            orders,
            invoices,
            orders.subscribe() as billing,
            invoices.subscribe() as mailing,
        ):
            sender = await asyncio.create_subprocess_exec(sys.executable, SENDER, url, stdout=subprocess.PIPE)
            output, _ = await sender.communicate()
            await asyncio.gather(consume(billing, bill, stop=stop), consume(mailing, mail, stop=stop))
        return output.decode()

    there = {name: tuple(found) for name, found in json.loads(asyncio.run(test())).items()}
    billed, sent, mailed = map(telemetry.span, ("process orders", "send invoices", "process invoices"))
    assert ids(billed.parent) == there["send orders"]
    assert links(billed) == [there["send orders"]]
    assert ids(sent.parent) == ids(billed.context)
    assert ids(mailed.parent) == ids(sent.context)
    traces = {span.context.trace_id for span in (billed, sent, mailed) if span.context}
    assert traces == {there["request"][0]}
