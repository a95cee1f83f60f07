"""A client whose first token the server refuses, over TLS and with real credentials: ``python -m tests.gcp.renewing``.

It is a separate program because gRPC reads the certificates of authorities once in a process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from .broker import Broker
from .console import client
from .faults import serving
from .waiting import PATIENCE


class Suspicious(Broker):
    """A broker that accepts every token except the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []

    async def get_topic(self, request: Any, context: Any) -> Any:
        token = dict(context.invocation_metadata())["authorization"]
        self.tokens.append(token)
        if token == self.tokens[0]:
            await _next_second()  # tokens that are signed in the same second are equal
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who is this?")
        return await super().get_topic(request, context)


async def _next_second() -> None:
    second = int(time.time())
    while int(time.time()) == second:
        await asyncio.sleep(0.05)


async def main(folder: Path) -> None:
    """Ping a server with the certificate in *folder*, and print the tokens that it received."""
    identity = (folder / "key.pem").read_bytes(), (folder / "certificate.pem").read_bytes()
    server = Suspicious()
    async with serving(server, grpc.ssl_server_credentials([identity])):
        account = folder / "account.json"
        options = {"credentials_file": str(account)} if account.exists() else {}
        async with client(endpoint=server.address, create="never", **options) as asking:
            await asking.ping(PATIENCE)
    json.dump(server.tokens, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
