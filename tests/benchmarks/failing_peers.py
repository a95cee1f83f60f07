"""What FastStream and Celery do with a message that fails, next to events-core: the table of ``docs/why-not.rst``.

Each case is a worker on a Redis server of its own.  It gets one message.  In the first run its handler raises once.  In
the second run the process is killed (SIGKILL) while it handles the message, and another process is started.  The
program prints when the message is handled again.  It needs ``redis-server``, and this environment::

    pip install . ./examples/events_redis "faststream[redis]==0.7.8" "celery[redis]==5.7.0"

All cases run at once, because they only wait.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AFTER_RAISING = 45.0
AFTER_KILLING = 120.0
"""Seconds after which a message counts as not handled again."""
START = 60.0

FAILURE = os.environ.get("FAILURE", "")
"""How this worker fails on its first message: ``raises``, ``hangs`` until it is killed, or not at all."""


def say(word: str) -> None:
    # With the time, because this process may be read late.  All processes of a machine share this clock.
    print(word, time.monotonic(), flush=True)


def handle() -> None:
    """Do what the handler of each worker does."""
    global FAILURE
    failure, FAILURE = FAILURE, ""
    say("handled")
    if failure == "raises":
        raise ValueError("the handler raises once")
    if failure == "hangs":
        time.sleep(1000)


# The workers.  Each prints "ready" when it receives, and "handled" when it gets the message.


def events_core(url: str, what: str) -> None:
    from events_core import EventMessage, ReceivedMessage, consume, create_client

    async def bill(message: ReceivedMessage) -> None:
        handle()

    async def main() -> None:
        async with create_client(url) as client:
            if what == "send":
                await client.send_message(EventMessage(b"1"))
                return
            async with client.subscribe() as receiver:
                say("ready")
                await consume(receiver, bill)

    asyncio.run(main())


def on_sqlite(address: str, folder: Path, what: str) -> None:
    """events-core on SQLite."""
    events_core(f"sqlite:{folder}/events.db/orders?subscription=billing", what)


def on_redis(address: str, folder: Path, what: str) -> None:
    """events-core on Redis Streams, with events_redis."""
    events_core(f"redis://{address}/orders?subscription=billing&create=all", what)


def faststream(address: str, what: str, settings: dict[str, Any], second: bool = False) -> None:
    from faststream import AckPolicy, FastStream
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(f"redis://{address}", logger=None)
    if "ack_policy" in settings:
        settings["ack_policy"] = AckPolicy[settings["ack_policy"]]

    async def bill(text: str) -> None:
        handle()

    broker.subscriber(stream=StreamSub("orders", group="billing", consumer=str(os.getpid())), **settings)(bill)
    if second:
        claims = StreamSub("orders", group="billing", consumer=f"{os.getpid()}-2", min_idle_time=5000)
        broker.subscriber(stream=claims, **settings)(bill)

    async def send() -> None:
        async with broker:
            await broker.publish("1", stream="orders")

    app = FastStream(broker, logger=None)
    app.after_startup(lambda: say("ready"))
    asyncio.run(send() if what == "send" else app.run())


def faststream_default(address: str, folder: Path, what: str) -> None:
    """FastStream on Redis Streams, default settings."""
    faststream(address, what, {})


def faststream_set(address: str, folder: Path, what: str) -> None:
    """FastStream with NACK_ON_ERROR and a second subscriber with min_idle_time=5000."""
    faststream(address, what, {"ack_policy": "NACK_ON_ERROR"}, second=True)


def celery(address: str, what: str, task: dict[str, Any], transport: dict[str, Any]) -> None:
    from celery import Celery
    from celery.signals import worker_ready

    app = Celery("shop", broker=f"redis://{address}/0")
    app.conf.broker_transport_options = transport
    app.conf.worker_redirect_stdouts = False
    bill = app.task(name="bill", **task)(handle)
    worker_ready.connect(lambda **_: say("ready"), weak=False)
    if what == "send":
        bill.delay()
    else:
        app.worker_main(["worker", "--pool=solo", "--loglevel=CRITICAL"])


def celery_default(address: str, folder: Path, what: str) -> None:
    """Celery on Redis, default settings."""
    celery(address, what, {}, {})


def celery_set(address: str, folder: Path, what: str) -> None:
    """Celery with acks_late, autoretry_for=(Exception,), retry_kwargs={"countdown": 0} and visibility_timeout=5."""
    task = {"acks_late": True, "autoretry_for": (Exception,), "retry_kwargs": {"countdown": 0}}
    celery(address, what, task, {"visibility_timeout": 5})


CASES: list[Callable[[str, Path, str], None]] = [
    on_sqlite,
    on_redis,
    faststream_default,
    faststream_set,
    celery_default,
    celery_set,
]


class Worker:
    """A process that runs one case, and the words that it has printed."""

    def __init__(self, case: str, address: str, folder: Path, failure: str) -> None:
        self._words: queue.Queue[tuple[str, str]] = queue.Queue()
        command = [sys.executable, __file__, "--work", case, address, str(folder)]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "FAILURE": failure}
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, instant = line.strip().partition(" ")
            self._words.put((word, instant))

    def wait_for(self, awaited: str, seconds: float) -> float | None:
        """Return the time at which the worker printed the word *awaited*; ``None`` if not within *seconds*."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            try:
                word, instant = self._words.get(timeout=left)
            except queue.Empty:
                break
            if word == awaited:
                return float(instant)
        return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """Enter with the address of a new server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + START
        while time.monotonic() < ends:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def tried(case: str, kills: bool) -> str:
    """Run *case* with one message, and return when the message was handled again."""
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as address:
        folder = Path(name)
        workers = [Worker(case, address, folder, "hangs" if kills else "raises")]
        try:
            first = workers[0]
            if first.wait_for("ready", START) is None:
                return f"not ready: {(folder / 'log').read_text()[-500:]}"
            subprocess.run([sys.executable, __file__, "--send", case, address, name], check=True, timeout=START)
            failed = first.wait_for("handled", START)
            if failed is None:
                return f"not handled: {(folder / 'log').read_text()[-500:]}"
            if kills:
                first.kill()
                failed = time.monotonic()
                workers.append(Worker(case, address, folder, ""))
            again = workers[-1].wait_for("handled", AFTER_KILLING if kills else AFTER_RAISING)
            return f"handled again after {again - failed:.1f} s" if again else "not handled again"
        finally:
            for worker in workers:
                worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs=3, metavar=("CASE", "ADDRESS", "FOLDER"), help="run the worker of one case")
    parser.add_argument("--send", nargs=3, metavar=("CASE", "ADDRESS", "FOLDER"), help="send the message of one case")
    given = parser.parse_args()
    for what, arguments in (("work", given.work), ("send", given.send)):
        if arguments:
            case, address, folder = arguments
            globals()[case](address, Path(folder), what)
            return
    if shutil.which("redis-server") is None:
        sys.exit("there is no program 'redis-server'; install Redis 7 or newer")
    with ThreadPoolExecutor(2 * len(CASES)) as pool:
        runs = [[pool.submit(tried, case.__name__, kills) for kills in (False, True)] for case in CASES]
    for case, (raised, killed) in zip(CASES, runs, strict=True):
        print(
            f"{case.__doc__}\n    handler raises once:  {raised.result()}\n    process is killed:    {killed.result()}"
        )


if __name__ == "__main__":
    main()
