"""Requests to receive, which nothing cuts while there is time.

If the connection of a request is closed, SQS goes on with the request.  It may give a message to the closed connection
later, as long as the request would have waited.  The message is then invisible until its visibility timeout is over,
and its attempt was counted.  So each request has a task of its own.  A cancelled ``fetch`` leaves that task running,
and :meth:`Polls.finish` hands back what the task brings.

If there is no time to wait for the answer, the request must be cut.  A FIFO queue then gives the same messages again to
a request with the same ``ReceiveRequestAttemptId``.  This also holds for a request whose answer was lost.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from events_core.engine import BrokerError, Delivery
from events_sqs.limits import MAX_BATCH
from events_sqs.poll_pace import PollPace

__all__ = ["Polls", "Receive"]

_STRAGGLERS = 0.25
"""Seconds that the first answer waits for those of other requests that were sent with it."""

_REPEATABLE = 240.0
"""Seconds for which a FIFO queue repeats an answer; SQS says 5 minutes (``ReceiveMessage``, SQS API reference)."""


class Receive(Protocol):
    """One request to receive."""

    def __call__(self, limit: int, wait: int, attempt_id: str | None) -> Awaitable[Sequence[Delivery]]:
        """Ask for *limit* messages, 10 at most, and let SQS wait for them for *wait* seconds.

        :param attempt_id: its ``ReceiveRequestAttemptId``; ``None`` if the queue is not FIFO.
        :raises BrokerError: if that failed.
        """
        ...


class _Poll:
    """One request that is out, or whose answer nobody has taken."""

    def __init__(self, receive: Receive, limit: int, wait: int, attempt_id: str | None, *, is_alone: bool) -> None:
        self.limit = limit
        self.is_alone = is_alone
        """True if it may wait for long.  False if others were sent with it because there was much to fetch."""
        self.is_late = False
        """True if those that were sent with it have been answered.  Others are asked meanwhile."""
        self.attempt_id = attempt_id
        self.task: asyncio.Task[Sequence[Delivery]] = asyncio.ensure_future(receive(limit, wait, attempt_id))


class Polls:
    """The requests of one receiver.

    :param give_back: lets messages come again at once, in order.
    :param wait: seconds that SQS waits for messages.
    :param is_fifo: whether the queue repeats answers.
    """

    def __init__(
        self, receive: Receive, give_back: Callable[[Sequence[Delivery]], Awaitable[None]], wait: int, *, is_fifo: bool
    ) -> None:
        self._receive = receive
        self._give_back = give_back
        self._wait = wait
        self._is_fifo = is_fifo
        self._pace = PollPace()
        self._out: list[_Poll] = []
        self._loop = asyncio.get_running_loop()
        self._lost: list[tuple[str, float]] = []
        """Attempt ids of requests whose answers were lost, and until when they may be used again."""
        self._has_failed = False
        self._kept: list[Delivery] = []
        """What has come and was not taken: the next :meth:`receive` returns it, or it is given back."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until messages have come, and return them: *limit* at most, except that one answer may have more.

        Cancelling this cuts no request.

        :returns: nothing if SQS has waited in vain.
        :raises BrokerError: if all requests failed.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        if all(poll.is_late for poll in self._out):
            await asyncio.sleep(self._pace.pause(self._loop.time()))
            self._begin(max(1, limit - MAX_BATCH * len(self._out)))
        tasks = [poll.task for poll in self._out]
        _, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if others:
            await asyncio.wait(others, timeout=_STRAGGLERS)
        return self._take()

    def keep(self, deliveries: Sequence[Delivery]) -> None:
        """Take back what :meth:`receive` returned, because its turn has failed."""
        self._kept += deliveries

    def _begin(self, limit: int) -> None:
        count = self._pace.count(limit)
        is_alone = count == 1 and not self._has_failed
        limit = min(limit, MAX_BATCH)
        for _ in range(count):
            wait = self._wait if is_alone else self._short_wait(count)
            self._out.append(_Poll(self._receive, limit, wait, self._attempt_id(), is_alone=is_alone))

    def _short_wait(self, count: int) -> int:
        """Return the seconds that SQS waits if *count* requests are sent at once, or the last one has failed."""
        # If SQS does not wait at all, it asks only some of its servers, and may say that there is nothing.  But on
        # FIFO, requests are often in vain, because their groups are in flight.  After a failure, a quick answer ends
        # the outage.
        return 0 if self._is_fifo or count == 1 else 1

    def _attempt_id(self) -> str | None:
        if not self._is_fifo:
            return None
        now = self._loop.time()
        while self._lost:
            attempt_id, until = self._lost.pop()
            if now < until:
                return attempt_id
        return uuid.uuid4().hex

    def _take(self) -> Sequence[Delivery]:
        """Take what the requests that have ended brought.

        :raises Exception: if they have all failed.
        """
        ended = [poll for poll in self._out if poll.task.done()]
        self._out = [poll for poll in self._out if not poll.task.done()]
        # Those that wait in vain count as empty at once.  Their late answers tell nothing about what is there by then.
        fresh = [poll for poll in ended if not poll.is_late]
        late = [poll for poll in self._out if fresh and not poll.is_alone and not poll.is_late]
        for poll in late:
            poll.is_late = True
        answers, failure = self._answers(ended)
        self._has_failed = failure is not None and not any(answers)
        if failure is not None and self._has_failed:
            raise failure
        sizes = [len(poll.task.result()) for poll in fresh if poll.task.exception() is None]
        if sizes:
            self._pace.answered(sizes + [0] * len(late), fresh[0].limit, self._loop.time())
        return [delivery for answer in answers for delivery in answer]

    def _answers(self, ended: Iterable[_Poll]) -> tuple[Sequence[Sequence[Delivery]], Exception | None]:
        """Return the answers to requests that have ended, and a failure if any has failed."""
        answers: list[Sequence[Delivery]] = []
        failure: Exception | None = None
        for poll in ended:
            try:
                answers.append(poll.task.result())
            except Exception as error:  # whatever it is, the others' messages count
                failure = error
                if isinstance(error, BrokerError) and error.retryable:
                    self._lose(poll)
        return answers, failure

    def _lose(self, poll: _Poll) -> None:
        """Record that the answer to *poll* was lost, so that it is asked for again; on FIFO."""
        if poll.attempt_id is not None:
            self._lost.append((poll.attempt_id, self._loop.time() + _REPEATABLE))

    async def finish(self) -> None:
        """Wait for what is out, and give back at once what has come.

        It is not left to :meth:`close`, which comes when the application has settled what it holds.
        """
        if self._out:
            await asyncio.wait([poll.task for poll in self._out])
        self._keep_answers()
        await self._return()

    async def close(self, patience: float) -> None:
        """Wait for what is out, for *patience* seconds at most, cut the rest, and give back what has come.

        On FIFO, a request that was cut, or whose answer was lost, is repeated, and what it brings is given back.
        """
        try:
            if self._out:
                await asyncio.wait([poll.task for poll in self._out], timeout=patience)
        finally:  # also when there is no more time at all
            self._keep_answers()
            cut = self._cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        lost = [attempt_id for attempt_id, until in self._lost if self._loop.time() < until]
        # Before anything goes back: one that AWS has never seen would get that, which counts an attempt.
        repeated = [self._receive(MAX_BATCH, 0, attempt_id) for attempt_id in lost]
        for answer in await asyncio.gather(*repeated, return_exceptions=True):
            if not isinstance(answer, BaseException):
                self._kept += answer
        await self._return()

    async def cut(self) -> None:
        """Cut what is out, and give nothing back: the queue is deleted with its messages."""
        await asyncio.gather(*self._cancel(), return_exceptions=True)

    def _cancel(self) -> Sequence[asyncio.Task[Sequence[Delivery]]]:
        """Cut what is out, and return the tasks that are ending."""
        polls, self._out = self._out, []
        for poll in polls:
            self._lose(poll)
            poll.task.cancel()
        return [poll.task for poll in polls]

    def _keep_answers(self) -> None:
        """Keep what has come.  It does not wait, so a cancellation loses nothing."""
        ended = [poll for poll in self._out if poll.task.done()]
        self._out = [poll for poll in self._out if not poll.task.done()]
        answers, _ = self._answers(ended)
        self._kept += [each for answer in answers for each in answer]

    async def _return(self) -> None:
        if self._kept:
            await self._give_back(self._kept)
            self._kept = []
