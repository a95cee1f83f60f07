"""CPU per message on memory: without an observer, with one that does nothing, and with OpenTelemetry.

Run ``python tests/benchmarks/observer_cost.py``.  With ``--base PATH`` the first row is another checkout, whose library
has no observer either: the second row shows whether a change made that slower.  Each figure comes from a process of its
own.  The rows take turns, so that a busy machine disturbs all of them alike.  Compare the ratios, and the bytecodes of
Python per message, which do not depend on the machine.

Spans and metrics go to OpenTelemetry's SDK, whose exporter drops them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from events_core import EventClient, EventConfig, EventMessage, create_client

HERE = Path(__file__).parents[2]
MEMORY = "events_core.backends.memory:MemoryClient"
BATCH = 100
PAYLOAD = b"x" * 256


class Nothing:
    """An observer that does nothing."""

    def start(self, operation: object) -> None: ...

    def end(self, operation: object, error: BaseException | None) -> None: ...


def observe(client: EventClient, how: str) -> None:
    if how == "nothing":
        client.observer = Nothing()
    elif how == "otel":
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

        from events_core.integrations.opentelemetry import instrument

        class Dropping(SpanExporter):
            def export(self, spans: object) -> SpanExportResult:
                return SpanExportResult.SUCCESS

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(Dropping()))
        instrument(client, tracer_provider=provider, meter_provider=MeterProvider())


async def single(how: str, messages: int) -> None:
    """Send, receive and process one message at a time."""
    async with create_client(EventConfig("single", backend=MEMORY)) as client, client.subscribe() as receiver:
        observe(client, how)
        for _ in range(messages):
            await client.send_message(EventMessage(PAYLOAD))
            message = await receiver.receive_message()
            assert message is not None
            async with receiver.processing(message):
                pass


async def batches(how: str, messages: int) -> None:
    """Send, receive and acknowledge a hundred messages at a time."""
    async with create_client(EventConfig("batches", backend=MEMORY)) as client, client.subscribe() as receiver:
        observe(client, how)
        for _ in range(messages // BATCH):
            await client.send_messages([EventMessage(PAYLOAD) for _ in range(BATCH)])
            await receiver.acknowledge_messages(await receiver.receive_messages(BATCH))


WORK = {"single": single, "batches": batches}


def measure(work: str, how: str, messages: int) -> None:
    """Print the microseconds of CPU per message of *work*, in this process."""
    asyncio.run(WORK[work](how, messages // 10))  # imports and caches
    began = time.process_time()
    asyncio.run(WORK[work](how, messages))
    print((time.process_time() - began) / messages * 1e6)


def count(work: str, how: str) -> None:
    """Print the bytecodes of Python per message of *work*: a busy machine does not change them."""
    done = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal done
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        done += event == "opcode"
        return trace

    def bytecodes(messages: int) -> int:
        nonlocal done
        done = 0
        sys.settrace(trace)
        asyncio.run(WORK[work](how, messages))
        sys.settrace(None)
        return done

    bytecodes(BATCH)  # imports and caches
    print((bytecodes(3 * BATCH) - bytecodes(BATCH)) / (2 * BATCH))


def in_process(place: Path, what: str, work: str, how: str, messages: int) -> float:
    command = [sys.executable, __file__, what, work, how, "--messages", str(messages)]
    environment = {**os.environ, "PYTHONPATH": str(place)}
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, cwd="/").stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="another checkout, to compare with")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", nargs="+", default=["none", "nothing", "otel"])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--count", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure, chosen.messages)
        return
    if chosen.count:
        count(*chosen.count)
        return
    rows = {how: (HERE, how) for how in chosen.rows}
    if chosen.base:
        rows = {"base": (chosen.base, "none"), **rows}
    for work in WORK:
        figures: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(chosen.rounds):
            for name, (place, how) in rows.items():
                figures[name].append(in_process(place, "--measure", work, how, chosen.messages))
        first = next(iter(rows))
        columns = f"{'median µs':>10} {'min':>8} {'max':>8} {'ratio':>7} {'of min':>7} {'bytecodes':>10}"
        print(f"{work:10} {columns}   to {first}")
        for name, values in figures.items():
            ratios = [value / base for value, base in zip(values, figures[first], strict=True)]
            of_min = min(values) / min(figures[first])
            bytecodes = in_process(rows[name][0], "--count", work, rows[name][1], 0)
            print(
                f"{name:10} {statistics.median(values):10.2f} {min(values):8.2f} {max(values):8.2f} "
                f"{statistics.median(ratios):7.3f} {of_min:7.3f} {bytecodes:10.0f}"
            )


if __name__ == "__main__":
    main()
