"""``events send``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Literal

from events_core import ErrorCode, EventClient, EventConfig, EventError, EventMessage, EventRuntimeError, PublishError
from events_core.cli.ending import opened
from events_core.cli.lines import Lines
from events_core.cli.ndjson import dump
from events_core.cli.outcome import CommandError, exit_code, say
from events_core.cli.output import Output
from events_core.cli.progress import ProgressBar

__all__ = ["Parse", "Report", "send_data", "send_lines"]

Parse = Callable[[bytes], EventMessage | None]
"""What a line means; ``None`` for one to skip, :class:`ValueError` for a bad one."""
Report = Literal["ids", "json", "count"]
"""What standard output gets: the ids, an object for each line, or only the number of messages stored."""

_Portion = Sequence[tuple[int, EventMessage]]
_Results = Sequence[str | EventError]

_NUMBER = re.compile(r"^message \d+ ")
"""How the library names the message that it refuses; to the user that number means nothing."""


async def send_data(config: EventConfig, message: EventMessage, report: Report) -> None:
    """Send one message, as if it were the only line.

    :raises CommandError: when it was not stored, or cannot be reported.
    """
    output = Output()
    async with opened(config) as client:
        sender = _Sender(client, output, report)
        with _accounted(sender, output, report):
            await sender.send([(1, message)])


async def send_lines(config: EventConfig, lines: Lines, parse: Parse, report: Report) -> None:
    """Send every line in order; stops at the first one that is bad or was not stored.

    :raises CommandError: with the line's number and how many messages were stored.
    """
    output = Output()
    async with opened(config) as client:
        sender = _Sender(client, output, report)
        bar = ProgressBar(lines, wanted=report == "count" or not output.is_terminal)
        with _accounted(sender, output, report), bar:
            async for portion in _portions(lines, parse):
                await sender.send(portion)
                bar.update(sender.stored)


@contextmanager
def _accounted(sender: _Sender, output: Output, report: Report) -> Iterator[None]:
    """Tell how many messages were stored, however the body ends."""
    try:
        try:
            yield
        finally:
            if report == "count":
                output.put(b"%d\n" % sender.stored)
    except asyncio.CancelledError:
        say("interrupted", sender.account())
        raise
    except (CommandError, EventError) as error:
        text = str(error) or "nobody reads standard output any more"
        raise CommandError(f"{text}; {sender.account()}", exit_code(error)) from error


async def _portions(lines: Lines, parse: Parse) -> AsyncIterator[_Portion]:
    async for numbered in lines.portions():
        portion: list[tuple[int, EventMessage]] = []
        for number, line in numbered:
            try:
                message = parse(line)
            except ValueError as error:
                yield portion
                raise CommandError(f"line {number} of {lines.name}: {error}") from error
            if message is not None:
                portion.append((number, message))
        yield portion


class _Sender:
    """Sends portions, reports them and keeps count."""

    def __init__(self, client: EventClient, output: Output, report: Report) -> None:
        self._client = client
        self._output = output
        self._report: Report = report
        self._under_way = 0
        self.stored = 0

    async def send(self, portion: _Portion) -> None:
        """Send *portion* and report it.

        :raises CommandError: when a message of it was not stored.
        """
        self._under_way = len(portion)
        results = await self._results(portion)
        self._under_way = 0
        # Fewer results than messages where sending stopped.
        outcomes = [(number, result) for (number, _), result in zip(portion, results, strict=False)]
        failed = [(number, result) for number, result in outcomes if isinstance(result, EventError)]
        self.stored += len(outcomes) - len(failed)
        await self._output.write(b"".join(_reported(number, result, self._report) for number, result in outcomes))
        if failed:
            raise CommandError(_explained(failed))

    async def _results(self, portion: _Portion) -> _Results:
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

    async def _results_one_by_one(self, portion: _Portion) -> _Results:
        """For a portion that was refused as a whole: send what stands before the bad line, and learn which that is."""
        results: list[str | EventError] = []
        for numbered in portion:
            results += await self._results([numbered])
            if isinstance(results[-1], EventError):
                break
        return results

    def account(self) -> str:
        """What has been done, for a command that does not end well."""
        text = f"{self.stored} message{' was' if self.stored == 1 else 's were'} stored"
        return f"{text}, up to {self._under_way} more may have been" if self._under_way else text


def _reported(number: int, result: str | EventError, report: Report) -> bytes:
    match report, result:
        case "ids", str(message_id):
            return message_id.encode() + b"\n"
        case "json", str(message_id):
            return dump({"line": number, "message_id": message_id})
        case "json", EventError():
            return dump({"line": number, "error": result.code.value, "detail": _located(result, "the message")})
        case _:
            return b""


def _explained(failed: Sequence[tuple[int, EventError]]) -> str:
    first = next((error for _, error in failed if error.code is not ErrorCode.NOT_ATTEMPTED), failed[0][1])
    numbers = [number for number, _ in failed]
    where = f"{'lines' if len(numbers) > 1 else 'line'} {_ranges(numbers)}"
    located = _located(first, where)
    return located if located.startswith(where) else f"{where} not stored: {first}"


def _located(error: EventError, where: str) -> str:
    """Return the text of *error*, with *where* in place of the message's number in its request."""
    return _NUMBER.sub(f"{where} ", str(error), count=1)


def _ranges(numbers: Sequence[int]) -> str:
    """Such as ``"2, 5-9"``, the first twenty."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(texts[:20] + ["…"] * (len(texts) > 20))
