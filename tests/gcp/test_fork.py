"""Processes that fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from .console import PROJECT, Console

FORK = """
import asyncio, os, sys
from events_core import EventConfig, EventError, EventMessage, create_client

async def send():
    async with create_client(EventConfig(sys.argv[1], sys.argv[2], {"emulator_host": sys.argv[3]}, "gcp")) as client:
        return await client.send_message(EventMessage(b"x"))

asyncio.run(send())
child = os.fork()
if not child:
    try:
        asyncio.run(send())
        code = "sent"
    except EventError as error:
        code = error.code.name
    print('{"child": "%s"}' % code, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert asyncio.run(send())
"""


def test_a_new_client_in_the_child_of_a_process_that_connected_is_refused(console: Console) -> None:
    """T2: the first use of the client raises WRONG_PROCESS, because gRPC would hang; the parent goes on."""
    ran = subprocess.run(
        [sys.executable, "-c", FORK, console.topic_name, PROJECT, console.emulator],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},  # else gRPC's own threads sometimes crash the child
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"child": "WRONG_PROCESS"}
