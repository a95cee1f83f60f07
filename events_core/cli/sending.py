"""``events send``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import groupby

from events_core import ErrorCode, EventClient, EventConfig, EventError, EventMessage, EventRuntimeError, PublishError
from events_core.cli.ending import Ending, opened
from events_core.cli.lines import Lines
from events_core.cli.ndjson import dump
from events_core.cli.outcome import CommandError, say
from events_core.cli.output import Output
from events_core.cli.progress import ProgressBar

__all__ = ["IDS", "JSON", "QUIET", "send_data", "send_lines"]

Numbered = tuple[int, EventMessage]
Result = str | EventError
Report = Callable[[int, Result], bytes]
"""What standard output gets for a line and what became of it."""


def IDS(_number: int, result: Result) -> bytes:
    """The message ids, one per line."""
    return result.encode() + b"\n" if isinstance(result, str) else b""


def JSON(number: int, result: Result) -> bytes:
    """A JSON object per line, failed ones included."""
    if isinstance(result, str):
        return dump({"line": number, "message_id": result})
    return dump({"line": number, "error": result.code.value, "detail": str(result)})


def QUIET(_number: int, _result: Result) -> bytes:
    """Nothing until the end, which tells how many were stored."""
    return b""


class _Sender:
    """Sends portions and keeps count."""

    def __init__(self, client: EventClient, report: Report) -> None:
        self._client = client
        self._report = report
        self._output = Output()
        self._under_way = 0
        self.stored = 0

    async def send(self, portion: Sequence[Numbered]) -> None:
        """Send *portion* and report it.

        :raises CommandError: when anything of it was not stored.
        """
        self._under_way = len(portion)
        results = await self._results(portion)
        self._under_way = 0
        failed = [(number, result) for (number, _), result in zip(portion, results) if not isinstance(result, str)]
        self.stored += len(results) - len(failed)
        report = b"".join(self._report(number, result) for (number, _), result in zip(portion, results))
        await self._output.write(report)
        if failed:
            raise CommandError(_explained(failed))

    async def _results(self, portion: Sequence[Numbered]) -> Sequence[Result]:
        """One for each message; fewer when a message made it stop."""
        try:
            return await self._client.send_messages([message for _, message in portion])
        except PublishError as error:
            if error.results:
                return error.results
            refusal: EventError = error
        except EventRuntimeError as error:
            refusal = error
        if len(portion) > 1 and refusal.code in (ErrorCode.INVALID, ErrorCode.UNSUPPORTED):
            return await self._results_one_by_one(portion)
        return [refusal] * len(portion)

    async def _results_one_by_one(self, portion: Sequence[Numbered]) -> Sequence[Result]:
        """For a portion refused as a whole (P2): send what stands before the bad line, and learn which that is."""
        results: list[Result] = []
        for numbered in portion:
            results += await self._results([numbered])
            if not isinstance(results[-1], str):
                break
        return results

    async def finish(self) -> None:
        """Write what the report says in the end."""
        if self._report is QUIET:
            await self._output.write(b"%d\n" % self.stored)

    def account(self) -> str:
        """What has been done, for a command that does not end well."""
        text = f"{self.stored} message{'s were' if self.stored != 1 else ' was'} stored"
        return f"{text}, up to {self._under_way} more may have been" if self._under_way else text


def _explained(failed: Sequence[tuple[int, EventError]]) -> str:
    first = next((error for _, error in failed if error.code is not ErrorCode.NOT_ATTEMPTED), failed[0][1])
    lines = _ranges([number for number, _ in failed])
    return f"{lines} not stored: {first}"


def _ranges(numbers: Sequence[int]) -> str:
    """Such as ``"lines 2, 5-9"``."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    more = f" and {len(texts) - 20} more runs" if len(texts) > 20 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(texts[:20])}{more}"


async def send_data(config: EventConfig, message: EventMessage, report: Report, ending: Ending) -> None:
    """Send one message."""
    async with opened(config) as client:
        sender = _Sender(client, report)
        ...


async def send_lines(
    config: EventConfig, lines: Lines, parse: Callable[[bytes], EventMessage | None], report: Report
) -> None:
    """Send every line of *lines* as the message that *parse* makes of it, in order.

    Stops at the first line that is bad or was not stored; those before it are stored.

    :param parse: ``None`` for a line to skip; raises :class:`ValueError` for a bad one.
    :raises CommandError: with the line's number and how many messages were stored.
    """
