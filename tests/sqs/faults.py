"""A proxy that knows the requests of SQS and SNS, and fails those that a test names.

::

    async with faulty(server.url) as proxy:
        client = create_client("orders", options={"endpoint_url": proxy.url, ...})
        proxy.refuse("SendMessageBatch", "RequestThrottled", times=3)
        await client.send_message(...)
        assert proxy.count("SendMessageBatch") == 4

It runs on the loop of the test, next to the client, whose requests come from another thread.  It serves clients of
today's protocols: JSON for SQS, and forms and XML for SNS and STS.  For faults of the network alone,
:class:`events_core.testing.TcpProxy` is enough.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

import aiohttp
import attrs
from aiohttp import web

_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding"}
"""Headers that belong to one connection."""
_SKEW = timedelta(minutes=5)
"""The age that SQS permits a signature."""

Entry = Mapping[str, Any]


@attrs.frozen
class Call:
    """One request that came, whatever happened to it."""

    operation: str
    """For example ``SendMessageBatch``, of SQS, or ``PublishBatch``, of SNS."""
    is_json: bool
    headers: Mapping[str, str]
    body: bytes

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of a request in JSON."""
        given: Mapping[str, Any] = json.loads(self.body)
        return given


@attrs.define
class _Fault:
    """What happens to the next *times* requests of an operation, or of all with ``""``."""

    operation: str
    times: float
    act: Callable[[Call, FaultyProxy], Any]
    applies: Callable[[Call], bool] = attrs.field(default=lambda call: True)


class FaultyProxy:
    """A server that passes on the requests of clients, and fails some; see :func:`faulty`.

    A fault that is named last acts first.  Each acts on the next *times* requests, and all of them end with
    :meth:`heal`.
    """

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self.url = ""
        """The URL for the option ``endpoint_url``."""
        self.calls: list[Call] = []
        """All requests that came, in order."""
        self.skew = timedelta()
        """How much the server's clock is ahead of this machine's, for requests that it judges by their signature."""
        self._upstream = upstream
        self._session = session
        self._faults: list[_Fault] = []
        self._healed = asyncio.Event()

    def count(self, operation: str) -> int:
        """Return how many requests of an operation came."""
        return sum(call.operation == operation for call in self.calls)

    # Faults

    def refuse(
        self, operation: str, code: str, *, status: int = 400, message: str = "as the test wants it", times: float = 1
    ) -> None:
        """Answer with an error, and pass nothing on."""

        async def act(call: Call, proxy: FaultyProxy) -> web.Response:
            return _refusal(call, code, status, message)

        self._add(operation, times, act)

    def break_down(self, operation: str, *, status: int = 503, times: float = 1) -> None:
        """Answer as a load balancer does that finds no server: with a page."""

        async def act(call: Call, proxy: FaultyProxy) -> web.Response:
            return web.Response(status=status, text="<html>Service Unavailable</html>", content_type="text/html")

        self._add(operation, times, act)

    def cut(self, operation: str, *, times: float = 1) -> None:
        """Break the connection, and pass nothing on."""

        async def act(call: Call, proxy: FaultyProxy) -> None:
            return None

        self._add(operation, times, act)

    def lose_answer(self, operation: str, *, times: float = 1) -> None:
        """Pass the request on, and break the connection instead of answering."""

        async def act(call: Call, proxy: FaultyProxy) -> None:
            await proxy._passed_on(call)

        self._add(operation, times, act)

    def disturb(self, every: int) -> None:
        """Cut each *every*-th request, whatever it asks, before or after it is passed on, in turn."""
        came = itertools.count(1)

        async def act(call: Call, proxy: FaultyProxy) -> None:
            if next(acted) % 2:
                await proxy._passed_on(call)

        acted = itertools.count()
        self._add("", math.inf, act, lambda call: next(came) % every == 0)

    def hold(self, operation: str, *, times: float = 1) -> None:
        """Pass nothing on and say nothing until :meth:`heal`.  Then break the connection."""

        async def act(call: Call, proxy: FaultyProxy) -> None:
            await proxy._healed.wait()

        self._add(operation, times, act)

    def overtake(self, operation: str, by: str, patience: float = 1.0) -> None:
        """Let the next request be overtaken by the next one of the operation *by*: that is answered only after it.

        If none comes in *patience* seconds, pass the request on.
        """
        overtaken, answered = asyncio.Event(), asyncio.Event()

        async def act(call: Call, proxy: FaultyProxy) -> web.Response:
            with suppress(TimeoutError):
                await asyncio.wait_for(overtaken.wait(), patience)
            answer = await proxy._passed_on(call)
            answered.set()
            return answer

        async def act_first(call: Call, proxy: FaultyProxy) -> web.Response:
            answer = await proxy._passed_on(call)
            overtaken.set()
            await answered.wait()
            return answer

        self._add(operation, 1, act)
        self._add(by, 1, act_first)

    def fail_entry(
        self,
        operation: str,
        is_chosen: Callable[[str], bool],
        code: str,
        *,
        is_senders_fault: bool = False,
        times: float = 1,
    ) -> None:
        """Answer a request of several entries with a failure of some, and pass on the others.

        :param is_chosen: tells from the text of an entry whether it fails.  Only requests with such an entry count.
        """

        async def act(call: Call, proxy: FaultyProxy) -> web.Response:
            return await proxy._partly(call, is_chosen, code, is_senders_fault)

        self._add(operation, times, act, lambda call: any(is_chosen(_text(entry)) for entry in entries_of(call)))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()
        self.skew = timedelta()
        self._healed.set()
        self._healed = asyncio.Event()

    def _add(
        self,
        operation: str,
        times: float,
        act: Callable[[Call, FaultyProxy], Any],
        applies: Callable[[Call], bool] = lambda call: True,
    ) -> None:
        self._faults.append(_Fault(operation, times, act, applies))

    # Requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        call = _call(request.headers, await request.read())
        self.calls.append(call)
        answer = await self._answer(call)
        if answer is None:
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError
        return answer

    async def _answer(self, call: Call) -> web.Response | None:
        if late := self._outdated(call):
            return late
        for fault in reversed(self._faults):
            if fault.times > 0 and fault.operation in ("", call.operation) and fault.applies(call):
                fault.times -= 1
                answer: web.Response | None = await fault.act(call, self)
                return answer
        return await self._passed_on(call)

    async def _passed_on(self, call: Call) -> web.Response:
        # The header Host too, which is signed.
        headers = {name: value for name, value in call.headers.items() if name.lower() not in _HOP}
        async with self._session.post(self._upstream, data=call.body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    def _outdated(self, call: Call) -> web.Response | None:
        """Return the answer to a signature that is too old, or too new, for the server's clock."""
        if not self.skew:
            return None
        signed = datetime.strptime(call.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        now = datetime.now(UTC) + self.skew
        if abs(now - signed) <= _SKEW:
            return None
        word, bound = ("earlier", now - _SKEW) if signed < now else ("later", now + _SKEW)
        text = f"Signature {'expired' if signed < now else 'not yet current'}: {signed:%Y%m%dT%H%M%SZ} is "
        text += f"{'now' if signed < now else 'still'} {word} than {bound:%Y%m%dT%H%M%SZ}"
        answer = _refusal(call, "InvalidSignatureException" if call.is_json else "SignatureDoesNotMatch", 403, text)
        answer.headers["Date"] = f"{now:%a, %d %b %Y %H:%M:%S} GMT"
        return answer

    async def _partly(
        self, call: Call, is_chosen: Callable[[str], bool], code: str, is_senders_fault: bool
    ) -> web.Response:
        entries = entries_of(call)
        failed = [entry for entry in entries if is_chosen(_text(entry))]
        left = [entry for entry in entries if entry not in failed]
        answer = await self._passed_on(_with_entries(call, left)) if left else None
        return _with_failures(call, answer, failed, code, is_senders_fault)


def _call(headers: Mapping[str, str], body: bytes) -> Call:
    target = headers.get("X-Amz-Target", "")
    operation = target.partition(".")[2] if target else dict(parse_qsl(body.decode()))["Action"]
    return Call(operation, bool(target), dict(headers), body)


def _refusal(call: Call, code: str, status: int, message: str) -> web.Response:
    if call.is_json:
        return web.json_response(
            {"__type": f"com.amazonaws.sqs#{code}", "message": message},
            status=status,
            content_type="application/x-amz-json-1.0",
        )
    kind = "Receiver" if status >= 500 else "Sender"
    text = f"<ErrorResponse><Error><Type>{kind}</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return web.Response(status=status, text=f"{text}<RequestId>1</RequestId></ErrorResponse>", content_type="text/xml")


# Requests of several entries.  An entry of a form is the mapping of its parameters without their common beginning.


def entries_of(call: Call) -> list[Entry]:
    """Return the entries of a request; each has the parameters of its service."""
    if call.is_json:
        found: list[Entry] = call.parameters.get("Entries", [])
        return found
    numbered: dict[int, dict[str, str]] = {}
    for name, value in parse_qsl(call.body.decode(), keep_blank_values=True):
        if matched := re.fullmatch(r"PublishBatchRequestEntries\.member\.(\d+)\.(.+)", name):
            numbered.setdefault(int(matched[1]), {})[matched[2]] = value
    return list(numbered.values())


def _text(entry: Entry) -> str:
    """Return the body of a message, or the receipt handle of one that was received."""
    return str(entry.get("MessageBody") or entry.get("Message") or entry.get("ReceiptHandle") or "")


def _with_entries(call: Call, entries: list[Entry]) -> Call:
    """Return the same request with other entries.  Its signature no longer holds."""
    if call.is_json:
        body = json.dumps({**call.parameters, "Entries": entries}).encode()
        return attrs.evolve(call, body=body)
    start = "PublishBatchRequestEntries.member."
    pairs = [pair for pair in parse_qsl(call.body.decode(), keep_blank_values=True) if not pair[0].startswith(start)]
    for number, entry in enumerate(entries, 1):
        pairs += [(f"{start}{number}.{name}", value) for name, value in entry.items()]
    return attrs.evolve(call, body=urlencode(pairs).encode())


def _with_failures(
    call: Call, answer: web.Response | None, failed: list[Entry], code: str, is_senders_fault: bool
) -> web.Response:
    if call.is_json:
        content = json.loads(answer.body) if answer is not None and isinstance(answer.body, bytes) else {}
        content.setdefault("Successful", [])
        content.setdefault("Failed", []).extend(
            {"Id": entry["Id"], "Code": code, "Message": "as the test wants it", "SenderFault": is_senders_fault}
            for entry in failed
        )
        return web.json_response(content, content_type="application/x-amz-json-1.0")
    told = "".join(
        f"<member><Id>{entry['Id']}</Id><Code>{code}</Code><Message>as the test wants it</Message>"
        f"<SenderFault>{str(is_senders_fault).lower()}</SenderFault></member>"
        for entry in failed
    )
    stored = ""
    if answer is not None and isinstance(answer.body, bytes):
        matched = re.search(r"<Successful>.*</Successful>", answer.body.decode(), re.DOTALL)
        stored = matched[0] if matched else ""
    text = f"<PublishBatchResult>{stored}<Failed>{told}</Failed></PublishBatchResult>"
    spaced = '<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">'
    return web.Response(text=f"{spaced}{text}</PublishBatchResponse>", content_type="text/xml")


@asynccontextmanager
async def faulty(upstream: str) -> AsyncIterator[FaultyProxy]:
    """Serve a proxy to the server at *upstream*, on the running loop and a free port of 127.0.0.1."""
    unbounded = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=unbounded, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        proxy = FaultyProxy(upstream, session)
        runner = web.ServerRunner(web.Server(proxy.handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield proxy
        finally:
            proxy.heal()
            await runner.cleanup()


FOREVER = math.inf
"""For *times*."""
