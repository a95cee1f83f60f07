"""The command ``events send``."""

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
"""A function that returns the message of a line, or ``None`` to skip it; it raises ``ValueError`` for a bad line."""
Report = Literal["ids", "json", "count"]
"""The output: the ids, an object for each line, or only the number of stored messages."""

_Portion = Sequence[tuple[int, EventMessage]]
_Results = Sequence[str | EventError]

_NUMBER = re.compile(r"^message \d+ ")
"""The name of a refused message in the library's errors: its place in the request, which users do not know."""


async def send_data(config: EventConfig, message: EventMessage, report: Report) -> None:
    """Send one message, as if it were the only line.

    :raises CommandError: if the message was not stored, or if its id cannot be written.
    """
    output = Output()
    async with opened(config) as client:
        sender = _Sender(client, output, report)
        with _accounted(sender, output, report):
            await sender.send([(1, message)])


async def send_lines(config: EventConfig, lines: Lines, parse: Parse, report: Report) -> None:
    """Send the lines in order, and stop at the first line that is bad or was not stored.

    :raises CommandError: with the number of that line, and with the number of stored messages.
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
    """Add the number of stored messages to the output, and to the error if the body fails."""
    try:
        try:
            yield
        finally:
            if report == "count":
                output.put(b"%d\n" % sender.stored)
    except asyncio.CancelledError:
        # The exit code says that a signal came, and the line says how far it was.
        say("interrupted", sender.account())
        raise
    except (CommandError, EventError) as error:
        text = str(error) or "the reader of standard output is gone"
        raise CommandError(f"{text}; {sender.account()}", exit_code(error)) from error


async def _portions(lines: Lines, parse: Parse) -> AsyncIterator[_Portion]:
    async for numbered in lines.portions():
        portion: list[tuple[int, EventMessage]] = []
        for number, line in numbered:
            try:
                message = parse(line)
            except ValueError as error:
                # First the lines before the bad one, so that the user can go on at its number.
                yield portion
                raise CommandError(f"line {number} of {lines.name}: {error}") from error
            if message is not None:
                portion.append((number, message))
        yield portion


class _Sender:
    """A sender of portions that prints what became of them, and counts the stored messages."""

    def __init__(self, client: EventClient, output: Output, report: Report) -> None:
        self._client = client
        self._output = output
        self._report: Report = report
        self._under_way = 0
        self.stored = 0

    async def send(self, portion: _Portion) -> None:
        """Send *portion*, and print what became of each message.

        :raises CommandError: if a message was not stored.
        """
        # While a request is out, an interrupted command cannot know what the broker has stored.
        self._under_way = len(portion)
        results = await self._results(portion)
        self._under_way = 0
        # There are fewer results than messages if sending stopped at a refused one.
        outcomes = [(number, result) for (number, _), result in zip(portion, results, strict=False)]
        failed = [(number, result) for number, result in outcomes if isinstance(result, EventError)]
        self.stored += len(outcomes) - len(failed)
        await self._output.write([_reported(number, result, self._report) for number, result in outcomes])
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
        # The library checks a call as a whole (P2), and refuses all lines because of a single one.
        if len(portion) > 1 and refusal.code in (ErrorCode.INVALID, ErrorCode.UNSUPPORTED):
            return await self._results_one_by_one(portion)
        return [refusal] * len(portion)

    async def _results_one_by_one(self, portion: _Portion) -> _Results:
        """Send *portion*, which was refused as a whole, message by message, up to the refused one.

        So the lines before the bad line are stored, and the error can name that line.
        """
        results: list[str | EventError] = []
        for numbered in portion:
            results += await self._results([numbered])
            if isinstance(results[-1], EventError):
                break
        return results

    def account(self) -> str:
        """Return a text that says how many messages are stored, for the error of a command."""
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
    # NOT_ATTEMPTED is only the consequence of another error, which says more.
    first = next((error for _, error in failed if error.code is not ErrorCode.NOT_ATTEMPTED), failed[0][1])
    numbers = [number for number, _ in failed]
    where = f"{'lines' if len(numbers) > 1 else 'line'} {_ranges(numbers)}"
    located = _located(first, where)
    return located if located.startswith(where) else f"{where} not stored: {first}"


def _located(error: EventError, where: str) -> str:
    """Return the text of *error*, with *where* in place of the message's number in its request."""
    return _NUMBER.sub(f"{where} ", str(error), count=1)


def _ranges(numbers: Sequence[int]) -> str:
    """Return *numbers* as ranges, for example ``"2, 5-9"``; the first twenty ranges only."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(texts[:20] + ["…"] * (len(texts) > 20))
